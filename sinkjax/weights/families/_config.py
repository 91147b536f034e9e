"""Hugging Face's `config.json`: what families share in reading and writing it.

Read are the newer `rope_parameters` and the older `rope_theta` with
`rope_scaling`; written is the older form, which every version of transformers
understands.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sinkjax import finite
from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.field_checks import MAX_LAYERS
from sinkjax.weights.validate import WeightsError

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "gelu_python": "gelu",
  "gelu_python_tanh": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu2",
  "xielu": "xielu",
}
ACTIVATION_NAMES = {
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_pytorch_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu2",
  "xielu": "xielu",
}
"""Our activations as transformers calls them."""
_LAYER_TYPES = {"sliding_attention": True, "full_attention": False}
_REQUIRED = object()


class Reader:
  """Typed access to a JSON object, with errors that name the key.

  Args:
    values: the object.
    where: the file, for messages.
  """

  def __init__(self, values: dict[str, Any], where: str):
    self.values, self.where = values, where
    self._last = ""

  def refused(self, error: Exception) -> WeightsError:
    """What arithmetic on a value says, with the key that was read last."""
    value = str(self.values.get(self._last))[:40]
    return WeightsError(f"{self.where}: {self._last}={value}: {error}")

  def get(self, key: str, kind: type, default: Any = None) -> Any:
    """A value of a kind; `null` and no such key are the default.

    Raises:
      WeightsError: for a value of another kind, or more layers than a model
        can have.
    """
    self._last, value = key, self.values.get(key)
    if value is None:
      if default is _REQUIRED:
        raise WeightsError(f"{self.where}: {key!r} is missing")
      return default
    # JSON often has a float without its point, as 10000.
    value = typed(value, kind, f"{self.where}: {key!r}")
    # Every so many layers; the remainder is taken before the config is made.
    if kind is int and key.endswith("pattern") and value < 1:
      raise WeightsError(
        f"{self.where}: {key!r} must be at least 1, got {value}"
      )
    # Lists of one entry a layer are made before the config is validated.
    if kind is int and "layer" in key and value > MAX_LAYERS:
      raise WeightsError(
        f"{self.where}: {key!r} must be at most {MAX_LAYERS}, got {value}"
      )
    return value

  def need(self, key: str, kind: type) -> Any:
    """As `get`, of a key that must be there."""
    return self.get(key, kind, _REQUIRED)

  def activation(self, *keys: str, default: str) -> str:
    """Our name of the activation that the first of some keys names."""
    name = next((self.values[k] for k in keys if self.values.get(k)), default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
      raise WeightsError(
        f"{self.where}: unknown activation {name!r}; known: "
        f"{sorted(_ACTIVATIONS)}"
      )
    return _ACTIVATIONS[name]

  def token(self, key: str) -> int | None:
    """A token id, the first one of a list."""
    value = self.values.get(key)
    if isinstance(value, list) and value:
      value = value[0]
    if value is not None and (
      not isinstance(value, int) or isinstance(value, bool)
    ):
      raise WeightsError(f"{self.where}: {key!r} must be a token id")
    return value


def typed(value: Any, kind: type, what: str) -> Any:
  """A value of a kind; a whole number will do for a float.

  Args:
    value: as the file has it.
    kind: the type that it must have.
    what: the file and the key, for the message.

  Raises:
    WeightsError: for a value of another kind, or a number beyond float32.
  """
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    # `float` fails beyond its own range, which is larger.
    value = float(value) if abs(value) <= finite.LARGEST else math.inf
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise WeightsError(f"{what} must be {kind.__name__}, got {value!r:.40}")
  if kind is float and not abs(value) <= finite.LARGEST:
    raise WeightsError(
      f"{what} must be a finite number of float32, got {value!r:.40}"
    )
  return value


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


def rope_fields(
  read: Reader,
  head_dim: int,
  base: float = 1e4,
  share: float = 1.0,
  names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
  """Those of RoPE and, where it is stretched with the text, `max_len`.

  Arguments are as those of `decoder_fields`.
  """
  rope = read.get("rope_parameters", dict, {})
  # Gemma 3 has a RoPE for each kind of layer; that of local ones is its own.
  if "full_attention" in rope:
    rope = Reader(rope, read.where).need("full_attention", dict)
  old = read.get("rope_scaling", dict, {})
  sub = Reader({**old, **rope}, f"{read.where} (RoPE)")
  base = _first(
    [(sub, "rope_theta"), (read, "rope_theta"), (read, "rotary_emb_base")], base
  )
  key = "partial_rotary_factor"
  share = _first([(sub, key), (read, key), (read, "rotary_pct")], share)
  scaling = _scaling(sub, read, names)
  fields = {
    "rope_base": base,
    "rope_scaling": scaling,
    "rope_dim": None if share == 1.0 else int(head_dim * share),
  }
  if scaling is not None and scaling.kind == "dynamic":
    # What the key says is what was trained on.
    fields["max_len"] = int(scaling.factor * scaling.original_max_len)
  return fields


def _first(places: list[tuple[Reader, str]], default: float) -> float:
  for read, key in places:
    value = read.get(key, float)
    if value is not None:
      return value
  return default


def _scaling(
  read: Reader, model: Reader, names: Mapping[str, str]
) -> RopeScaling | None:
  kind = read.values.get("rope_type", read.values.get("type", "default"))
  kind = names.get(kind, kind) if isinstance(kind, str) else kind
  if kind in (None, "default"):
    return None
  if kind == "linear":
    return RopeScaling("linear", factor=read.need("factor", float))
  if kind == "llama3":
    try:
      return RopeScaling(
        "llama3",
        factor=read.need("factor", float),
        low_freq=read.need("low_freq_factor", float),
        high_freq=read.need("high_freq_factor", float),
        original_max_len=read.need("original_max_position_embeddings", int),
      )
    except ValueError as error:
      raise WeightsError(f"{read.where}: {error}") from None
  if kind == "dynamic":
    return _dynamic(read, model)
  if kind == "longrope":
    return _longrope(read, model)
  if kind == "yarn":
    return _yarn(read, model)
  raise WeightsError(
    f"{read.where}: unknown RoPE scaling {kind!r:.40}; known: linear, dynamic, "
    "llama3, yarn, longrope"
  )


def _dynamic(read: Reader, model: Reader) -> RopeScaling:
  try:
    return RopeScaling(
      "dynamic",
      factor=read.need("factor", float),
      original_max_len=model.need("max_position_embeddings", int),
    )
  except ValueError as error:
    raise WeightsError(f"{read.where}: {error}") from None


def _longrope(read: Reader, model: Reader) -> RopeScaling:
  """LongRoPE as transformers reads it; the model's own key counts first."""
  longest = model.need("max_position_embeddings", int)
  key = "original_max_position_embeddings"
  original = model.get(key, int) or read.get(key, int) or longest
  if original < 2:
    raise WeightsError(f"{read.where}: {key} must be at least 2")
  factor = read.get("factor", float)
  if factor is None:
    factor = longest / original
  larger = read.get("attention_factor", float)
  if larger is None:
    more = math.log(factor) / math.log(original) if factor > 1 else 0.0
    larger = math.sqrt(1 + more)
  try:
    return RopeScaling(
      "longrope",
      factor=factor,
      original_max_len=original,
      attention=larger,
      factors=_numbers(read, "long_factor"),
      short_factors=_numbers(read, "short_factor"),
    )
  except ValueError as error:
    raise WeightsError(f"{read.where}: {error}") from None


