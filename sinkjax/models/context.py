"""What all layers of a forward pass share: rotary tables, masks, positions."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.positions import (
  distances,
  placed_only,
  rope_row,
  rotary_tables,
  rotate,
)
from sinkjax.taps import Layer


class Context(NamedTuple):
  """What every layer of one forward pass shares.

  Attributes:
    cos: [C, B, T, R] rotary cosines, or `None` without RoPE.
    sin: likewise.
    mask: [B or 1, 1, T, S] True where key s may be seen from t.
    local_mask: the same for local layers, or `None`.
    valid: [B, S] False at padding, or `None` for none.
    positions: [B, T] of the tokens where scores depend on distances (ALiBi),
      or `None`.
  """

  cos: Array | None
  sin: Array | None
  mask: Bool[Array, "B 1 T S"]
  local_mask: Bool[Array, "B 1 T S"] | None
  valid: Bool[Array, "B S"] | None = None
  positions: Int[Array, "B T"] | None = None

  def distance(self) -> Int[Array, "B 1 T S"] | None:
    """Between all tokens, where scores depend on it."""
    if self.positions is None:
      return None
    return distances(self.positions, self.positions)


def place_context(
  cfg: ModelConfig, positions: Int[Array, "B T"], length: int | None = None
) -> Context:
  """A context of where tokens stand, without masks.

  `length` is that of `rotary_tables`.
  """
  cos = sin = None
  if cfg.positions == "rope":
    cos, sin = rotary_tables(cfg, positions, length)
  places = positions if cfg.positions == "alibi" else None
  return Context(cos, sin, None, None, positions=places)


def causal_mask(
  length: int, valid: Bool[Array, "B S"] | None, window: int | None = None
) -> Bool[Array, "B 1 T S"]:
  """True where s <= t, s is no padding and t - s < window; the diagonal always.

  Args:
    length: T.
    valid: False at padding, or `None` for no padding.
    window: how many positions back a token sees, itself included.

  Returns:
    [B or 1, 1, T, S].
  """
  t, s = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
  mask = s <= t
  if window is not None:
    mask &= t - s < window
  mask = mask[None, None]
  if valid is not None:
    # Padding sees itself: a row with no key at all would be NaN.
    mask = (mask & valid[:, None, None, :]) | (s == t)[None, None]
  return mask


def make_context(
  cfg: ModelConfig,
  positions: Int[Array, "B T"],
  valid: Bool[Array, "B T"] | None,
) -> Context:
  """Rotary tables and masks for one forward pass."""
  length = positions.shape[1]
  local = None
  if any(cfg.local_layers):
    local = causal_mask(length, valid, cfg.window)
  return place_context(cfg, positions)._replace(
    mask=causal_mask(length, valid), local_mask=local, valid=valid
  )


def mask_of(cfg: ModelConfig, ctx: Context, layer: Layer) -> Array:
  """[B or 1, 1, T, S] this layer's mask: local or global."""
  if not any(cfg.local_layers):
    return ctx.mask
  # `layer` is traced under scan, so both masks exist and one is chosen.
  local = jnp.asarray(cfg.local_layers)[layer]
  return jnp.where(local, ctx.local_mask, ctx.mask)


def rotary_of(
  cfg: ModelConfig, ctx: Context, layer: Layer
) -> tuple[Array | None, Array | None]:
  """This layer's cosines and sines, [B, T, R] each, or `None` twice."""
  if ctx.cos is None:
    return None, None
  row = 0
  if ctx.cos.shape[0] > 1:
    row = jnp.asarray(rope_row(cfg))[layer]
  cos, sin = ctx.cos[row], ctx.sin[row]
  if cfg.rope_layers:
    # `layer` is traced under scan; by an angle of 0 nothing is rotated.
    rotated = jnp.asarray(cfg.rope_layers)[layer]
    cos, sin = jnp.where(rotated, cos, 1.0), jnp.where(rotated, sin, 0.0)
  return cos, sin


def rotated(
  cfg: ModelConfig, ctx: Context, layer: Layer, x: Float[Array, "B T N K"]
) -> Float[Array, "B T N K"]:
  """Queries or keys of all heads, rotated where the model does so."""
  cos, sin = rotary_of(cfg, ctx, layer)
  return x if cos is None else placed_only(cfg, x, rotate(x, cos, sin), 2)
