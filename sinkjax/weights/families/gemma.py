"""Gemma 1: norms multiply by 1 + w, embeddings by the root of the width."""

import math
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import decoder_fields, decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' GemmaConfig.
_DEFAULTS = {
  "vocab_size": 256000,
  "hidden_size": 3072,
  "intermediate_size": 24576,
  "num_hidden_layers": 28,
  "num_attention_heads": 16,
  "max_position_embeddings": 8192,
  "num_key_value_heads": 16,
  "head_dim": 256,
}


def read_config(read: Reader, rope_base: float = 1e4) -> dict[str, Any]:
  """See `Family`; `rope_base` is a later version's default."""
  fields = decoder_fields(read, tied=True, rope_base=rope_base)
  bias = read.get("attention_bias", bool, False)
  return fields | {
    "activation": _activation(read),
    "qkv_bias": bias,
    "out_bias": bias,
    "norm_offset": 1.0,
    "embed_scale": math.sqrt(fields["d_model"]),
  }


def _activation(read: Reader) -> str:
  """The first releases said "gelu" and meant its tanh form."""
  name = read.activation(
    "hidden_activation", "hidden_act", default="gelu_pytorch_tanh"
  )
  return "gelu_tanh" if name == "gelu" else name


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = decoder_values(cfg)
  return values | {"hidden_activation": values["hidden_act"]}


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; the files store no activation: it is always the same."""
  return {
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "embed_scale": math.sqrt(fields["d_model"]),
  }


register(
  Family(
    name="gemma",
    transformers_class="GemmaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="gemma", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
