"""Blocks of scores for `sinkjax.models.online`, and who sees what of them.

Rows of a block are the queries of R tokens, those of a key head's group G side
by side; its columns are C keys.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sinkjax.metrics.precision import wide

BLOCK = 256
"""Rows and keys of a block at most.

Smaller ones make products too small for a CPU's full rate; of larger ones the
scores leave its cache between the product and the exponential.
"""


class Form(NamedTuple):
  """What makes weights of scores, and how blocks are cut. Static.

  Attributes:
    rows: rows and keys of a block.
    group: G, query heads of a key head.
    scores: elementwise, before the softmax (a soft cap), or `None`.
    weights: elementwise, in place of a softmax, or `None` for a softmax.
    scale: of the products.
    window: keys that a row sees, itself included; `None` for all, or where the
      window is an array.
  """

  rows: int
  group: int
  scores: Callable[[Array], Array] | None
  weights: Callable[[Array], Array] | None
  scale: float
  window: int | None


class Inputs(NamedTuple):
  """What a call has beside its queries, keys and values.

  Attributes:
    sinks: [1 or B, N, 1 or T, G] logits that take weight and have no value.
    mask: [1 or B, 1, T, S] True where key s may be seen from t.
    valid: [B, S] False at padding, which sees and is seen by itself alone.
    window: [] as `Form.window`, where it depends on a traced layer.
  """

  sinks: Array | None
  mask: Array | None
  valid: Array | None
  window: Array | None


def arranged(
  tokens: Sequence[Array],
  *,
  sinks: Array | None = None,
  window: int | Int[Array, ""] | None = None,
  mask: Array | None = None,
  valid: Array | None = None,
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> tuple[Form, Inputs, tuple[Array, ...]]:
  """What `sinkjax.models.online` is given, in whole blocks.

  Args:
    tokens: queries [B, T, H, K], keys [B, T, N, K], and more like these two.
    sinks: as there, and so the rest.
    window: see `Form` and `Inputs`.
    mask: see `Inputs`.
    valid: see `Inputs`.
    scale: see `Form`.
    scores: see `Form`.
    weights: see `Form`.

  Returns:
    the form, the inputs, and the tokens as [B, N, T' G, K] and [B, N, T', K],
    T' the length in whole blocks.
  """
  length, heads = tokens[0].shape[1:3]
  kv_heads = tokens[1].shape[2]
  group = heads // kv_heads
  count = max(1, math.ceil(length / BLOCK))
  rows = math.ceil(length / count)  # blocks of equal size: little is padding
  more = count * rows - length
  tokens = tuple(_rows_of(x, kv_heads, more) for x in tokens)
  if sinks is not None:
    sinks = sinks.reshape(-1, kv_heads, group, sinks.shape[2])
    sinks = wide(jnp.moveaxis(sinks, 2, 3))
    sinks = _padded(sinks, 2, more if sinks.shape[2] > 1 else 0)
  if mask is not None:
    mask = _padded(_padded(mask, 2, more, True), 3, more, True)
  if valid is not None:
    valid = _padded(valid, 1, more)
  static = window if isinstance(window, int) else None
  form = Form(rows, group, scores, weights, scale, static)
  inputs = Inputs(sinks, mask, valid, None if static else window)
  return form, inputs, tokens


def _rows_of(x: Array, kv_heads: int, more: int) -> Array:
  """[B, T, N G, K] -> [B, N, T' G, K]: a token's queries side by side."""
  batch, _, heads, width = x.shape
  x = _padded(x, 1, more)
  x = x.reshape(batch, -1, kv_heads, heads // kv_heads, width)
  return jnp.moveaxis(x, 2, 1).reshape(batch, kv_heads, -1, width)


def _padded(x: Array, axis: int, more: int, value: bool = False) -> Array:
  """`x` with more entries at an axis's end."""
  if not more:
    return x
  widths = [(0, more if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths, constant_values=value)


def whole(x: Array) -> Array:
  """`x`, which is in memory as a whole before anything reads it.

  XLA would compute a softmax again for every reader. And what jaxlib 0.10's CPU
  backend makes of products that it joins with what comes before and after them
  reads memory that it has not got, which gives wrong numbers or ends the
  process.
  """
  return jax.lax.optimization_barrier(x)


def scores_of(form: Form, q: Array, k: Array) -> Array:
  """[B, N, R G, K] and [B, N, C, K] -> [B, N, R G, C], in float32 at least."""
  dtype = wide(q).dtype
  s = jnp.einsum("bnrk,bnck->bnrc", q, k, preferred_element_type=dtype)
  # Queries in half precision would be rounded again by a scale of their own.
  s = whole(s) * form.scale
  return s if form.scores is None else form.scores(s)


def mixed(p: Array, v: Array) -> Array:
  """[B, N, R G, C] and [B, N, C, W] -> [B, N, R G, W], in float32 at least."""
  return whole(
    jnp.einsum(
      "bnrc,bncw->bnrw", p.astype(v.dtype), v, preferred_element_type=p.dtype
    )
  )


def block_of(x: Array, j: Array, rows: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, j * rows, rows, 2)


def blocks_of(x: Array, rows: int) -> Array:
  """[B, N, C, K] -> [C / rows, B, N, rows, K]: what a scan walks over."""
  batch, heads, _, width = x.shape
  return jnp.moveaxis(x.reshape(batch, heads, -1, rows, width), 2, 0)


def where_seen(seen: Array, x: Array, other: float, group: int) -> Array:
  """`x` [B, N, R G, C] where seen [1 or B, 1, R, 1, C], else `other`."""
  shape = x.shape
  x = x.reshape(*shape[:2], -1, group, shape[-1])
  return jnp.where(seen, x, jnp.asarray(other, x.dtype)).reshape(shape)


def seen_of(
  form: Form, inputs: Inputs, start: Array | int, rows: int, j: Array
) -> Bool[Array, "#B 1 R 1 C"]:
  """Which keys of block j rows may see, from row `start` on."""
  t = start + jnp.arange(rows)[:, None]
  s = j * form.rows + jnp.arange(form.rows)[None]
  seen = s <= t
  window = form.window if inputs.window is None else inputs.window
  if window is not None:
    seen &= t - s < window
  seen = seen[None, None, :, None]
  if inputs.valid is not None:
    real = jax.lax.dynamic_slice_in_dim(
      inputs.valid, j * form.rows, form.rows, 1
    )
    # Padding sees itself: a row with no key at all would be NaN.
    seen = (seen & real[:, None, None, None]) | (s == t)[None, None, :, None]
  if inputs.mask is not None:
    mask = jax.lax.dynamic_slice_in_dim(inputs.mask, start, rows, 2)
    mask = jax.lax.dynamic_slice_in_dim(mask, j * form.rows, form.rows, 3)
    seen &= mask[:, :, :, None]
  return seen


def sinks_of(
  inputs: Inputs, start: Array | int, rows: int, shape: tuple[int, ...]
) -> Array | None:
  """[B, N, rows G] logits of the sinks of rows from `start` on."""
  sinks = inputs.sinks
  if sinks is None:
    return None
  if sinks.shape[2] > 1:
    sinks = jax.lax.dynamic_slice_in_dim(sinks, start, rows, 2)
  batch, heads, _ = shape
  sinks = jnp.broadcast_to(sinks, (batch, heads, rows, sinks.shape[-1]))
  return sinks.reshape(shape)
