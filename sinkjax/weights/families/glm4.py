"""GLM 4 of 2025: norms before and behind each branch, half of a head rotated.

Gate and up share a tensor, and rotary pairs lie side by side.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families import llama
from sinkjax.weights.families._config import decoder_values
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import Metadata, gguf_tensors
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import (
  fused_gate_up,
  linear,
  norms,
  partly_interleaved,
  tables,
)
from sinkjax.weights.layout import Leaf

# Of transformers' Glm4Config.
_DEFAULTS = {
  "vocab_size": 151552,
  "hidden_size": 4096,
  "intermediate_size": 13696,
  "num_hidden_layers": 40,
  "num_attention_heads": 32,
  "num_key_value_heads": 2,
  "head_dim": 128,
  "max_position_embeddings": 131072,
  "attention_bias": True,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = llama.read_config(read, eps_default=1.5625e-7, rope_share=0.5)
  return fields | {"out_bias": False, "mlp_bias": False, "post_norms": True}


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return decoder_values(cfg) | {
    "attention_bias": cfg.qkv_bias,
    "partial_rotary_factor": cfg.rotary_dim / cfg.head_dim,
    # The class's own may lie outside the vocabulary.
    "pad_token_id": None,
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "model.layers.{i}."
  names = {
    "blocks/attn_norm": at + "input_layernorm",
    "blocks/attn_post_norm": at + "post_self_attn_layernorm",
    "blocks/mlp_norm": at + "post_attention_layernorm",
    "blocks/mlp_post_norm": at + "post_mlp_layernorm",
    "final_norm": "model.norm",
  }
  found = norms(names, bias=False)
  for part in "qkv":
    name = f"{at}self_attn.{part}_proj"
    found += linear(f"attn/{part}", name, cfg.qkv_bias)
  return [
    *partly_interleaved(found, cfg),
    *linear("attn/o", at + "self_attn.o_proj", False),
    *fused_gate_up(cfg, at + "mlp.gate_up_proj"),
    *linear("mlp/down", at + "mlp.down_proj", False),
    *tables(cfg, "model.embed_tokens", "lm_head"),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return {"post_norms": True}


def tensors_gguf(cfg: ModelConfig) -> list[Leaf]:
  """See `Gguf`; llama.cpp rotates pairs as they lie."""
  maps = ("blocks/mlp/gate/", "blocks/mlp/up/")
  found = [x for x in gguf_tensors(cfg) if not x.path.startswith(maps)]
  return [
    *partly_interleaved(found, cfg),
    *fused_gate_up(cfg, "blk.{i}.ffn_up"),
  ]


register(
  Family(
    name="glm4",
    transformers_class="Glm4ForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=tensors,
    gguf=Gguf(architecture="glm4", tensors=tensors_gguf, read_config=read_gguf),
  )
)
