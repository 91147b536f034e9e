"""OLMo 1: layer norms without parameters, and clipped queries, keys and values.

Its norms have an epsilon of 1e-5 that no key says.
"""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' OlmoConfig.
_DEFAULTS = {
  "vocab_size": 50304,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  return llama.read_config(read) | {
    "norm": "layer",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "norm_scale": False,
    "mlp_bias": False,
    "qkv_clip": read.get("clip_qkv", float),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | {"clip_qkv": cfg.qkv_clip}


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return layer_norm_gguf(read) | {
    "norm_bias": False,
    "norm_scale": False,
    "qkv_clip": read.get("attention.clamp_kqv", float) or None,
  }


register(
  Family(
    name="olmo",
    transformers_class="OlmoForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="olmo",
      tensors=functools.partial(gguf_tensors, interleaved_rope=True),
      read_config=read_gguf,
    ),
  )
)
