"""Hugging Face's `config.json` to `ModelConfig`; `hf_export.py` goes back.

One function a family; the newer `rope_parameters` and the older `rope_theta`
with `rope_scaling` are both read.
"""

import math
from typing import Any

from sinkjax.config import MAX_LAYERS, ModelConfig, RopeScaling
from sinkjax.weights.validate import WeightsError

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "relu": "relu",
}
FAMILIES = (
  "gpt2",
  "llama",
  "mistral",
  "qwen2",
  "qwen3",
  "gemma",
  "gemma2",
  "gemma3_text",
  "gpt_neox",
)

# Switches that change the function and that we do not implement: the value
# that they must have, where they are there at all.
_FIXED = {
  "scale_attn_weights": True,
  "scale_attn_by_inverse_layer_idx": False,
  "add_cross_attention": False,
  "is_encoder_decoder": False,
  "use_bidirectional_attention": False,
}


class _Reader:
  """Typed access to a JSON object, with errors that name the key."""

  def __init__(self, values: dict[str, Any], where: str):
    self.values, self.where = values, where

  def get(self, key: str, kind, default: Any = None) -> Any:
    value = self.values.get(key)
    if value is None:
      if default is _REQUIRED:
        raise WeightsError(f"{self.where}: {key!r} is missing")
      return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if not isinstance(value, kind) or (
      isinstance(value, bool) and kind is not bool
    ):
      raise WeightsError(
        f"{self.where}: {key!r} must be {kind.__name__}, got {value!r}"
      )
    if kind is int and "layer" in key and value > MAX_LAYERS:
      raise WeightsError(
        f"{self.where}: {key!r} must be at most {MAX_LAYERS}, got {value}"
      )
    return value

  def need(self, key: str, kind) -> Any:
    return self.get(key, kind, _REQUIRED)

  def activation(self, *keys: str, default: str) -> str:
    name = next((self.values[k] for k in keys if self.values.get(k)), default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
      raise WeightsError(
        f"{self.where}: unknown activation {name!r}; known: "
        f"{sorted(_ACTIVATIONS)}"
      )
    return _ACTIVATIONS[name]

  def token(self, key: str) -> int | None:
    value = self.values.get(key)
    if isinstance(value, list) and value:
      value = value[0]
    if value is not None and (
      not isinstance(value, int) or isinstance(value, bool)
    ):
      raise WeightsError(f"{self.where}: {key!r} must be a token id")
    return value


_REQUIRED = object()


def config_from_hf(values: Any, where: str) -> ModelConfig:
  """The config that a `config.json` describes.

  Args:
    values: the parsed JSON object.
    where: the file, for messages.

  Raises:
    WeightsError: for an unknown `model_type`, RoPE scaling or switch, or a
      value of the wrong type or size.
  """
  if not isinstance(values, dict):
    raise WeightsError(f"{where}: expected a JSON object")
  if isinstance(values.get("text_config"), dict):  # multimodal Gemma 3
    values = {**values["text_config"]}
  read = _Reader(values, where)
  family = values.get("model_type")
  family = "gemma3_text" if family == "gemma3" else family
  if family not in FAMILIES:
    raise WeightsError(
      f"{where}: unknown model_type {values.get('model_type')!r}; known: "
      f"{list(FAMILIES)}"
    )
  for key, value in _FIXED.items():
    if values.get(key) not in (None, value):
      raise WeightsError(f"{where}: {key}={values[key]!r} is not supported")
  fields = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
  }.get(family, _llama)(read, family)
  fields |= {
    "model_type": family,
    "bos_id": read.token("bos_token_id"),
    "eos_id": read.token("eos_token_id"),
  }
  try:
    return ModelConfig(**fields)
  except ValueError as error:
    raise WeightsError(f"{where}: {error}") from None


def _gpt2(read: _Reader, family: str) -> dict[str, Any]:
  width, heads = read.need("n_embd", int), read.need("n_head", int)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("n_layer", int),
    "n_heads": heads,
    "n_kv_heads": heads,
    "head_dim": _divide(read, width, heads),
    "d_ff": read.get("n_inner", int, 4 * width),
    "max_len": read.need("n_positions", int),
    "norm": "layer",
    "norm_eps": read.get("layer_norm_epsilon", float, 1e-5),
    "qkv_bias": True,
    "out_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "activation": read.activation("activation_function", default="gelu_new"),
    "positions": "learned",
    "tie_embeddings": read.get("tie_word_embeddings", bool, True),
  }


def _base(read: _Reader, eps: str, eps_default: float, tied: bool):
  width = read.need("hidden_size", int)
  heads = read.need("num_attention_heads", int)
  head_dim = read.get("head_dim", int)
  if head_dim is None:
    head_dim = _divide(read, width, heads)
  return {
    "vocab_size": read.need("vocab_size", int),
    "d_model": width,
    "n_layers": read.need("num_hidden_layers", int),
    "n_heads": heads,
    "n_kv_heads": read.get("num_key_value_heads", int, heads),
    "head_dim": head_dim,
    "d_ff": read.need("intermediate_size", int),
    "max_len": read.need("max_position_embeddings", int),
    "norm_eps": read.get(eps, float, eps_default),
    "tie_embeddings": read.get("tie_word_embeddings", bool, tied),
  }


