"""Seed-OSS: Llama whose attention has its output's bias by a key of its own."""

import functools
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._family import Family, Gguf, register
from sinkjax.weights.families._gguf import gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' SeedOssConfig.
_DEFAULTS = {
  "vocab_size": 155136,
  "hidden_size": 4096,
  "intermediate_size": 27648,
  "num_hidden_layers": 64,
  "num_attention_heads": 80,
  "num_key_value_heads": 8,
  "head_dim": 128,
  "max_position_embeddings": 524288,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read)
  return fields | {
    "qkv_bias": read.get("attention_bias", bool, True),
    "out_bias": read.get("attention_out_bias", bool, False),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return llama.write_config(cfg) | {
    "attention_bias": cfg.qkv_bias,
    "attention_out_bias": cfg.out_bias,
  }


register(
  Family(
    name="seed_oss",
    transformers_class="SeedOssForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="seed_oss",
      tensors=functools.partial(gguf_tensors, mlp_norm="post_attention_norm"),
    ),
  )
)
