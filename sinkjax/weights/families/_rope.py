"""RoPE in Hugging Face's `config.json`, read and written.

Read are the newer `rope_parameters` and the older `rope_theta` with
`rope_scaling`; written is the older form, which every version of transformers
understands.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sinkjax.config import ModelConfig, RopeScaling
from sinkjax.weights.families._reader import Reader, typed
from sinkjax.weights.validate import WeightsError


def rotated_layers(rotated: Sequence[bool]) -> tuple[bool, ...]:
  """`ModelConfig.rope_layers`, which is empty where every layer rotates."""
  return () if all(rotated) else tuple(rotated)


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
    grown = mscale(factor)
    if all(scales):
      grown = mscale(factor, scales[0]) / mscale(factor, scales[1])
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


def mscale(factor: float, scale: float = 1.0) -> float:
  """By how much YaRN lengthens queries and keys, times `scale`."""
  return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


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
