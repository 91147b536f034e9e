"""Attention without the blocks of keys that provably carry little weight.

The blocks that `block_bounds` leaves out of a row, at most m_t of its weight,
are not read, and the other weights are divided by their own sum:

    ||z'_t - z_t|| = m_t ||mean of v left out - mean of v kept||
                  <= 2 m_t max_{j <= t} ||v_j||,

the means being weighted by the pattern.

Sharp edges:
  Those of `block_bounds`. In XLA this is a loop over blocks: correct on any
  device, but meant for a CPU; an accelerator would need a kernel.
  Softmax attention alone, without window, soft cap, sink logit or padding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.inference.block_bounds import (
  Choice,
  choose_blocks,
  near_weight,
  span_of,
)
from sinkjax.inference.key_codes import Codec
from sinkjax.inference.sparse_sink import exact_products
from sinkjax.models.normalizers import MASKED


class SparseBlocks(NamedTuple):
  """What `sparse_block_attention` returns.

  Attributes:
    z: [B, T, H, K].
    kept: [B, H, C, C] as in `Choice`.
    error: [B, H, T] bound of ||dz||.
  """

  z: Float[Array, "B T H K"]
  kept: Bool[Array, "B H C C"]
  error: Float[Array, "B H T"]


def _sizes(count: int) -> list[int]:
  """1, 2, 3, 4, 6, 8, 12, ... up to `count`: a program for each."""
  found = {s for i in range(32) for s in (2**i, 3 * 2**i) if s < count}
  return [*sorted(found), count]


@exact_products
def attend_blocks(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  v: Float[Array, "B T N K"],
  kept: Bool[Array, "B H C C"],
  *,
  scale: float,
) -> Float[Array, "B T H K"]:
  """Causal attention over the blocks that are kept, and the first key.

  Args:
    q: queries.
    k: keys.
    v: values.
    kept: which block of queries reads which block of keys; T / C in each.
    scale: of the product.

  Cost: 2 T K block for each block that is kept, up to a third more: blocks
  are gathered in one of `_sizes`.
  """
  batch, length, heads, width = q.shape
  count = kept.shape[-1]
  block, group = length // count, heads // k.shape[2]

  def apart(x: Array) -> Array:  # [B, T, N, K] -> [B N, C, block, K]
    return jnp.swapaxes(x, 1, 2).reshape(-1, count, block, width)

  queries, keys, values = apart(q), apart(k), apart(v)
  kept = kept.reshape(-1, count, count)
  # Kept blocks first, in their own order: a slice of the order gathers them.
  order = jnp.argsort(~kept, axis=-1, stable=True)
  many = kept.sum(axis=-1)
  sizes = _sizes(count)
  which = jnp.searchsorted(jnp.asarray(sizes), many)

  def read(size: int, head: Array, rows: Array) -> Array:
    own = head // group
    index = order[head, rows, :size]
    some = keys[own, index].reshape(-1, width)
    scores = scale * queries[head, rows] @ some.T
    place = (index[:, None] * block + jnp.arange(block)[None]).reshape(-1)
    real = jnp.repeat(jnp.arange(size) < many[head, rows], block) & (place > 0)
    at = rows * block + jnp.arange(block)[:, None]
    seen = real[None] & (place[None] <= at)
    first = scale * queries[head, rows] @ keys[own, 0, :1].T
    scores = jnp.concatenate([first, jnp.where(seen, scores, MASKED)], axis=1)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = weights[:, 1:] @ values[own, index].reshape(-1, width)
    return mixed + weights[:, :1] * values[own, 0, :1]

  # A program for each size, and a loop below: under vmap all would run.
  branches = [functools.partial(read, size) for size in sizes]

  def one(at: Array) -> Array:
    head, rows = at // count, at % count
    return jax.lax.switch(which[head, rows], branches, head, rows)

  z = jax.lax.map(one, jnp.arange(batch * heads * count))
  return jnp.swapaxes(z.reshape(batch, heads, length, width), 1, 2)


@exact_products
def sparse_block_attention(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  v: Float[Array, "B T N K"],
  codec: Codec | None = None,
  *,
  scale: float,
  tolerance: float | Float[Array, ""],
  bits: int | None = 8,
  block: int = 16,
  window: int = 1,
) -> SparseBlocks:
  """Causal attention that leaves out blocks of provably little weight.

  Args:
    q: queries.
    k: keys.
    v: values.
    codec: of each KV head; not needed for `bits=None`.
    scale: of the product, positive.
    tolerance: each query loses less than this of its weight; 0 is exact.
    bits: what blocks are bounded from, see `span_of`.
    block: keys, and queries, in a block.
    window: blocks before a query's own that are always read.

  Raises:
    ValueError: for a block that does not divide T, heads that do not fit, a
      negative tolerance or window, a scale that is not positive, or a codec
      that is missing.

  Cost: of the span, O(T^2) memory of one head at a time, and of
  `attend_blocks`.
  """
  _check(q, k, scale, tolerance, block, window)
  batch, length, heads, width = q.shape
  group = heads // k.shape[2]
  per_head = jnp.swapaxes(q, 1, 2).reshape(-1, length, width)
  keys = jnp.repeat(jnp.swapaxes(k, 1, 2), group, axis=1)
  keys = keys.reshape(-1, length, width)
  if codec is not None:
    codec = jax.tree.map(
      lambda x: jnp.tile(
        jnp.repeat(x, group, 0), (batch,) + (1,) * (x.ndim - 1)
      ),
      codec,
    )

  def one(args: tuple[Array, Array, Codec | None]) -> Choice:
    q, k, codec = args
    span = span_of(q, k, codec, scale=scale, block=block, bits=bits)
    near = near_weight(q, k, scale=scale, block=block, window=window)
    return choose_blocks(span, near, tolerance, block=block, window=window)

  kept, mass = jax.lax.map(one, (per_head, keys, codec))
  kept = kept.reshape(batch, heads, *kept.shape[1:])
  z = attend_blocks(q, k, v, kept, scale=scale)
  # A mean of values is at most as long as the longest that the query sees.
  far = jax.lax.cummax(jnp.linalg.norm(v, axis=-1), axis=1)  # [B, T, N]
  far = jnp.repeat(jnp.swapaxes(far, 1, 2), group, axis=1)
  return SparseBlocks(z, kept, 2 * mass.reshape(far.shape) * far)


def _check(
  q: Array,
  k: Array,
  scale: float,
  tolerance: float | Array,
  block: int,
  window: int,
) -> None:
  if block < 1 or q.shape[1] % block:
    raise ValueError(f"block must divide the length {q.shape[1]}, got {block}")
  if k.shape[1] != q.shape[1] or q.shape[2] % k.shape[2]:
    raise ValueError(
      "queries [B, T, H, K] and keys [B, T, N, K] with N dividing H are "
      f"needed, got {q.shape} and {k.shape}"
    )
  known = not isinstance(tolerance, jax.core.Tracer)
  if window < 0 or (known and tolerance < 0):
    raise ValueError(
      f"tolerance and window must be 0 or more, got {tolerance} and {window}"
    )
  if scale <= 0:
    raise ValueError(f"scale must be positive, got {scale}")
