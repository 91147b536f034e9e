"""What a sink adds to a head's output, and what its weight takes from the rest.

With p the weights of a row, v values, key 0 the sink and c the row's sum (1 for
a softmax without a learned sink), let

    r = c / (c - p_0) sum_{s > 0} p_s v_s

be the row renormalised without the sink. Then exactly

    z = r + p_0 v_0 - (p_0 / c) r:

the sink adds p_0 v_0, and takes (p_0 / c) r by the normalisation alone. That
these are the two things that arXiv 2606.07604 and 2601.22966 tell apart is our
reading; their formulas were not at hand.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.metrics.norms import median, token_norms
from sinkjax.metrics.precision import wide


class SinkParts(NamedTuple):
  """Norms of every row, [B, H, T]; row 0, which sees the sink alone, has none.

  Attributes:
    adds: `p_0 ||v_0||`.
    takes: `p_0 / c ||r||`.
  """

  adds: Array
  takes: Array


def sink_parts(
  pattern: Float[Array, "B H T S"], v: Float[Array, "B S N K"]
) -> SinkParts:
  """The two norms of each row, see the module.

  Where a row has no weight beside the sink, r is taken as 0.

  Args:
    pattern: attention weights, queries and keys from position 0.
    v: values of N KV heads, of which H is a multiple.

  Returns:
    Norms, 0 in row 0.

  Cost: O(B H T S K) time, as the mixing of values itself.

  >>> p = jnp.array([[1.0, 0.0], [0.75, 0.25]])[None, None]
  >>> v = jnp.array([[0.0, 0.5], [3.0, 4.0]])[None, :, None]
  >>> [x[0, 0, 1].round(4).item() for x in sink_parts(p, v)]
  [0.375, 3.75]
  """
  pattern, v = wide(pattern), wide(v)
  v = jnp.repeat(v, pattern.shape[1] // v.shape[2], axis=2)
  sink, rest = pattern[..., 0], pattern.at[..., 0].set(0)
  others = jnp.sum(rest, axis=-1)
  mixed = token_norms(jnp.einsum("bhts,bshk->bhtk", rest, v))
  # r = c / others * mixed, so p_0 / c * r = p_0 / others * mixed.
  some = others > 0
  takes = jnp.where(some, sink * mixed / jnp.where(some, others, 1), 0)
  adds = sink * token_norms(v[:, 0])[:, :, None]
  late = (jnp.arange(pattern.shape[2]) > 0)[None, None]
  return SinkParts(jnp.where(late, adds, 0), jnp.where(late, takes, 0))


def large_dimensions(
  x: Float[Array, "B T D"], ratio: float = 10.0
) -> Float[Array, "B D"]:
  """The share of tokens at which each dimension is large, position 0 left out.

      mean over t > 0 of 1[ |x_td| > ratio median_d' |x_td'| ]

  A massive activation is large at position 0 alone and has a share near 0; a
  dimension that is large whatever the token has one near 1. Our reading.

  Args:
    x: residual stream.
    ratio: over the median of the token's own dimensions.

  >>> x = jnp.array([[[9.0, 1, 1], [50, 1, 2], [1, 2, 3]]])
  >>> large_dimensions(x).tolist()
  [[0.5, 0.0, 0.0]]
  """
  size = jnp.abs(wide(x[:, 1:]))
  limit = ratio * median(size)[..., None]
  return jnp.mean((size > limit).astype(size.dtype), axis=1)


def norm_without(
  unit: Float[Array, "*B D"], dims: Bool[Array, "*#B D"]
) -> Float[Array, "*B"]:
  """What a norm's output grows by where its input loses some dimensions.

  With u = x / sqrt(mean(x^2) + eps) of an RMS norm, zeroing the dimensions S of
  x before the norm multiplies every other dimension of u by

      (1 - 1/D sum_{d in S} u_d^2)^(-1/2)

  exactly, eps included. Computed as the mean of the other u_d^2 and of what eps
  takes, 1 - mean(u^2): where S has nearly the whole norm, the difference from 1
  would have no digit left.

  Args:
    unit: [..., D] u, the norm's output before its scale.
    dims: [..., D] the set S.

  Returns:
    The factor, at least 1; 0 where nothing is left.

  >>> u = jnp.array([3.0, 4.0, 0.0]) / (25 / 3) ** 0.5
  >>> round(norm_without(u, jnp.array([False, True, False])).item(), 4)
  1.6667
  """
  square = jnp.square(wide(unit))
  rest = jnp.mean(jnp.where(dims, 0, square), axis=-1)
  by_eps = 1 - jnp.mean(square, axis=-1)
  # A few roundings of 1 are no sign of an eps that matters.
  limit = 8 * jnp.finfo(square.dtype).eps
  left = rest + jnp.where(by_eps > limit, by_eps, 0)
  return jnp.where(left > 0, 1 / jnp.sqrt(jnp.where(left > 0, left, 1)), 0)
