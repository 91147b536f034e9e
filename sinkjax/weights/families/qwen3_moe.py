"""Qwen 3 with experts, with norms on each head's queries and keys."""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama, mistral, qwen2_moe
from sinkjax.weights.families._config import (
  expert_fields,
  expert_values,
  window_fields,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Qwen3MoeConfig.
_DEFAULTS = {
  "vocab_size": 151936,
  "hidden_size": 2048,
  "intermediate_size": 6144,
  "num_hidden_layers": 24,
  "num_attention_heads": 32,
  "max_position_embeddings": 32768,
  "num_key_value_heads": 4,
  "sliding_window": 4096,
  "moe_intermediate_size": 768,
  "num_experts": 128,
  "num_experts_per_tok": 8,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`; a window that is used is one of every layer."""
  fields = llama.read_config(read) | expert_fields(read)
  if read.get("use_sliding_window", bool, False):
    fields |= window_fields(read, fields["n_layers"], lambda i: True)
  return fields | {
    "qk_norm": True,
    "d_ff": read.need("moe_intermediate_size", int),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return (
    mistral.write_config(cfg)
    | expert_values(cfg)
    | {"moe_intermediate_size": cfg.d_ff}
  )


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return qwen2_moe.read_gguf(read, fields, norm_topk=True) | {"qk_norm": True}


register(
  Family(
    name="qwen3_moe",
    transformers_class="Qwen3MoeForCausalLM",
    not_read=(
      "layers without experts among others (decoder_sparse_step, "
      "mlp_only_layers)"
    ),
    tokenizer="Qwen2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"num_local_experts": "num_experts"},
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="qwen3moe", tensors=gguf_tensors, read_config=read_gguf
    ),
  )
)
