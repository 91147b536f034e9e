"""OPT: learned positions behind two rows that nothing reads, ReLU.

The 350M model norms the residual stream behind its branches, and its embedding
is narrower than its layers: see `weights.projected`.
"""

from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._config import head_dim
from sinkjax.weights.families._family import Family, register
from sinkjax.weights.families._reader import ACTIVATION_NAMES, Reader
from sinkjax.weights.families._tensors import linear, norms
from sinkjax.weights.layout import Below, Layout, Leaf, Linear
from sinkjax.weights.projected import Projected
from sinkjax.weights.validate import WeightsError

OFFSET = 2
"""Rows of the table of positions in front of position 0."""

# Of transformers' OPTConfig.
_DEFAULTS = {
  "vocab_size": 50272,
  "hidden_size": 768,
  "ffn_dim": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "max_position_embeddings": 2048,
}


def read_config(read: Reader) -> dict[str, Any]:
  """See `Family`."""
  width = read.need("hidden_size", int)
  heads = read.need("num_attention_heads", int)
  norm_before = read.get("do_layer_norm_before", bool, True)
  for key, wanted in (
    ("_remove_final_layer_norm", False),
    ("layer_norm_elementwise_affine", True),
  ):
    if read.get(key, bool, wanted) is not wanted:
      raise WeightsError(
        f"{read.where}: {key}={str(not wanted).lower()} is not supported"
      )
  # With its projections multiplied in, it is no longer the unembedding.
  narrow = read.get("word_embed_proj_dim", int, width) != width
  bias = read.get("enable_bias", bool, True)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("num_hidden_layers", int),
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": head_dim(read, width, heads),
    "d_ff": read.need("ffn_dim", int),
    "max_len": read.need("max_position_embeddings", int),
    "norm": "layer",
    "norm_eps": 1e-5,  # of torch's LayerNorm; no key says it
    "pre_norms": norm_before,
    "stream_norms": not norm_before,
    "qkv_bias": bias,
    "out_bias": bias,
    "gated_mlp": False,
    "mlp_bias": bias,
    "activation": read.activation("activation_function", default="relu"),
    "positions": "learned",
    "tie_embeddings": (
      read.get("tie_word_embeddings", bool, True) and not narrow
    ),
  }


def write_config(cfg: ModelConfig) -> dict[str, Any]:
  """See `Family`."""
  return {
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "word_embed_proj_dim": cfg.d_model,
    "ffn_dim": cfg.d_ff,
    "num_hidden_layers": cfg.n_layers,
    "num_attention_heads": cfg.n_heads,
    "max_position_embeddings": cfg.max_len,
    "activation_function": ACTIVATION_NAMES[cfg.activation],
    "enable_bias": cfg.out_bias,
    "do_layer_norm_before": cfg.pre_norms,
  }


def tensors(cfg: ModelConfig) -> list[Leaf]:
  """See `Family`."""
  at = "model.decoder.layers.{i}."
  names = {
    "blocks/attn_norm": at + "self_attn_layer_norm",
    "blocks/mlp_norm": at + "final_layer_norm",
    "final_norm": "model.decoder.final_layer_norm",
  }
  if cfg.stream_norms:
    del names["final_norm"]
  found = norms(names, bias=True)
  for part, name in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
    bias = cfg.out_bias if part == "o" else cfg.qkv_bias
    found += linear(f"attn/{part}", f"{at}self_attn.{name}_proj", bias)
  found += linear("mlp/up", at + "fc1", cfg.mlp_bias)
  found += linear("mlp/down", at + "fc2", cfg.mlp_bias)
  table = "model.decoder.embed_positions.weight"
  found += [
    Leaf("embed", "model.decoder.embed_tokens.weight", Layout()),
    Leaf("positions", table, Below(OFFSET)),
  ]
  if not cfg.tie_embeddings:
    found.append(Leaf("unembed", "lm_head.weight", Linear()))
  return found


register(
  Family(
    name="opt",
    transformers_class="OPTForCausalLM",
    not_read=(
      "norms without a scale (layer_norm_elementwise_affine of false), and "
      "norms before the branches without one at the end "
      "(_remove_final_layer_norm)"
    ),
    tokenizer="GPT2Tokenizer",
    read_through=Projected,
    read_config=read_config,
    write_config=write_config,
    defaults=_DEFAULTS,
    tensors=tensors,
  )
)
