"""What the policies of `kv_policy` share: rotation and checks."""

from typing import Any

from jaxtyping import Array

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context, place_context, rotated
from sinkjax.rope_scaling import BY_LENGTH


def place_at(cfg: ModelConfig, positions: Array) -> Context:
  """A context of nothing but where tokens stand, positions [B, T]."""
  # No cache is longer than what was trained on, see `within_trained`, and the
  # positions of padding say nothing.
  return place_context(cfg, positions, length=1)


def rotate_at(cfg: ModelConfig, layer: int, x: Array, ctx: Context) -> Array:
  """Queries or keys [B, T, N, K] at the positions of `ctx`."""
  return rotated(cfg, ctx, layer, x)


def is_local(cfg: ModelConfig, layer: int) -> bool:
  """Whether the model's window applies to a layer."""
  return bool(cfg.local_layers) and cfg.local_layers[layer]


def check_size(name: str, value: Any, least: int) -> None:
  """Raises ValueError for anything but an integer from `least` on."""
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise ValueError(
      f"{name} must be an integer from {least} on, got {value!r}"
    )


def most_kept(cfg: ModelConfig) -> int:
  """How many tokens a cache can keep without leaving what was trained on."""
  scaling = cfg.rope_scaling
  if scaling is None or scaling.kind not in BY_LENGTH:
    return cfg.max_len
  return min(cfg.max_len, scaling.original_max_len)


def within_trained(cfg: ModelConfig, capacity: int) -> None:
  """Raises ValueError where a full cache would change the frequencies."""
  scaling = cfg.rope_scaling
  if scaling is None or scaling.kind not in BY_LENGTH:
    return
  if capacity > scaling.original_max_len:
    raise ValueError(
      f"RoPE scaling {scaling.kind!r} turns all positions at other rates in "
      f"texts of more than {scaling.original_max_len} tokens, also those that "
      f"are kept already: a cache can have at most that many, got {capacity}"
    )


def no_routed(cfg: ModelConfig, kind: str) -> None:
  """Raises ValueError for a model that hides tokens from some layers."""
  if cfg.depth == "routed":
    raise ValueError(
      f"a {kind} cache keeps other tokens in each head, and depth='routed' "
      "hides some of them in every second layer: use the policy full, window "
      "or sinks"
    )


def no_learned(cfg: ModelConfig, kind: str) -> None:
  """Raises ValueError for a model with learned positions."""
  if cfg.positions == "learned":
    raise ValueError(
      f"a {kind} cache gives new positions to what it keeps, and learned ones "
      "cannot be changed: use the full cache"
    )
