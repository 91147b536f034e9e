"""What families share in reading and writing a `config.json`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.weights.families._reader import ACTIVATION_NAMES, Reader
from sinkjax.weights.families._rope import rope_fields, rope_values
from sinkjax.weights.validate import WeightsError

_LAYER_TYPES = {"sliding_attention": True, "full_attention": False}


def head_dim(read: Reader, width: int, heads: int) -> int:
  """The width of a head that is not given: the model's over its heads."""
  if heads <= 0 or width % heads:
    raise WeightsError(
      f"{read.where}: width {width} is no multiple of {heads} heads"
    )
  return width // heads


def decoder_fields(
  read: Reader,
  *,
  eps: str = "rms_norm_eps",
  eps_default: float = 1e-6,
  tied: bool = False,
  rope_base: float = 1e4,
  rope_share: float = 1.0,
  rope_names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
  """Sizes, norms and RoPE, by the keys that most families have in common.

  Args:
    read: the config.
    eps: the key of the norms' epsilon.
    eps_default: the family's, where the key is not there.
    tied: whether its embedding is tied by default.
    rope_base: its base by default.
    rope_share: the share of each head that is rotated by default.
    rope_names: what the family calls a kind of scaling, and what that is.
  """
  width = read.need("hidden_size", int)
  heads = read.need("num_attention_heads", int)
  each = read.get("head_dim", int)
  if each is None:
    each = head_dim(read, width, heads)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("num_hidden_layers", int),
    "n_heads": heads,
    "n_kv_heads": read.get("num_key_value_heads", int, heads),
    "head_dim": each,
    "d_ff": read.need("intermediate_size", int),
    "max_len": read.need("max_position_embeddings", int),
    "norm_eps": read.get(eps, float, eps_default),
    "tie_embeddings": read.get("tie_word_embeddings", bool, tied),
    **rope_fields(read, each, rope_base, rope_share, rope_names),
  }


def window_fields(
  read: Reader, n_layers: int, is_local: Callable[[int], bool]
) -> dict[str, Any]:
  """The window and the layers that it applies to.

  Args:
    read: the config.
    n_layers: its layers.
    is_local: the family's rule where `layer_types` is not there.
  """
  window = read.get("sliding_window", int)
  types = read.get("layer_types", list)
  if types is not None:
    valid = tuple(_LAYER_TYPES)
    if len(types) != n_layers or any(kind not in valid for kind in types):
      raise WeightsError(
        f"{read.where}: layer_types must be {n_layers} of {valid}"
      )
    local = tuple(_LAYER_TYPES[kind] for kind in types)
  else:
    local = tuple(window is not None and is_local(i) for i in range(n_layers))
  return {"window": window, "local_layers": local if any(local) else ()}


def expert_fields(read: Reader, count: str = "num_experts") -> dict[str, Any]:
  """The experts of every layer; `count` is the key of their number.

  Raises:
    WeightsError: for none, or where some layers have one MLP: all layers of a
      model have the same parameters here.
  """
  experts = read.need(count, int)
  step = read.get("decoder_sparse_step", int, 1)
  if experts < 1 or step != 1 or read.get("mlp_only_layers", list):
    raise WeightsError(
      f"{read.where}: layers without experts are not supported in a model with "
      "experts (num_experts=0, decoder_sparse_step or mlp_only_layers)"
    )
  return {
    "n_experts": experts,
    "experts_per_token": read.need("num_experts_per_tok", int),
    "norm_topk": read.get("norm_topk_prob", bool, False),
    "mlp_bias": False,
  }


def expert_values(
  cfg: ModelConfig, count: str = "num_experts"
) -> dict[str, Any]:
  """The keys that `expert_fields` reads."""
  return {
    count: cfg.n_experts,
    "num_experts_per_tok": cfg.experts_per_token,
    "norm_topk_prob": cfg.norm_topk,
  }


def decoder_values(
  cfg: ModelConfig, *, eps: str = "rms_norm_eps"
) -> dict[str, Any]:
  """The keys that `decoder_fields` reads, and activation and biases."""
  return {
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.d_model,
    "num_hidden_layers": cfg.n_layers,
    "num_attention_heads": cfg.n_heads,
    "num_key_value_heads": cfg.n_kv_heads,
    "head_dim": cfg.head_dim,
    "intermediate_size": cfg.d_ff,
    "max_position_embeddings": cfg.max_len,
    eps: cfg.norm_eps,
    "hidden_act": ACTIVATION_NAMES[cfg.activation],
    "attention_bias": cfg.out_bias,
    **rope_values(cfg),
  }


def window_values(cfg: ModelConfig) -> dict[str, Any]:
  """The keys that `window_fields` reads."""
  local = cfg.local_layers or (False,) * cfg.n_layers
  names = {is_local: name for name, is_local in _LAYER_TYPES.items()}
  return {
    "sliding_window": cfg.window,
    "use_sliding_window": any(local),
    "layer_types": [names[is_local] for is_local in local],
  }