def _llama(read: _Reader, family: str) -> dict[str, Any]:
  fields = _base(read, "rms_norm_eps", 1e-6, tied=False)
  fields |= _rope(read)
  bias = read.get("attention_bias", bool, False)
  fields |= {
    "activation": read.activation("hidden_act", default="silu"),
    "qkv_bias": bias or family == "qwen2",
    "out_bias": bias and family != "qwen2",
    "mlp_bias": read.get("mlp_bias", bool, False),
    "qk_norm": family == "qwen3",
  }
  uses = family == "mistral" or read.get("use_sliding_window", bool, False)
  if family in ("mistral", "qwen2", "qwen3") and uses:
    first = 0
    if family != "mistral":
      first = read.get("max_window_layers", int, 28)
    fields |= _window(read, fields["n_layers"], lambda i: i >= first)
  return fields


def _gpt_neox(read: _Reader, family: str) -> dict[str, Any]:
  fields = _base(read, "layer_norm_eps", 1e-5, tied=False)
  bias = read.get("attention_bias", bool, True)
  return fields | {
    "norm": "layer",
    "activation": read.activation("hidden_act", default="gelu"),
    "gated_mlp": False,
    "qkv_bias": bias,
    "out_bias": bias,
    "mlp_bias": True,
    "parallel_residual": read.get("use_parallel_residual", bool, True),
    **_rope(read, share=0.25),
  }


def _gemma(read: _Reader, family: str) -> dict[str, Any]:
  fields = _base(read, "rms_norm_eps", 1e-6, tied=True)
  if read.get("attention_bias", bool, False):
    fields |= {"qkv_bias": True, "out_bias": True}
  return fields | {
    "activation": read.activation(
      "hidden_activation", "hidden_act", default="gelu_pytorch_tanh"
    ),
    "norm_offset": 1.0,
    "embed_scale": math.sqrt(fields["d_model"]),
    **_rope(read, base=1e6 if family == "gemma3_text" else 1e4),
  }


def _gemma2(read: _Reader, family: str) -> dict[str, Any]:
  fields = _gemma(read, family)
  pattern = 2 if family == "gemma2" else 6
  pattern = read.get("sliding_window_pattern", int, pattern)
  scalar = read.get("query_pre_attn_scalar", float, 256.0)
  if not scalar > 0:
    raise WeightsError(
      f"{read.where}: query_pre_attn_scalar must be positive, got {scalar}"
    )
  return (
    fields
    | {
      "post_norms": True,
      "attn_scale": scalar**-0.5,
      "attn_softcap": read.get("attn_logit_softcapping", float),
      "logit_softcap": read.get("final_logit_softcapping", float),
    }
    | _window(read, fields["n_layers"], lambda i: (i + 1) % pattern != 0)
  )


def _gemma3(read: _Reader, family: str) -> dict[str, Any]:
  local = read.get("rope_local_base_freq", float, 10000.0)
  nested = read.get("rope_parameters", dict)
  if nested and "sliding_attention" in nested:
    sliding = _Reader(nested["sliding_attention"], read.where)
    if sliding.get("rope_type", str, "default") != "default":
      raise WeightsError(f"{read.where}: scaled RoPE in local layers")
    local = sliding.get("rope_theta", float, local)
  fields = _gemma2(read, family)
  return fields | {"qk_norm": True, "rope_local_base": local}


def _window(read: _Reader, n_layers: int, is_local) -> dict[str, Any]:
  window = read.get("sliding_window", int)
  types = read.get("layer_types", list)
  if types is not None:
    valid = ("sliding_attention", "full_attention")
    if len(types) != n_layers or any(kind not in valid for kind in types):
      raise WeightsError(
        f"{read.where}: layer_types must be {n_layers} of {valid}"
      )
    local = tuple(kind == "sliding_attention" for kind in types)
  else:
    local = tuple(window is not None and is_local(i) for i in range(n_layers))
  return {"window": window, "local_layers": local if any(local) else ()}


def _divide(read: _Reader, width: int, heads: int) -> int:
  if heads <= 0 or width % heads:
    raise WeightsError(
      f"{read.where}: width {width} is no multiple of {heads} heads"
    )
  return width // heads


def _first(key_sources: list[tuple[_Reader, str]], default: float) -> float:
  for source, key in key_sources:
    value = source.get(key, float)
    if value is not None:
      return value
  return default


def _rope(read: _Reader, base: float = 1e4, share: float = 1.0):
  """The rotary fields; `base` and `share` are the family's defaults."""
  rope = read.get("rope_parameters", dict) or {}
  rope = rope.get("full_attention", rope)
  old = read.get("rope_scaling", dict) or {}
  sub = _Reader({**old, **rope}, f"{read.where} (RoPE)")
  base = _first(
    [(sub, "rope_theta"), (read, "rope_theta"), (read, "rotary_emb_base")], base
  )
  key = "partial_rotary_factor"
  share = _first([(sub, key), (read, key), (read, "rotary_pct")], share)
  head_dim = _base(read, "norm_eps", 1e-6, False)["head_dim"]
  return {
    "rope_base": base,
    "rope_scaling": _scaling(sub),
    "rope_dim": None if share == 1.0 else int(head_dim * share),
  }


def _scaling(read: _Reader) -> RopeScaling | None:
  kind = read.values.get("rope_type", read.values.get("type", "default"))
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
  raise WeightsError(
    f"{read.where}: unknown RoPE scaling {kind!r}; known: linear, llama3"
  )