def _numbers(read: Reader, key: str) -> tuple[float, ...]:
  values = read.need(key, list)
  return tuple(typed(x, float, f"{read.where}: {key!r}") for x in values)


def _yarn(read: Reader, model: Reader) -> RopeScaling:
  """YaRN as transformers reads it, where `null` and 0 are defaults as well."""
  longest = model.need("max_position_embeddings", int)
  key = "original_max_position_embeddings"
  original = read.get(key, int) or model.get(key, int) or longest
  if original < 1:
    raise WeightsError(f"{read.where}: {key} must be positive, got {original}")
  if "factor" not in read.values:
    read.need("factor", float)
  factor = read.get("factor", float) or longest / original
  grown = read.get("attention_factor", float)
  if grown is None:
    scales = [read.get(name, float) for name in ("mscale", "mscale_all_dim")]
    grown = _mscale(factor)
    if all(scales):
      grown = _mscale(factor, scales[0]) / _mscale(factor, scales[1])
  try:
    return RopeScaling(
      "yarn",
      factor=factor,
      original_max_len=original,
      beta_fast=read.get("beta_fast", float) or 32.0,
      beta_slow=read.get("beta_slow", float) or 1.0,
      truncate=read.get("truncate", bool, True),
      attention=grown,
    )
  except ValueError as error:
    raise WeightsError(f"{read.where}: {error}") from None


def _mscale(factor: float, scale: float = 1.0) -> float:
  return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


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


def rope_values(cfg: ModelConfig) -> dict[str, Any]:
  """The keys that `rope_fields` reads, but for the rotated share."""
  scaling = cfg.rope_scaling
  values = {
    "rope_theta": cfg.rope_base,
    "rope_scaling": _scaling_values(scaling),
  }
  if scaling is not None and scaling.kind == "dynamic":
    values["max_position_embeddings"] = scaling.original_max_len
  return values


def _scaling_values(scaling: RopeScaling | None) -> dict[str, Any] | None:
  if scaling is None:
    return None
  if scaling.kind == "linear":
    return {"rope_type": "linear", "factor": scaling.factor}
  if scaling.kind == "dynamic":
    return {"rope_type": "dynamic", "factor": scaling.factor}
  if scaling.kind == "longrope":
    return {
      "rope_type": "longrope",
      "factor": scaling.factor,
      "short_factor": list(scaling.short_factors),
      "long_factor": list(scaling.factors),
      "attention_factor": scaling.attention,
      "original_max_position_embeddings": scaling.original_max_len,
    }
  if scaling.kind == "llama3":
    return {
      "rope_type": "llama3",
      "factor": scaling.factor,
      "low_freq_factor": scaling.low_freq,
      "high_freq_factor": scaling.high_freq,
      "original_max_position_embeddings": scaling.original_max_len,
    }
  if scaling.kind == "yarn":
    return {
      "rope_type": "yarn",
      "factor": scaling.factor,
      "beta_fast": scaling.beta_fast,
      "beta_slow": scaling.beta_slow,
      "truncate": scaling.truncate,
      "attention_factor": scaling.attention,
      "original_max_position_embeddings": scaling.original_max_len,
    }
  raise ValueError(
    "RoPE frequency factors (from a GGUF file) have no Hugging Face form"
  )


def window_values(cfg: ModelConfig) -> dict[str, Any]:
  """The keys that `window_fields` reads."""
  local = cfg.local_layers or (False,) * cfg.n_layers
  names = {is_local: name for name, is_local in _LAYER_TYPES.items()}
  return {
    "sliding_window": cfg.window,
    "use_sliding_window": any(local),
    "layer_types": [names[is_local] for is_local in local],
  }
