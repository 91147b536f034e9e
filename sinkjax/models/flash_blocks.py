"""Blocks of weights in the kernels of accelerators, and walks over them.

The arithmetic of a block of scores is written once, and each kind of device
walks over blocks in its own way: `models.flash_kernels` says how.

A block has its keys along the first axis and its queries along the second: what
is known of each query then lies along a vector register's lanes, and sums over
keys add registers up.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool

from sinkjax.models.normalizers import MASKED

Refs = Mapping[str, Any]


class Walk(NamedTuple):
  """How a kernel makes weights and walks over blocks. Static.

  Attributes:
    block: queries and keys of a block.
    count: blocks of queries, and of keys.
    heads: of queries.
    group: query heads of a key head.
    scale: of the products.
    scores: elementwise, before the softmax (a soft cap), or `None`.
    device: "gpu" or "tpu".
    interpret: whether JAX runs the kernel by itself, on any device.
  """

  block: int
  count: int
  heads: int
  group: int
  scale: float
  scores: Callable[[Array], Array] | None
  device: str
  interpret: bool


class Gathered(NamedTuple):
  """What the first kernel has of a block of R queries so far.

  Attributes:
    top: [1, R] the largest score.
    mass: [1, R] the keys' exponentials, over that of `level`.
    slope: [1, R] the sum of these times their logarithms.
    z: [W, R] mixed values.
    weighted: [M, R] sums by weights of keys, or `None`.
  """

  top: Array
  mass: Array
  slope: Array
  z: Array
  weighted: Array | None


# The arithmetic, which both devices share.


def _product(a: Array, b: Array, contracted: tuple[int, int]) -> Array:
  """A product of two matrices along an axis of each, added in float32."""
  # The default of a device would round float32 to bfloat16 or TF32; products
  # of half precision are exact in float32 as they are.
  wide = a.dtype == jnp.float32
  return jax.lax.dot_general(
    a,
    b,
    (((contracted[0],), (contracted[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if wide else None,
    preferred_element_type=jnp.float32,
  )


def _scores(walk: Walk, q: Array, k: Array) -> Array:
  """[R, K] and [C, K] -> [C, R]."""
  s = _product(k, q, (1, 1)) * walk.scale
  return s if walk.scores is None else walk.scores(s)


def _seen(
  walk: Walk, i: Array, j: Array, window: Array, valid: Array | None
) -> Bool[Array, "C R"]:
  """Which queries of block i see which keys of block j."""
  shape = walk.block, walk.block
  t = i * walk.block + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  s = j * walk.block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  seen = (s <= t) & (t - s < window)
  if valid is not None:
    # Padding sees itself: a row with no key at all would be NaN.
    seen = (seen & (valid > 0)) | (s == t)
  return seen


def _start(walk: Walk, width: int, weighted: int) -> Gathered:
  def filled(rows: int, value: float = 0.0) -> Array:
    return jnp.full((rows, walk.block), value, jnp.float32)

  return Gathered(
    filled(1, MASKED),
    filled(1),
    filled(1),
    filled(width),
    filled(weighted) if weighted else None,
  )


def _level(top: Array, sinks: Array | None) -> Array:
  """The largest logit, that of a sink among them."""
  return top if sinks is None else jnp.maximum(top, sinks)


def _with_block(
  seen: Array,
  s: Array,
  v: Array,
  sinks: Array | None,
  weights: Array | None,
  so_far: Gathered,
) -> Gathered:
  """One more block of keys."""
  s = jnp.where(seen, s, MASKED)
  top = jnp.maximum(so_far.top, jnp.max(s, axis=0, keepdims=True))
  level, before = _level(top, sinks), _level(so_far.top, sinks)
  logs = s - level
  # Of a row that has seen no key yet, the largest score is `MASKED`.
  p = jnp.where(seen, jnp.exp(logs), 0.0)
  moved = before - level
  old = jnp.exp(moved)
  weighted = so_far.weighted
  if weights is not None:
    weighted = weighted * old + _product(weights, p, (1, 0))
  return Gathered(
    top,
    so_far.mass * old + jnp.sum(p, axis=0, keepdims=True),
    (so_far.slope + so_far.mass * moved) * old
    + jnp.sum(p * logs, axis=0, keepdims=True),
    so_far.z * old + _product(v, p.astype(v.dtype), (1, 0)),
    weighted,
  )


def _finish(found: Gathered, sinks: Array | None, outs: Refs) -> None:
  """Writes what was gathered of all keys."""
  level = _level(found.top, sinks)
  total = found.mass
  if sinks is not None:
    total = total + jnp.exp(sinks - level)
  share, log_total = 1 / total, jnp.log(total)
  outs["z"][...] = (found.z * share).astype(outs["z"].dtype)
  outs["lse"][...] = level + log_total
  outs["entropy"][...] = (log_total * found.mass - found.slope) * share
  outs["largest"][...] = jnp.exp(found.top - level) * share
  if found.weighted is not None:
    outs["weighted"][...] = found.weighted * share


def _weights_of(seen: Array, s: Array, lse: Array) -> Array:
  return jnp.where(seen, jnp.exp(s - lse), 0.0)


def _write_square(square: Array, diagonals: bool, out: Any) -> None:
  if not diagonals:
    square = jnp.sum(square.T, axis=0, keepdims=True)
  out[...] = square


# Which blocks a walk visits.


def first_key(walk: Walk, i: Array, window: Array) -> Array:
  """The first block of keys that queries of block i see."""
  first = jnp.maximum(i * walk.block - window + 1, 0)
  return jax.lax.div(first, np.int32(walk.block))


def last_row(walk: Walk, p: Array, window: Array, diagonals: bool) -> Array:
  """The last block of queries that meets keys p, or lies p blocks ahead.

  It is before p where none does: at distance p the nearest keys are (p - 1) C
  + 1 behind.
  """
  if diagonals:
    reached = (p - 1) * walk.block + 1 < window
    return jnp.where(reached, walk.count - 1, p - 1)
  # The block's last key, and the last query that sees it.
  last = (p + 1) * walk.block - 2 + window
  return jnp.minimum(jax.lax.div(last, np.int32(walk.block)), walk.count - 1)


# A GPU: a program for a block, which loops over the others.


def rows_on_gpu(walk: Walk, window_ref: Any, ins: Refs, outs: Refs) -> None:
  i, window = pl.program_id(1), window_ref[0]
  q = ins["q"][...]
  sinks = ins["sinks"][...] if "sinks" in ins else None
  weighted = ins["weights"].shape[0] if "weights" in ins else 0

  def step(j: Array, so_far: Gathered) -> Gathered:
    at = pl.ds(j * walk.block, walk.block)
    valid = ins["valid"][at, :] if "valid" in ins else None
    weights = ins["weights"][:, at] if "weights" in ins else None
    s = _scores(walk, q, ins["k"][at, :])
    seen = _seen(walk, i, j, window, valid)
    return _with_block(seen, s, ins["v"][:, at], sinks, weights, so_far)

  start = _start(walk, ins["v"].shape[0], weighted)
  first = first_key(walk, i, window)
  _finish(jax.lax.fori_loop(first, i + 1, step, start), sinks, outs)


def squares_on_gpu(
  walk: Walk, window_ref: Any, ins: Refs, outs: Refs, *, diagonals: bool
) -> None:
  p, window = pl.program_id(1), window_ref[0]

  def step(i: Array, square: Array) -> Array:
    j = i - p if diagonals else p
    rows = pl.ds(i * walk.block, walk.block)
    # Of one block of keys, which the program has, or of all of them.
    keys = pl.ds(j * walk.block if diagonals else 0, walk.block)
    valid = ins["valid"][keys, :] if "valid" in ins else None
    s = _scores(walk, ins["q"][rows, :], ins["k"][keys, :])
    seen = _seen(walk, i, j, window, valid)
    return square + _weights_of(seen, s, ins["lse"][:, rows])

  square = jnp.zeros((walk.block, walk.block), jnp.float32)
  last = last_row(walk, p, window, diagonals)
  square = jax.lax.fori_loop(p, last + 1, step, square)
  _write_square(square, diagonals, outs["sums"])


# A TPU: the walk is the grid's last axis, and what was gathered stays.


def rows_on_tpu(
  walk: Walk, window_ref: Any, ins: Refs, outs: Refs, *kept: Any
) -> None:
  i, j, window = pl.program_id(1), pl.program_id(2), window_ref[0]
  sinks = ins["sinks"][...] if "sinks" in ins else None
  weights = ins["weights"][...] if "weights" in ins else None

  def write(found: Gathered) -> None:
    for ref, value in zip(kept, found, strict=False):
      ref[...] = value

  def read() -> Gathered:
    found = [ref[...] for ref in kept]
    return Gathered(*found, *[None] * (len(Gathered._fields) - len(found)))

  @pl.when(j == 0)
  def _() -> None:
    weighted = 0 if weights is None else weights.shape[0]
    write(_start(walk, ins["v"].shape[0], weighted))

  @pl.when((j >= first_key(walk, i, window)) & (j <= i))
  def _() -> None:
    valid = ins["valid"][...] if "valid" in ins else None
    s = _scores(walk, ins["q"][...], ins["k"][...])
    seen = _seen(walk, i, j, window, valid)
    write(_with_block(seen, s, ins["v"][...], sinks, weights, read()))

  @pl.when(j == i)
  def _() -> None:
    _finish(read(), sinks, outs)


def squares_on_tpu(
  walk: Walk,
  window_ref: Any,
  ins: Refs,
  outs: Refs,
  square: Any,
  *,
  diagonals: bool,
) -> None:
  p, i, window = pl.program_id(1), pl.program_id(2), window_ref[0]

  @pl.when(i == 0)
  def _() -> None:
    square[...] = jnp.zeros_like(square)

  @pl.when((i >= p) & (i <= last_row(walk, p, window, diagonals)))
  def _() -> None:
    j = i - p if diagonals else p
    valid = ins["valid"][...] if "valid" in ins else None
    s = _scores(walk, ins["q"][...], ins["k"][...])
    seen = _seen(walk, i, j, window, valid)
    square[...] += _weights_of(seen, s, ins["lse"][...])

  @pl.when(i == walk.count - 1)
  def _() -> None:
    _write_square(square[...], diagonals, outs["sums"])
