"""Bounds of the attention on blocks of keys, before their scores are computed.

The first key and the nearest blocks are read exactly. Of every other block C
of keys, a query t knows

    low_tC <= log sum_{j in C} e^{s_tj} <= high_tC,

from summaries or from keys in a few bits (`key_codes`). Leaving out the
blocks S of a row loses

    m_t = sum_{j in S} p_tj <= sum_{C in S} e^{high_tC}
                               / (near_t + sum_C e^{low_tC}),

near_t being what was read exactly; the sink's weight is most of it where a
head is dormant. Queries come in blocks too: a block of keys is left out for all
of them or for none. Those of least weight are left out first, as long as m_t
stays below the tolerance for every query.

All functions are of one head, [T, K]; `sparse_blocks` attends by them.

Sharp edges:
  Which keys a query leaves out depends on the later queries of its own block,
  but on nothing after that block.
  T must be a multiple of the block, the scale positive.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.inference import key_codes
from sinkjax.inference.key_codes import Codec
from sinkjax.inference.sparse_sink import exact_products, score_tops
from sinkjax.models.normalizers import MASKED

PARTS = 8
"""Parts of the queries in `_logs`: more of them compute less of the masked
future, in smaller products."""

MOST = 80.0
"""The greatest exponent: exp(80) is finite in float32, and any weight above 1
is kept whatever its size."""


class Span(NamedTuple):
  """Bounds of the logarithm of each block's weight, [T, C].

  The first key is in no block. Only blocks wholly before a query's own have a
  meaning; `exact_span` also covers what a query sees of its own block.
  """

  low: Float[Array, "T C"]
  high: Float[Array, "T C"]


class Choice(NamedTuple):
  """The blocks that one head reads.

  Attributes:
    kept: [C, C] blocks of queries by blocks of keys; the future is `False`.
    mass: [T] the most of its weight that each query can lose.
  """

  kept: Bool[Array, "C C"]
  mass: Float[Array, "T"]


def _margin(
  q: Float[Array, "T K"], k: Array, scale: float
) -> Float[Array, "T S"]:
  """[T, S] a bound of the rounding error of a score with keys [S, ...], of
  which the norms alone count."""
  unit = key_codes.ROUNDING * q.shape[-1] * jnp.finfo(q.dtype).eps
  norms = (jnp.linalg.norm(x, axis=-1) for x in (q, k))
  return scale * unit * jnp.outer(*norms)


def _logs(
  q: Float[Array, "T K"], k: Float[Array, "T K"], scale: float, block: int
) -> Float[Array, "T C"]:
  """The logarithm of each block's weight, of the keys that a query sees.

  In `PARTS` parts of the queries, each with the keys up to its last; keys
  come first, since sums over the last axis are slow on a CPU.
  """
  # Scores of the masked future are half of all; parts leave most of them out.
  count, parts = len(q) // block, []
  edges = sorted({count * i // PARTS for i in range(PARTS + 1)})
  for a, b in zip(edges, edges[1:], strict=False):
    at, key = jnp.arange(a * block, b * block), jnp.arange(b * block)
    scores = scale * k[: b * block] @ q[a * block : b * block].T
    seen = (key[:, None] <= at[None]) & (key[:, None] > 0)
    scores = jnp.where(seen, scores, MASKED).reshape(b, block, len(at))
    top = jnp.max(scores, axis=1)
    logs = top + jnp.log(jnp.sum(jnp.exp(scores - top[:, None]), axis=1))
    parts.append(
      jnp.pad(logs, ((0, count - b), (0, 0)), constant_values=MASKED)
    )
  return jnp.concatenate(parts, axis=1).T


def _longest(size: Float[Array, "S"], block: int) -> Float[Array, "C"]:
  """The greatest of each block, without the first key."""
  return jnp.max(size.at[0].set(0).reshape(-1, block), axis=1)


@exact_products
def exact_span(
  q: Float[Array, "T K"], k: Float[Array, "T K"], *, scale: float, block: int
) -> Span:
  """From all scores, of what each query sees of a block, its own included.

  Cost: that of the scores, T^2 K / 2; only the values' products are saved.
  """
  longest = _longest(jnp.linalg.norm(k, axis=-1), block)
  off = _margin(q, longest[:, None], scale)
  logs = _logs(q, k, scale, block)
  return Span(logs - off, logs + off)


@exact_products
def code_span(
  q: Float[Array, "T K"],
  k: Float[Array, "T K"],
  codec: Codec,
  *,
  scale: float,
  block: int,
  bits: int,
) -> Span:
  """From keys in a few bits: `|s_tj - s'_tj| <= scale ||A^T q|| ||B e_j||`.

  A block takes the greatest ||B e_j|| of its keys.

  Args:
    q: queries of one head.
    k: keys of its KV head.
    codec: of this KV head, fitted on whatever text.
    scale: of the product, positive.
    block: keys in a block.
    bits: of a number of a code.

  Cost: a product of queries and codes, and an exponential of each score.
  """
  near, far = key_codes.coded(k, codec, bits)
  off = scale * jnp.outer(key_codes.query_norm(q, codec), _longest(far, block))
  longest = _longest(jnp.linalg.norm(near, axis=-1), block)
  off = off + _margin(q, longest[:, None], scale)
  logs = _logs(q, near, scale, block)
  return Span(logs - off, logs + off)


@exact_products
def summary_span(
  q: Float[Array, "T K"],
  k: Float[Array, "T K"],
  codec: Codec,
  *,
  scale: float,
  block: int,
) -> Span:
  """From each block's centre, ranges and radius, the best of three bounds.

  Upper: `score_tops` (a ball and a box around the keys), and a ball in the
  basis of `codec`. Lower: by Jensen, `log n + scale q c`, c the mean of the
  block's n keys.

  Cost: O(3 T^2 K / block).
  """
  heads = (q[None, :, None], k[None, :, None])
  # The two balls and the box are tight for different keys.
  top = score_tops(*heads, scale=scale, key_block=block)[0, 0]
  blocks = k.reshape(-1, block, k.shape[-1])
  inside = (jnp.arange(len(k)) > 0).reshape(-1, block, 1)
  count = inside.sum(axis=1)
  center = jnp.where(inside, blocks, 0).sum(axis=1) / jnp.maximum(count, 1)
  far = key_codes.key_error_norm(blocks, center[:, None], codec)
  far = jnp.max(jnp.where(inside[..., 0], far, 0), axis=1)
  middle, off = scale * q @ center.T, _margin(q, center, scale)
  ball = middle + scale * jnp.outer(key_codes.query_norm(q, codec), far) + off
  logs = jnp.log(jnp.maximum(count[:, 0], 1).astype(q.dtype))
  logs = jnp.where(count[:, 0] > 0, logs, MASKED)[None]
  # Beside its own rounding the mean score carries that of the centre c.
  wide = jnp.max(jnp.linalg.norm(blocks, axis=-1), axis=1)
  off = off + _margin(q, wide[:, None], scale)
  return Span(middle - off + logs, jnp.minimum(ball, top) + logs)


def span_of(
  q: Float[Array, "T K"],
  k: Float[Array, "T K"],
  codec: Codec | None,
  *,
  scale: float,
  block: int,
  bits: int | None,
) -> Span:
  """By bits of a key: `None` for all scores, 0 for summaries, else codes."""
  if bits is None:
    return exact_span(q, k, scale=scale, block=block)
  if codec is None:
    raise ValueError(
      "codes and summaries need a codec of `fit_codec`, got None"
    )
  if bits == 0:
    return summary_span(q, k, codec, scale=scale, block=block)
  return code_span(q, k, codec, scale=scale, block=block, bits=bits)


@exact_products
def near_weight(
  q: Float[Array, "T K"],
  k: Float[Array, "T K"],
  *,
  scale: float,
  block: int,
  window: int,
  sink: bool = True,
) -> Float[Array, "T"]:
  """A lower bound of the logarithm of the weight that is read exactly.

  That is the first key, and the keys seen of a query's own block and of the
  `window` blocks before it; a window of -1 means the first key alone.

  Args:
    q: queries of one head.
    k: its keys.
    scale: of the product, positive.
    block: keys, and queries, in a block.
    window: blocks before a query's own.
    sink: whether the first key counts.

  Cost: T (window + 1) block K.
  """
  count, width = len(q) // block, q.shape[-1]
  many = (window + 1) * block
  which = jnp.arange(count)[:, None] + jnp.arange(-window, 1)[None]
  keys = k.reshape(count, block, width)[jnp.maximum(which, 0)]
  keys = keys.reshape(count, many, width)
  place = which[..., None] * block + jnp.arange(block)[None, None]
  place = place.reshape(count, many)
  rows = q.reshape(count, block, width)
  scores = scale * jnp.einsum("cik,cjk->cij", rows, keys)
  sizes = jnp.linalg.norm(rows, axis=-1)[..., None]
  unit = key_codes.ROUNDING * width * jnp.finfo(q.dtype).eps
  scores -= scale * unit * sizes * jnp.linalg.norm(keys, axis=-1)[:, None]
  at = jnp.arange(len(q)).reshape(count, block, 1)
  seen = (place[:, None] <= at) & (place[:, None] > 0)
  scores = jnp.where(seen, scores, MASKED).reshape(len(q), many)
  first = scale * q @ k[:1].T - _margin(q, k[:1], scale)
  first = first if sink else jnp.full_like(first, MASKED)
  return jax.nn.logsumexp(jnp.concatenate([first, scores], axis=1), axis=1)


def choose_blocks(
  span: Span,
  near: Float[Array, "T"],
  tolerance: Float[Array, ""] | float,
  *,
  block: int,
  window: int,
) -> Choice:
  """Which blocks of keys each block of queries reads.

  Args:
    span: of the blocks' weights.
    near: of what is read exactly, from `near_weight` with the same window.
    tolerance: each query loses less than this of its weight; 0 keeps all.
    block: queries in a block.
    window: blocks before a query's own that are kept.

  Cost: T C and a sort of C^2, C the number of blocks.
  """
  count = span.low.shape[1]
  free = jnp.tri(count, k=-window - 1, dtype=bool)  # [queries, keys]
  rows = jnp.repeat(free, block, axis=0)
  rest = jax.nn.logsumexp(jnp.where(rows, span.low, MASKED), axis=1)
  total = jnp.logaddexp(near, rest)
  logs = jnp.minimum(span.high - total[:, None], MOST)
  weight = jnp.where(rows, jnp.exp(logs), 0).reshape(count, block, count)
  worst = jnp.where(free, jnp.max(weight, axis=1), jnp.inf)
  order = jnp.argsort(worst, axis=1)
  weight = jnp.take_along_axis(weight, order[:, None], axis=2)
  lost = jnp.cumsum(weight, axis=2)
  # A running sum of C terms is off by C units of rounding at most; 8 is room.
  lost = lost * (1 + 8 * count * jnp.finfo(lost.dtype).eps)
  ordered = jnp.take_along_axis(free, order, axis=1)
  goes = (jnp.max(lost, axis=1) < tolerance) & ordered
  many = goes.sum(axis=1)
  # A running sum of weights grows, so those that fit are the first ones.
  stays = jnp.arange(count)[None] >= many[:, None]
  kept = jnp.put_along_axis(stays, order, stays, axis=1, inplace=False)
  kept &= jnp.tri(count, dtype=bool)
  last = jnp.maximum(many - 1, 0)[:, None, None]
  mass = jnp.take_along_axis(lost, last, axis=2)[..., 0]
  mass = jnp.where(many[:, None] > 0, mass, 0).reshape(-1)
  return Choice(kept, jnp.minimum(mass, 1))
