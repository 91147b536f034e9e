"""OLMoE: experts, and norms on all queries and on all keys of a token together.

Queries, keys and values may be clipped.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  expert_fields,
  expert_values,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, expert_gguf, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' OlmoeConfig.
_DEFAULTS = {
  "vocab_size": 50304,
  "hidden_size": 2048,
  "intermediate_size": 2048,
  "num_hidden_layers": 16,
  "num_attention_heads": 16,
  "max_position_embeddings": 4096,
  "num_experts": 64,
  "num_experts_per_tok": 8,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read, eps_default=1e-5)
  return (
    fields
    | expert_fields(read)
    | {
      "qk_norm": True,
      "qk_norm_over": "all",
      "qkv_clip": read.get("clip_qkv", float),
    }
  )


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | expert_values(cfg) | {"clip_qkv": cfg.qkv_clip}


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return expert_gguf(read, norm_topk=False) | {
    "qk_norm": True,
    "qk_norm_over": "all",
  }


register(
  Family(
    name="olmoe",
    transformers_class="OlmoeForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"num_local_experts": "num_experts"},
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="olmoe", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
