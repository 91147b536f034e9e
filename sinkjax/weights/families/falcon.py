"""Falcon: one key head for all and one norm for both branches (7B).

The newer architecture (40B, 180B) has groups of heads and a norm for each
branch; Falcon-RW has ALiBi, biases and branches one after the other. Falcon 3
has Llama's name and code. Slopes of ALiBi are exact here, and rounded to
bfloat16 by transformers.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import head_dim
from sinkjax.weights.families._family import Family, Fields, Gguf, register
from sinkjax.weights.families._gguf import (
  Metadata,
  gguf_tensors_fused,
  layer_norm_gguf,
)
from sinkjax.weights.families._reader import ACTIVATION_NAMES, Reader
from sinkjax.weights.families._rope import rope_fields, rope_values
from sinkjax.weights.families._tensors import (
  fused_groups,
  linear,
  norms,
  renamed,
  tables,
)
from sinkjax.weights.layout import Leaf
from sinkjax.weights.validate import WeightsError

# Of transformers' FalconConfig.
_DEFAULTS = {
  "vocab_size": 65024,
  "hidden_size": 4544,
  "num_hidden_layers": 32,
  "num_attention_heads": 71,
  "max_position_embeddings": 2048,
}
# All queries, then all keys, then all values.
_ORDER = "jploski"


def _kv_heads(read: Reader, heads: int, new: bool) -> int:
  """The key heads; the older architecture has one, or as many as queries."""
  if new:
    return read.get("num_kv_heads", int, heads)
  return 1 if read.get("multi_query", bool, True) else heads


def _norms(read: Reader, new: bool) -> dict[str, Any]:
  """Whether branches are parallel, and whether they then share a norm."""
  parallel = read.get("parallel_attn", bool, True)
  each = read.get("num_ln_in_parallel_attn", int, 2 if new else 1)
  if each not in (1, 2) or (each == 2 and not new) or (new and not parallel):
    raise WeightsError(
      f"{read.where}: num_ln_in_parallel_attn={each} with parallel_attn="
      f"{parallel} and new_decoder_architecture={new} is not supported"
    )
  return {"parallel_residual": parallel, "shared_norm": parallel and each == 1}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  width = read.need("hidden_size", int)
  heads = read.need("num_attention_heads", int)
  each = head_dim(read, width, heads)
  new = read.get("new_decoder_architecture", bool, False)
  bias = read.get("bias", bool, False)
  places = rope_fields(read, each)
  if read.get("alibi", bool, False):
    places = {"positions": "alibi", "alibi_scale": each**-0.5}
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("num_hidden_layers", int),
    "n_heads": heads,
    "n_kv_heads": _kv_heads(read, heads, new),
    "head_dim": each,
    "d_ff": read.get("ffn_hidden_size", int, 4 * width),
    "max_len": read.need("max_position_embeddings", int),
    "norm": "layer",
    "norm_eps": read.get("layer_norm_epsilon", float, 1e-5),
    "qkv_bias": bias,
    "out_bias": bias,
    "gated_mlp": False,
    "mlp_bias": bias,
    "activation": read.activation("activation", default="gelu"),
    "tie_embeddings": read.get("tie_word_embeddings", bool, True),
    **_norms(read, new),
    **places,
  }


def _is_new(cfg: ModelConfig) -> bool:
  """Whether only the newer architecture can express it."""
  two_norms = cfg.parallel_residual and not cfg.shared_norm
  return two_norms or cfg.n_kv_heads not in (1, cfg.n_heads)


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  new = _is_new(cfg)
  return {
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "num_hidden_layers": cfg.n_layers,
    "num_attention_heads": cfg.n_heads,
    "num_kv_heads": cfg.n_kv_heads,
    "ffn_hidden_size": cfg.d_ff,
    "max_position_embeddings": cfg.max_len,
    "layer_norm_epsilon": cfg.norm_eps,
    "activation": ACTIVATION_NAMES[cfg.activation],
    "bias": cfg.out_bias,
    "alibi": cfg.positions == "alibi",
    "new_decoder_architecture": new,
    "multi_query": cfg.n_kv_heads == 1,
    "parallel_attn": cfg.parallel_residual,
    "num_ln_in_parallel_attn": 1 if cfg.shared_norm or not new else 2,
    **rope_values(cfg),
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "transformer.h.{i}."
  names = {
    "blocks/attn_norm": at + "input_layernorm",
    "blocks/mlp_norm": at + "post_attention_layernorm",
    "final_norm": "transformer.ln_f",
  }
  if cfg.shared_norm:
    del names["blocks/mlp_norm"]
  elif cfg.parallel_residual:
    names["blocks/attn_norm"] = at + "ln_attn"
    names["blocks/mlp_norm"] = at + "ln_mlp"
  qkv = at + "self_attention.query_key_value"
  each = cfg.head_dim
  rows = {"q": cfg.group_size * each, "k": each, "v": each}
  return [
    *norms(names, bias=True),
    *fused_groups(rows, qkv, cfg.qkv_bias, cfg.n_kv_heads),
    *linear("attn/o", at + "self_attention.dense", cfg.out_bias),
    *linear("mlp/up", at + "mlp.dense_h_to_4h", cfg.mlp_bias),
    *linear("mlp/down", at + "mlp.dense_4h_to_h", cfg.mlp_bias),
    *tables(cfg, "transformer.word_embeddings", "lm_head"),
  ]


def tensors_gguf(cfg: ModelConfig) -> list[Leaf]:
  """See `Gguf`; with two norms, the MLP's has the name of the one there is."""
  found = gguf_tensors_fused(cfg)
  if cfg.shared_norm:
    return found
  return renamed(
    found, {".attn_norm.": ".attn_norm_2.", ".ffn_norm.": ".attn_norm."}
  )


def read_gguf(read: Metadata, fields: Fields) -> Fields:
  """See `Gguf`; its parallel branches are llama.cpp's only form of it.

  llama.cpp approximates GELU by a tanh, and these models were trained with the
  exact one, which is computed here.
  """
  if fields["qkv_bias"] or fields["out_bias"] or fields["mlp_bias"]:
    raise WeightsError(
      f"{read.where}: Falcon with biases, as Falcon-RW with ALiBi has them, is "
      "not supported in GGUF files"
    )
  # The order of queries, keys and values, where a key says it.
  order = read.get("tensor_data_layout", str, _ORDER)
  if order != _ORDER:
    raise WeightsError(
      f"{read.where}: falcon.tensor_data_layout={order!r:.40} is not "
      f"supported, only {_ORDER!r}"
    )
  shared = not read.has("attn_norm_2.weight")
  # llama.cpp's converter does not write the base, and takes 10,000 for it.
  several = fields["n_kv_heads"] > 1
  if shared and several and read.get("rope.freq_base", float) is None:
    raise WeightsError(
      f"{read.where}: Falcon with several key heads and one norm, as Falcon 2 "
      "is, needs falcon.rope.freq_base, which is missing"
    )
  return layer_norm_gguf(read) | {
    "gated_mlp": False,
    "activation": "gelu",
    "parallel_residual": True,
    "shared_norm": shared,
  }


register(
  Family(
    name="falcon",
    transformers_class="FalconForCausalLM",
    not_read=(
      "Falcon-RW, with ALiBi, from GGUF files; two norms in the older "
      "architecture"
    ),
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    aliases={"n_embed": "hidden_size"},
    optional_prefix="transformer.",
    tensors=tensors,
    gguf=Gguf(
      architecture="falcon", tensors=tensors_gguf, read_config=read_gguf
    ),
  )
)
