"""SmolLM3: Llama with layers, every fourth by default, that rotate nothing.

Where a window is used, those layers have it.
"""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import window_fields, window_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._rope import rotated_layers
from sinkjax.weights.families._tensors import decoder_tensors
from sinkjax.weights.validate import WeightsError

# Of transformers' SmolLM3Config.
_DEFAULTS = {
  "vocab_size": 128256,
  "hidden_size": 2048,
  "intermediate_size": 11008,
  "num_hidden_layers": 36,
  "num_attention_heads": 16,
  "num_key_value_heads": 4,
  "max_position_embeddings": 32768,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read, tied=True, rope_base=2e6)
  layers = fields["n_layers"]
  rotated = _rotated(read, layers)
  used = read.get("use_sliding_window", bool, False)
  return (
    fields
    | {"rope_layers": rotated_layers(rotated)}
    | window_fields(read, layers, lambda i: used and not rotated[i])
  )


def _rotated(read: Reader, layers: int) -> tuple[bool, ...]:
  """Which layers rotate: the key's name says the opposite of its ones."""
  listed = read.get("no_rope_layers", list)
  if listed is None:
    every = read.get("no_rope_layer_interval", int, 4)
    return tuple((i + 1) % every != 0 for i in range(layers))
  if len(listed) < layers or any(one not in (0, 1) for one in listed):
    raise WeightsError(
      f"{read.where}: no_rope_layers must be {layers} of 0 and 1"
    )
  return tuple(bool(one) for one in listed[:layers])


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  rotated = cfg.rope_layers or (True,) * cfg.n_layers
  return (
    llama.write_config(cfg)
    | window_values(cfg)
    | {
      "no_rope_layers": [int(one) for one in rotated],
      # The class's default, 128004, is outside smaller vocabularies.
      "pad_token_id": None,
    }
  )


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; llama.cpp has every fourth layer, and no window."""
  rotated = tuple((i + 1) % 4 != 0 for i in range(fields["n_layers"]))
  return {"rope_layers": rotated_layers(rotated)}


register(
  Family(
    name="smollm3",
    transformers_class="SmolLM3ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="smollm3",
      tensors=functools.partial(gguf_tensors, interleaved_rope=True),
      read_config=read_gguf,
    ),
  )
)
