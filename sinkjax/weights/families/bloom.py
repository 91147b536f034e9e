"""BLOOM: ALiBi, a norm behind the embedding, biases in every map."""

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
from sinkjax.weights.fused_layouts import FusedHeads
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' BloomConfig; the length, which no key of it says, is that of
# the published models' files.
_DEFAULTS = {
  "vocab_size": 250880,
  "hidden_size": 64,
  "n_layer": 2,
  "n_head": 8,
  "seq_length": 2048,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  if read.get("apply_residual_connection_post_layernorm", bool, False):
    raise WeightsError(
      f"{read.where}: apply_residual_connection_post_layernorm=true is not "
      "supported"
    )
  width, heads = read.need("hidden_size", int), read.need("n_head", int)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("n_layer", int),
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": head_dim(read, width, heads),
    "d_ff": 4 * width,
    "max_len": read.need("seq_length", int),
    "norm": "layer",
    "norm_eps": read.get("layer_norm_epsilon", float, 1e-5),
    "qkv_bias": True,
    "out_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "activation": "gelu_tanh",
    "positions": "alibi",
    "embed_norm": True,
    "tie_embeddings": read.get("tie_word_embeddings", bool, True),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return {
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "n_layer": cfg.n_layers,
    "n_head": cfg.n_heads,
    "seq_length": cfg.max_len,
    "layer_norm_epsilon": cfg.norm_eps,
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "transformer.h.{i}."
  names = {
    "embed_norm": "transformer.word_embeddings_layernorm",
    "blocks/attn_norm": at + "input_layernorm",
    "blocks/mlp_norm": at + "post_attention_layernorm",
    "final_norm": "transformer.ln_f",
  }
  qkv = at + "self_attention.query_key_value"
  return [
    *norms(names, bias=True),
    *fused_qkv(qkv, True, FusedHeads),
    *linear("attn/o", at + "self_attention.dense", True),
    *linear("mlp/up", at + "mlp.dense_h_to_4h", True),
    *linear("mlp/down", at + "mlp.dense_4h_to_h", True),
    *tables(cfg, "transformer.word_embeddings", "lm_head"),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`."""
  return layer_norm_gguf(read) | {
    "gated_mlp": False,
    "activation": "gelu_tanh",
    "positions": "alibi",
    "embed_norm": True,
  }


register(
  Family(
    name="bloom",
    transformers_class="BloomForCausalLM",
    not_read="apply_residual_connection_post_layernorm",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={
      "n_embed": "hidden_size",
      "num_attention_heads": "n_head",
      "num_hidden_layers": "n_layer",
    },
    optional_prefix="transformer.",
    tensors=tensors,
    gguf=Gguf(
      architecture="bloom", tensors=gguf_tensors_fused, read_config=read_gguf
    ),
  )
)
