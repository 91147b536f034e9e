"""EXAONE 4: norms on the branches' outputs and on each query and key.

Where a window is used, the layers without it, every fourth by default, rotate
nothing.
"""

from typing import Any

from sinkjax.weights.families import llama, qwen2
from sinkjax.weights.families._config import window_fields
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors, window_gguf
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._rope import rotated_layers
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Exaone4Config.
_DEFAULTS = {
  "vocab_size": 102400,
  "hidden_size": 4096,
  "intermediate_size": 16384,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": 32,
  "max_position_embeddings": 2048,
  "sliding_window": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read, eps_default=1e-5)
  layers = fields["n_layers"]
  # Beside `layer_types` the pattern is a text, "LLLG", and says no more.
  every = 4
  if read.values.get("layer_types") is None:
    every = read.get("sliding_window_pattern", int, 4)
  fields |= window_fields(read, layers, lambda i: (i + 1) % every != 0)
  local = fields["local_layers"] or (False,) * layers
  rotated = (True,) * layers if fields["window"] is None else local
  return fields | {
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "rope_layers": rotated_layers(rotated),
  }


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; llama.cpp knows its largest model by the layers."""
  layers = fields["n_layers"]
  found = window_gguf(read, layers, 4, 4096 if layers == 64 else 0)
  return found | {
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "rope_layers": rotated_layers(found["local_layers"]),
  }


register(
  Family(
    name="exaone4",
    transformers_class="Exaone4ForCausalLM",
    read_config=read_config,
    write_config=qwen2.write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="exaone4", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
