"""GPT-NeoX and Pythia: attention and MLP read the same residual stream.

A quarter of each head is rotated; queries, keys and values share a tensor, head
by head.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import decoder_fields, decoder_values
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

# Of transformers' GPTNeoXConfig.
_DEFAULTS = {
  "vocab_size": 50432,
  "hidden_size": 6144,
  "intermediate_size": 24576,
  "num_hidden_layers": 44,
  "num_attention_heads": 64,
  "max_position_embeddings": 2048,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  fields = decoder_fields(
    read, eps="layer_norm_eps", eps_default=1e-5, rope_share=0.25
  )
  bias = read.get("attention_bias", bool, True)
  return fields | {
    "norm": "layer",
    "activation": read.activation("hidden_act", default="gelu"),
    "gated_mlp": False,
    "qkv_bias": bias,
    "out_bias": bias,
    "mlp_bias": True,
    "parallel_residual": read.get("use_parallel_residual", bool, True),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  values = decoder_values(cfg, eps="layer_norm_eps") | {
    "attention_bias": cfg.qkv_bias,
    "rotary_emb_base": cfg.rope_base,
    "rotary_pct": cfg.rotary_dim / cfg.head_dim,
    "use_parallel_residual": cfg.parallel_residual,
  }
  del values["rope_theta"]  # it has its own key for it
  return values


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "gpt_neox.layers.{i}."
  names = {
    "blocks/attn_norm": at + "input_layernorm",
    "blocks/mlp_norm": at + "post_attention_layernorm",
    "final_norm": "gpt_neox.final_layer_norm",
  }
  qkv = at + "attention.query_key_value"
  return [
    *norms(names, bias=True),
    *fused_qkv(qkv, cfg.qkv_bias, FusedHeads),
    *linear("attn/o", at + "attention.dense", cfg.out_bias),
    *linear("mlp/up", at + "mlp.dense_h_to_4h", True),
    *linear("mlp/down", at + "mlp.dense_4h_to_h", True),
    *tables(cfg, "gpt_neox.embed_in", "embed_out"),
  ]


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`.

  llama.cpp approximates GELU by a tanh, and these models were trained with the
  exact one, which is computed here.
  """
  return layer_norm_gguf(read) | {
    "gated_mlp": False,
    "activation": "gelu",
    "parallel_residual": read.need("use_parallel_residual", bool),
  }


register(
  Family(
    name="gpt_neox",
    transformers_class="GPTNeoXForCausalLM",
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    optional_prefix="gpt_neox.",
    tensors=tensors,
    gguf=Gguf(
      architecture="gptneox", tensors=gguf_tensors_fused, read_config=read_gguf
    ),
  )
)
