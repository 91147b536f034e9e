"""MPT: ALiBi, no biases anywhere, queries, keys and values may be clipped."""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import head_dim
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors_fused,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import Reader
from sinkjax.weights.families._tensors import fused_qkv, linear, norms, tables
from sinkjax.weights.fused_layouts import FusedThirds
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' MptConfig.
_DEFAULTS = {
  "vocab_size": 50368,
  "d_model": 2048,
  "n_heads": 16,
  "n_layers": 24,
  "max_seq_len": 2048,
}
# What the published models have, and the class of transformers assumes.
_FIXED = {"expansion_ratio": 4, "no_bias": True, "logit_scale": None}
_FIXED_IN_ATTENTION = {
  "alibi": True,
  "alibi_bias_max": 8,
  "attn_type": "multihead_attention",
  "prefix_lm": False,
  "qk_ln": False,
}


def _refuse_others(read: Reader, fixed: dict[str, Any]) -> None:
  for key, wanted in fixed.items():
    if read.values.get(key, wanted) not in (None, wanted):
      raise WeightsError(
        f"{read.where}: {key}={read.values[key]!r:.40} is not supported"
      )


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  attention = read.get("attn_config", dict, {})
  attention = Reader(attention, f"{read.where} (attn_config)")
  _refuse_others(read, _FIXED)
  _refuse_others(attention, _FIXED_IN_ATTENTION)
  width, heads = read.need("d_model", int), read.need("n_heads", int)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("n_layers", int),
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": head_dim(read, width, heads),
    "d_ff": 4 * width,
    "max_len": read.need("max_seq_len", int),
    "norm": "layer",
    "norm_eps": read.get("layer_norm_epsilon", float, 1e-5),
    "norm_bias": False,
    "gated_mlp": False,
    "activation": "gelu",
    "positions": "alibi",
    "attn_scale": attention.get("softmax_scale", float),
    "qkv_clip": attention.get("clip_qkv", float) or None,
    "tie_embeddings": read.get("tie_word_embeddings", bool, True),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return {
    "vocab_size": cfg.vocab_size,
    "d_model": cfg.d_model,
    "n_layers": cfg.n_layers,
    "n_heads": cfg.n_heads,
    "max_seq_len": cfg.max_len,
    "layer_norm_epsilon": cfg.norm_eps,
    "attn_config": {"clip_qkv": cfg.qkv_clip, "softmax_scale": cfg.attn_scale},
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "transformer.blocks.{i}."
  names = {
    "blocks/attn_norm": at + "norm_1",
    "blocks/mlp_norm": at + "norm_2",
    "final_norm": "transformer.norm_f",
  }
  return [
    *norms(names, bias=False),
    *fused_qkv(at + "attn.Wqkv", False, FusedThirds),
    *linear("attn/o", at + "attn.out_proj", False),
    *linear("mlp/up", at + "ffn.up_proj", False),
    *linear("mlp/down", at + "ffn.down_proj", False),
    *tables(cfg, "transformer.wte", "lm_head"),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; no key tells another scale of the scores.

  llama.cpp approximates GELU by a tanh, and these models were trained with the
  exact one, which is computed here.
  """
  most = read.get("attention.max_alibi_bias", float, 0.0)
  if most != _FIXED_IN_ATTENTION["alibi_bias_max"]:
    raise WeightsError(
      f"{read.where}: mpt.attention.max_alibi_bias={most} is not supported"
    )
  return layer_norm_gguf(read) | {
    "norm_bias": False,
    "gated_mlp": False,
    "activation": "gelu",
    "positions": "alibi",
    "qkv_clip": read.get("attention.clamp_kqv", float) or None,
  }


register(
  Family(
    name="mpt",
    transformers_class="MptForCausalLM",
    not_read=(
      "models without ALiBi, with biases, multi-query attention, norms of "
      "queries and keys, a prefix that is not causal, or scaled logits"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={
      "hidden_size": "d_model",
      "num_attention_heads": "n_heads",
      "num_hidden_layers": "n_layers",
    },
    optional_prefix="transformer.",
    tensors=tensors,
    gguf=Gguf(
      architecture="mpt", tensors=gguf_tensors_fused, read_config=read_gguf
    ),
  )
)
