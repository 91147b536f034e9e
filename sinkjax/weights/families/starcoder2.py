"""StarCoder2: Llama with layer norms, an MLP without gate, and biases.

Every layer may attend over a window.
"""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import (
  decoder_fields,
  decoder_values,
  window_fields,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Starcoder2Config.
_DEFAULTS = {
  "vocab_size": 49152,
  "hidden_size": 3072,
  "intermediate_size": 12288,
  "num_hidden_layers": 30,
  "num_attention_heads": 24,
  "num_key_value_heads": 2,
  "max_position_embeddings": 4096,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = decoder_fields(read, eps="norm_epsilon", eps_default=1e-5, tied=True)
  bias = read.get("use_bias", bool, True)
  return (
    fields
    | {
      "norm": "layer",
      "activation": read.activation("hidden_act", default="gelu_pytorch_tanh"),
      "gated_mlp": False,
      "qkv_bias": bias,
      "out_bias": bias,
      "mlp_bias": bias,
    }
    | window_fields(read, fields["n_layers"], lambda i: True)
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`: every layer has the window, or it is `null`."""
  return decoder_values(cfg, eps="norm_epsilon") | {
    "use_bias": cfg.mlp_bias,
    "sliding_window": cfg.window if any(cfg.local_layers) else None,
  }


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; no key tells the window."""
  return layer_norm_gguf(read) | {"gated_mlp": False, "activation": "gelu_tanh"}


register(
  Family(
    name="starcoder2",
    transformers_class="Starcoder2ForCausalLM",
    tokenizer="GPT2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=functools.partial(
      decoder_tensors, mlp={"up": "c_fc", "down": "c_proj"}
    ),
    gguf=Gguf(
      architecture="starcoder2", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
