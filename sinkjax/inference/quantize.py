"""Simulated integer quantisation: round to a grid, continue in floating point.

This measures what rounding does to the model; nothing gets smaller or faster.
`quantize` rounds an array, `Quantize` is the edit that does so inside a model,
and `quantize_kv` makes it one of keys and values alike; weights and the
activations that they multiply are in `quantize_linear`.

With n steps between the lowest and the highest level,

    asymmetric   n = 2^bits - 1,      x' = low + step round((x - low) / step),
                 step = (high - low) / n
    symmetric    n = 2^(bits-1) - 1,  x' = step round(x / step),
                 step = max |x| / n

with low, high and max |x| of the numbers that share a step, see `PER`. So
|x - x'| <= step / 2 up to float error. Low and step stay floating point, as
in KIVI (2402.02750). Ranges are those of the array itself ("dynamic"), or
given ("static"): then numbers beyond them are clipped to the last level.

Sharp edges:
  Kept tokens (KVQuant 2401.18079; the pivot tokens of IntactKV, 2403.01241)
  are not rounded, and do not count in the range of the others either.
  Site "k" is after rotation: channels are those of rotated keys. KVQuant
  rounds keys before it, where outliers stay in their channel; for that there
  is `BeforeRotation`.
  The edit rounds the whole text at once: a token's own key and value are
  rounded when it attends to itself. Per channel and per tensor the range
  includes later tokens, so a step depends on the future; that of a group of
  one token does not.
  Rounding has derivative zero. Only low and step carry a derivative; through
  a "channel" or "tensor" edit it also runs backwards in the text, which an
  exact Jacobian of later source tokens alone refuses.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context, rotary_of
from sinkjax.models.positions import rotary_tables, rotate
from sinkjax.taps import Layer, placed
from sinkjax.transforms.edit_indices import (
  OfLayers,
  check_leading,
  chosen,
  place_index,
)

PER = ("token", "channel", "tensor")
"""Which numbers of [B, T, ..., C] share a step: the C of one token (and
head); the T of one channel (and head); all of one text."""


def quantize(
  x: Float[Array, "B T *H C"],
  bits: Any,
  *,
  per: str,
  symmetric: bool = False,
  group: int | None = None,
  keep: Array | None = None,
  limits: tuple[Any, Any] | None = None,
) -> Float[Array, "B T *H C"]:
  """`x` rounded to a grid of 2^bits levels, the module's formula.

  Args:
    x: at least three axes; the last are channels.
    bits: of a level, 2 or more if symmetric; may be traced.
    per: one of `PER`.
    symmetric: whether 0 is a level and the grid the same on both sides of it.
    group: so many channels of a token, or tokens of a channel, share a step;
      `None` for all of them. What is left over at the end is a smaller group.
    keep: [T] bool, True at tokens that stay as they are; `None` for none.
    limits: (low, high) of a static range, per tensor only.

  Returns:
    The same shape and type; rounding is done in float32 at least.

  Raises:
    ValueError: for an unknown `per`, a group that is not a positive integer or
      is given per tensor, limits with another `per`, or too few bits or axes.

  >>> x = jnp.array([[[0.0, 0.9, 3.0], [5.0, 5.0, 5.0]]])
  >>> quantize(x, 2, per="token").tolist()
  [[[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]]]
  """
  _check(x, bits, per, symmetric, group, limits)
  # A step of half precision would round a second time.
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  counts = jnp.ones(x.shape[1], bool) if keep is None else ~jnp.asarray(keep)
  counts = jnp.broadcast_to(counts.reshape(1, -1, *[1] * (x.ndim - 2)), x.shape)
  if limits is None:
    limits = _range(wide, counts, per, group)
  low, step, most = _grid(*limits, bits, symmetric, wide.dtype)
  level = jnp.clip(jnp.round((wide - low) / step), -most * symmetric, most)
  rounded = level * step + low
  return jnp.where(counts, rounded.astype(x.dtype), x)


def _check(
  x: Array,
  bits: Any,
  per: str,
  symmetric: bool,
  group: int | None,
  limits: tuple[Any, Any] | None,
) -> None:
  if per not in PER:
    raise ValueError(f"per must be one of {list(PER)}, got {per!r}")
  if x.ndim < 3:
    raise ValueError(f"x must be [B, T, ..., C], got shape {x.shape}")
  if group is not None and (
    per == "tensor" or not isinstance(group, int) or group < 1
  ):
    raise ValueError(
      "group must be a positive integer or None, and None per tensor, "
      f"got {group!r} per {per}"
    )
  if limits is not None and per != "tensor":
    raise ValueError(f"limits are of a whole tensor, got per {per!r}")
  least = 2 if symmetric else 1
  if isinstance(bits, (int, float)) and not least <= bits <= 16:
    kind = "symmetric" if symmetric else "asymmetric"
    raise ValueError(f"bits must be in [{least}, 16] if {kind}, got {bits}")


def _range(
  x: Array, counts: Array, per: str, group: int | None
) -> tuple[Array, Array]:
  """(least, greatest) of the numbers that share a step; both broadcast to x."""
  low = _reduce(jnp.min, jnp.where(counts, x, jnp.inf), per, group, jnp.inf)
  high = _reduce(jnp.max, jnp.where(counts, x, -jnp.inf), per, group, -jnp.inf)
  some = low <= high  # not where every token that shares the step is kept
  return jnp.where(some, low, 0), jnp.where(some, high, 0)


def _grid(
  low: Any, high: Any, bits: Any, symmetric: bool, dtype: Any
) -> tuple[Array, Array, Array]:
  """(lowest level or 0, step, number of the highest level)."""
  low, high = jnp.asarray(low, dtype), jnp.asarray(high, dtype)
  if symmetric:
    span = jnp.maximum(jnp.abs(low), jnp.abs(high))
    low, most = jnp.zeros_like(low), 2.0 ** (jnp.asarray(bits) - 1) - 1
  else:
    span, most = high - low, 2.0 ** jnp.asarray(bits) - 1
  most = most.astype(dtype)
  step = span / most
  # Equal numbers have a range of 0; any step returns them unchanged.
  return low, jnp.where(step > 0, step, 1), most


def _reduce(
  reduce: Callable, x: Array, per: str, group: int | None, filler: float
) -> Array:
  """`reduce` over the numbers that share a step, to be broadcast to x."""
  if per == "tensor":
    return reduce(x, axis=tuple(range(1, x.ndim)), keepdims=True)
  axis = x.ndim - 1 if per == "token" else 1
  if group is None:
    return reduce(x, axis=axis, keepdims=True)
  many = x.shape[axis]
  pads = [(0, -many % group if i == axis else 0) for i in range(x.ndim)]
  padded = jnp.pad(x, pads, constant_values=filler)
  shape = (*x.shape[:axis], -1, group, *x.shape[axis + 1 :])
  each = reduce(padded.reshape(shape), axis=axis + 1)
  whole = jnp.repeat(each, group, axis=axis)
  return jax.lax.slice_in_dim(whole, 0, many, axis=axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantize(OfLayers):
  """An edit that rounds a site whose axis 1 is tokens: "k", "v", "mlp_in".

  Bits, kept tokens and layers are leaves, so one compiled model serves all of
  them. There is no `rows`, since these sites have no blocks of query rows.

  Attributes:
    bits: of a level.
    keep: position or positions left in full precision; `None`, or a traced
      one that the text does not have (-1), keeps none.
    layers: `None` for all, or which; both as in `transforms.edit_indices`.
    per: one of `PER`.
    symmetric: as `quantize` takes it.
    group: likewise.
    limits: [L, 2] low and high of a static range in each layer, or `None`.
  """

  bits: Any
  keep: Any = None
  layers: Any = None
  per: str = dataclasses.field(default="token", metadata={"static": True})
  symmetric: bool = dataclasses.field(default=False, metadata={"static": True})
  group: int | None = dataclasses.field(default=None, metadata={"static": True})
  limits: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its layers and kept positions checked."""
    if self.limits is not None:
      check_leading("limits", self.limits, cfg.n_layers)
    keep = place_index("position", self.keep, length)
    new = dataclasses.replace(self, keep=keep)
    return OfLayers.placed(new, cfg, length, site)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The rounded value where the layer is chosen."""
    limits = self.limits
    if limits is not None:
      limits = tuple(jnp.asarray(limits)[layer])
    new = quantize(
      value,
      self.bits,
      per=self.per,
      symmetric=self.symmetric,
      group=self.group,
      keep=kept_tokens(self.keep, value.shape[1]),
      limits=limits,
    )
    if self.layers is None:
      return new
    return jnp.where(chosen(self.layers, layer), new, value)


def kept_tokens(keep: Any, length: int) -> Array | None:
  """[T] bool, True at the positions `keep`; `None` stays."""
  return None if keep is None else chosen(keep, jnp.arange(length))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeforeRotation:
  """An edit of keys as they are before rotation, for site "k".

  k' = k + R (edit(R^-1 k) - R^-1 k): what the edit leaves alone stays as it
  is, bit for bit.

  Attributes:
    edit: of [B, S, N, K].
    cos: [C, 1, S, R] of `positions.rotary_tables`.
    sin: likewise.
    cfg: the model.
  """

  edit: Any
  cos: Any
  sin: Any
  cfg: ModelConfig = dataclasses.field(metadata={"static": True})

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with the indices of its edit checked."""
    edit = placed(self.edit, cfg, length, site)
    return dataclasses.replace(self, edit=edit)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The keys, edited as if they had not been rotated."""
    ctx = Context(self.cos, self.sin, None, None)
    cos, sin = rotary_of(self.cfg, ctx, layer)
    shape = (value.shape[0], *cos.shape[1:])
    cos, sin = jnp.broadcast_to(cos, shape), jnp.broadcast_to(sin, shape)
    back = cos, -sin
    scaling = self.cfg.rope_scaling
    if scaling is not None and scaling.attention != 1.0:
      # The tables do more than rotate: what they multiply by is divided out.
      size = cos**2 + sin**2
      back = cos / size, -sin / size
    plain = rotate(value, *back)
    return value + rotate(self.edit(plain, layer) - plain, cos, sin)


def before_rotation(
  cfg: ModelConfig, edit: Any, positions: Int[Array, "T"]
) -> BeforeRotation:
  """`edit` for site "k", acting on keys before rotation.

  Args:
    cfg: the model.
    edit: of unrotated keys, normed where the model does so.
    positions: of the text's tokens.

  Raises:
    ValueError: for a model that rotates no keys.
  """
  if cfg.positions != "rope":
    raise ValueError(
      f"keys are not rotated with positions {cfg.positions!r}: give the edit "
      'itself to site "k"'
    )
  if cfg.control_heads:
    raise ValueError(
      "keys of control_heads are not rotated, and those of other heads are: "
      'give the edit itself to site "k"'
    )
  cos, sin = rotary_tables(cfg, jnp.asarray(positions)[None])
  return BeforeRotation(edit, cos, sin, cfg)


def quantize_kv(
  bits: Any, *, keep: Any = None, layers: Any = None, **kind: Any
) -> dict[str, Quantize]:
  """Edits for `intervene` that round rotated keys and values alike.

  Args:
    bits: of a level.
    keep: see `Quantize`.
    layers: likewise.
    **kind: `per`, `symmetric` and `group` of `Quantize`.

  >>> sorted(quantize_kv(4, keep=0, per="channel"))
  ['k', 'v']
  """
  edit = Quantize(bits, keep, layers, **kind)
  return {"k": edit, "v": edit}
