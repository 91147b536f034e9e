"""Qwen 1.5 and 2 with experts, and one beside them that every token uses."""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import (
  decoder_values,
  expert_fields,
  expert_values,
  window_fields,
  window_values,
)
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, expert_gguf, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import decoder_tensors

# Of transformers' Qwen2MoeConfig.
_DEFAULTS = {
  "vocab_size": 151936,
  "hidden_size": 2048,
  "intermediate_size": 5632,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "max_position_embeddings": 32768,
  "num_key_value_heads": 16,
  "sliding_window": 4096,
  "moe_intermediate_size": 1408,
  "shared_expert_intermediate_size": 5632,
  "num_experts": 60,
  "num_experts_per_tok": 4,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`; a window that is used is one of every other layer."""
  fields = llama.read_config(read) | expert_fields(read)
  layers = fields["n_layers"]
  if read.get("use_sliding_window", bool, False):
    # 28 is the default of transformers' own config class.
    first = read.get("max_window_layers", int, 28)
    fields |= window_fields(read, layers, lambda i: i % 2 == 0 and i < first)
  return fields | {
    "qkv_bias": read.get("qkv_bias", bool, True),
    "out_bias": False,
    "d_ff": read.need("moe_intermediate_size", int),
    "shared_d_ff": read.need("shared_expert_intermediate_size", int),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return (
    decoder_values(cfg)
    | window_values(cfg)
    | expert_values(cfg)
    | {
      "qkv_bias": cfg.qkv_bias,
      "moe_intermediate_size": cfg.d_ff,
      "shared_expert_intermediate_size": cfg.shared_d_ff,
    }
  )


def read_gguf(
  read: Metadata, fields: Fields, norm_topk: bool = False
) -> Fields:
  """See `Gguf`; the defaults are llama.cpp's."""
  found = expert_gguf(read, norm_topk)
  each = fields["d_ff"] // max(found["experts_per_token"], 1)
  return found | {
    "d_ff": read.get("expert_feed_forward_length", int, 0) or each
  }


def read_gguf_shared(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  shared = read.get("expert_shared_feed_forward_length", int, 0)
  return read_gguf(read, fields) | {"shared_d_ff": shared or fields["d_ff"]}


register(
  Family(
    name="qwen2_moe",
    transformers_class="Qwen2MoeForCausalLM",
    not_read=(
      "layers without experts among others (decoder_sparse_step, "
      "mlp_only_layers)"
    ),
    tokenizer="Qwen2Tokenizer",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=decoder_tensors,
    gguf=Gguf(
      architecture="qwen2moe",
      tensors=gguf_tensors,
      read_config=read_gguf_shared,
    ),
  )
)
