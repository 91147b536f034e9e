"""Causal attention in blocks of rows, with its backward pass written out.

XLA's CPU backend turns the einsums of attention, and what autodiff makes of a
masked softmax, into slow loops. Here heads come first, so that every product
is a plain batched one; a block of rows meets only the keys that it may see;
and the gradient of the softmax is one pass.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sinkjax.models.normalizers import softmax

ROWS = 64
"""Rows of a block, where there are not more than `BLOCKS` of them.

Fewer rows make products too small for a CPU's full rate.
"""

BLOCKS = 8
"""Blocks at most: each is compiled, and 8 leave 9/16 of the square."""


def row_attention(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  v: Float[Array, "B T N K"],
  scale: float,
  window: int | None = None,
  mask: Bool[Array, "#B 1 T T"] | None = None,
  sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B T H K"]:
  """As `fused.fused_attention`.

      dS = P (dZ V^T - rowsum(dZ Z)),  d sink = -sum (1 - sum P) rowsum(dZ Z)

  Cost: products of about (1 + 1/blocks) / 2 of the whole pattern, which is
  kept for the backward pass.
  """
  return _attend(scale, window)(q, k, v, mask, sinks)


@functools.lru_cache
def _attend(scale: float, window: int | None) -> Callable:
  @jax.custom_vjp
  def attend(
    q: Array, k: Array, v: Array, mask: Array | None, sinks: Array | None
  ) -> Array:
    return _forward(q, k, v, mask, sinks, scale, window)[0]

  def fwd(
    q: Array, k: Array, v: Array, mask: Array | None, sinks: Array | None
  ) -> tuple[Array, tuple]:
    return _forward(q, k, v, mask, sinks, scale, window)

  attend.defvjp(fwd, functools.partial(_backward, scale, window))
  return attend


def _spans(length: int, window: int | None) -> list[tuple[int, int, int]]:
  """(first key, first row, row after the last) of every block."""
  # Blocks of unequal size where BLOCKS does not divide the length.
  count = min(BLOCKS, max(1, length // ROWS))
  edges = [length * i // count for i in range(count + 1)]
  return [
    (0 if window is None else max(0, a - window + 1), a, b)
    for a, b in zip(edges, edges[1:], strict=False)
  ]


def _heads_first(x: Array, heads: int) -> Array:
  """[B, T, H, K] -> [B, N, G, T, K]."""
  batch, length, _, width = x.shape
  x = x.reshape(batch, length, heads, -1, width)
  return jnp.transpose(x, (0, 2, 3, 1, 4))


def _heads_last(x: Array) -> Array:
  """[B, N, G, T, K] -> [B, T, H, K]."""
  batch, heads, group, length, width = x.shape
  x = jnp.transpose(x, (0, 3, 1, 2, 4))
  return x.reshape(batch, length, heads * group, width)


def _rows(x: Array, a: int, b: int) -> Array:
  """[B, N, G, T, K] -> [B N, G (b - a), K]: rows a to b of all heads."""
  return x[..., a:b, :].reshape(-1, x.shape[2] * (b - a), x.shape[-1])


def _keys(x: Array, a: int, b: int) -> Array:
  """[B, N, 1, S, K] -> [B N, b - a, K]."""
  return x[:, :, 0, a:b].reshape(-1, b - a, x.shape[-1])


def _seen(
  first: int, a: int, b: int, window: int | None, mask: Array | None
) -> Array:
  t, s = np.arange(a, b)[:, None], np.arange(first, b)[None, :]
  seen = s <= t
  if window is not None:
    seen &= t - s < window
  seen = jnp.asarray(seen[None, None, None])
  return seen if mask is None else seen & mask[:, :, None, a:b, first:b]


def _forward(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None,
  sinks: Array | None,
  scale: float,
  window: int | None,
) -> tuple[Array, tuple]:
  batch, length, _, width = q.shape
  heads = k.shape[2]
  q, k, v = (_heads_first(x, heads) for x in (q, k, v))
  group = q.shape[2]
  if sinks is not None:
    sinks = sinks.reshape(1, heads, group, 1, 1)
  patterns, parts = [], []
  for first, a, b in _spans(length, window):
    scores = jnp.einsum(
      "xtk,xsk->xts", _rows(q, a, b) * scale, _keys(k, first, b)
    )
    scores = scores.reshape(batch, heads, group, b - a, b - first)
    pattern = softmax(scores, _seen(first, a, b, window, mask), sinks)
    pattern = pattern.reshape(-1, group * (b - a), b - first)
    # As a whole in memory: XLA would compute it again in every product.
    pattern = jax.lax.optimization_barrier(pattern)
    z = jnp.einsum("xts,xsk->xtk", pattern, _keys(v, first, b))
    parts.append(z.reshape(batch, heads, group, b - a, width))
    patterns.append(pattern)
  z = jnp.concatenate(parts, axis=3)
  return _heads_last(z), (q, k, v, z, mask, sinks, patterns)


def _backward(
  scale: float, window: int | None, kept: tuple, d_out: Array
) -> tuple:
  q, k, v, z, mask, sinks, patterns = kept
  batch, heads, group, length, width = q.shape
  d_z = _heads_first(d_out, heads)
  wide = jnp.promote_types(q.dtype, jnp.float32)
  # rowsum(P dP) = rowsum(dZ Z): no second pass over the pattern is needed.
  along = jnp.sum((d_z * z).astype(wide), axis=-1, keepdims=True)
  d_q, d_k, d_v, d_sinks = [], [], [], 0.0
  spans = _spans(length, window)
  for (first, a, b), pattern in zip(spans, patterns, strict=True):
    d_rows, own = _rows(d_z, a, b), _rows(along, a, b)
    d_v.append(jnp.einsum("xts,xtk->xsk", pattern, d_rows))
    d_pattern = jnp.einsum("xtk,xsk->xts", d_rows, _keys(v, first, b))
    d_scores = (pattern * (d_pattern - own)).astype(q.dtype) * scale
    d_scores = jax.lax.optimization_barrier(d_scores)
    part = jnp.einsum("xts,xsk->xtk", d_scores, _keys(k, first, b))
    d_q.append(part.reshape(batch, heads, group, b - a, width))
    d_k.append(jnp.einsum("xts,xtk->xsk", d_scores, _rows(q, a, b)))
    if sinks is not None:
      lost = (1 - jnp.sum(pattern.astype(wide), axis=-1, keepdims=True)) * own
      lost = lost.reshape(batch, heads, group, b - a)
      d_sinks -= jnp.sum(lost, axis=(0, 3)).reshape(-1)
  keys = [
    _heads_last(_add_up(parts, spans).reshape(batch, heads, 1, length, width))
    for parts in (d_k, d_v)
  ]
  d_mask = None
  if mask is not None:
    d_mask = np.zeros(mask.shape, jax.dtypes.float0)  # booleans have no slope
  if sinks is not None:
    d_sinks = d_sinks.astype(sinks.dtype)
  return (
    _heads_last(jnp.concatenate(d_q, axis=3)),
    *keys,
    d_mask,
    None if sinks is None else d_sinks,
  )


def _add_up(parts: list[Array], spans: list[tuple[int, int, int]]) -> Array:
  """[X, T, K] from what every block gives for its keys, [X, b - first, K]."""
  columns = []
  for low, high in [(a, b) for _, a, b in spans]:
    total = 0.0
    for part, (first, _, last) in zip(parts, spans, strict=True):
      if first < high and low < last:
        piece = part[:, max(low, first) - first : high - first]
        total += jnp.pad(piece, ((0, 0), (max(0, first - low), 0), (0, 0)))
    columns.append(total)
  return jnp.concatenate(columns, axis=1)
