"""How far a change of one token travels, and how tokens mix.

Two views of the same thing: the difference between two runs' residual
streams, and the norms of the Jacobian's blocks. `norms[t, s]` is the norm of
d output_t / d input_s; entries above the diagonal are ignored. Positions and
layers count from 0.

Source of the first view: Barbero et al. (2025, arXiv 2504.02732), section 3.1
and figure 2. All other definitions here are ours.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.metrics.precision import divide, root, wide


def spread(
  a: Float[Array, "*B T D"],
  b: Float[Array, "*B T D"],
  *,
  relative: bool = False,
) -> Float[Array, "*B T"]:
  """How much each token's vector differs between two runs.

      ||a_t - b_t||_2;   relative: over ||a_t||_2

  Barbero et al. (2504.02732), figure 2, over layers and tokens. Whether they
  normalise is not known to us; we offer both.

  Args:
    a: residual streams of the run to compare with, [L, T, D] or [L, B, T, D].
    b: those of the changed run.
    relative: divide by the norm of `a`; where that is 0, the result is 0 for
      equal vectors and inf for others.

  Returns:
    One number for each layer and token.

  >>> import jax.numpy as jnp
  >>> a = jnp.array([[[3.0, 4.0], [0.0, 2.0]]])
  >>> b = jnp.array([[[3.0, 4.0], [0.0, 1.0]]])
  >>> spread(a, b).tolist(), spread(a, b, relative=True).tolist()
  ([[0.0, 1.0]], [[0.0, 0.5]])
  """
  a, b = wide(a), wide(b)
  gap = _norm(a - b)
  if not relative:
    return gap
  size = _norm(a)
  # gap + inf, not inf: a NaN in the gap stays one.
  undefined = jnp.where(gap == 0, jnp.zeros_like(gap), gap + jnp.inf)
  return jnp.where(size == 0, undefined, divide(gap, size))


class Reach(NamedTuple):
  """How many positions a change has reached.

  Attributes:
    count: [*B] positions above the threshold.
    share: [*B] the same over all positions counted.
  """

  count: Int[Array, "*B"]
  share: Float[Array, "*B"]


def reach(
  gaps: Float[Array, "*B T"],
  *,
  threshold: Float[Array, ""] | float,
  start: int = 0,
) -> Reach:
  """Number and share of positions that differ by more than a threshold.

      count = sum_{t >= start} 1[gap_t > threshold];   count / (T - start)

  Our definition: Barbero et al. show the map and give no scalar.

  Args:
    gaps: what `spread` returns.
    threshold: in the units of `gaps`; exceeded strictly.
    start: first position counted, such as that of the changed token.

  Returns:
    One `Reach` with an entry for each layer.

  Raises:
    ValueError: for a start outside [0, T).

  >>> import jax.numpy as jnp
  >>> reached = reach(jnp.array([[0.0, 1.0, 0.1, 1.0]]), threshold=0.5)
  >>> int(reached.count[0]), float(reached.share[0])
  (2, 0.5)
  """
  length = gaps.shape[-1]
  if not 0 <= start < length:
    raise ValueError(f"start must be in [0, {length}), got {start}")
  above = gaps[..., start:] > threshold
  return Reach(
    jnp.sum(above, axis=-1), jnp.mean(above, axis=-1, dtype=gaps.dtype)
  )


def first_layer(
  gaps: Float[Array, "L *B T"], *, threshold: Float[Array, ""] | float
) -> Int[Array, "*B T"]:
  """The first layer at which each position differs by more than a threshold.

      min {l : gap_l > threshold},  L where there is none

  Our definition. A later layer may undo the difference; only the first counts.

  Args:
    gaps: what `spread` returns, layers first.
    threshold: in the units of `gaps`; exceeded strictly.

  Returns:
    A layer, or L where the threshold is never exceeded.

  >>> import jax.numpy as jnp
  >>> gaps = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
  >>> first_layer(gaps, threshold=0.5).tolist()
  [2, 0, 1]
  """
  above = gaps > threshold
  return jnp.where(
    jnp.any(above, axis=0), jnp.argmax(above, axis=0), gaps.shape[0]
  )


def by_distance(
  norms: Float[Array, "*B T S"], *, query: int = -1
) -> Float[Array, "*B N"]:
  """One token's sensitivity to what is d tokens back: `norms[t, t - d]`.

  Our definition. Distance 0 is the token itself, distance t the first token.

  Args:
    norms: of the Jacobian's blocks.
    query: t, from the end if negative.

  Returns:
    [*B, t + 1] norms for d = 0 .. t.

  Raises:
    ValueError: for norms that are not square, or a query outside them.

  >>> import jax.numpy as jnp
  >>> by_distance(jnp.array([[1.0, 0.0], [0.5, 2.0]])).tolist()
  [2.0, 0.5]
  """
  length = _length(norms)
  if not -length <= query < length:
    raise ValueError(f"query must be in [-{length}, {length}), got {query}")
  query %= length
  return norms[..., query, : query + 1][..., ::-1]


def distance_profile(norms: Float[Array, "*B T S"]) -> Float[Array, "*B T"]:
  """Mean sensitivity at each distance.

      profile_d = 1 / (T - d) * sum_{t = d}^{T - 1} norms[t, t - d]

  Our definition. Far distances are means of few: the last, of the one pair
  of first and last token.

  Args:
    norms: of the Jacobian's blocks.

  Returns:
    [*B, T] means for d = 0 .. T - 1.

  Raises:
    ValueError: for norms that are not square.

  >>> import jax.numpy as jnp
  >>> distance_profile(jnp.array([[1.0, 0.0], [0.5, 2.0]])).tolist()
  [1.5, 0.5]
  """
  length = _length(norms)
  token = jnp.arange(length)
  source = token[:, None] - token[None, :]
  shifted = norms[..., token[:, None], source]  # those below 0 wrap round
  seen = jnp.broadcast_to(source >= 0, shifted.shape)
  pairs = jnp.arange(length, 0, -1, dtype=norms.dtype)
  total = jnp.sum(jnp.where(seen, shifted, 0), axis=-2)
  return total / jnp.broadcast_to(pairs, total.shape)


def total_mixing(
  norms: Float[Array, "*B T S"], *, share: bool = True
) -> Float[Array, "*B"]:
  """How much of the sensitivity is to other tokens.

      share:     sum_{s < t} n_ts^2 / sum_{s <= t} n_ts^2
      absolute:  sqrt(sum_{s < t} n_ts^2)

  Our definition. With Frobenius norms the absolute form is that of the
  Jacobian's part below the diagonal blocks.

  Args:
    norms: of the Jacobian's blocks.
    share: whether to divide by the whole.

  Returns:
    The two last axes reduced; a share is in [0, 1], and 0 where all is 0.

  Raises:
    ValueError: for norms that are not square.

  >>> import jax.numpy as jnp
  >>> norms = jnp.array([[1.0, 0.0], [2.0, 2.0]])
  >>> float(total_mixing(norms, share=False))
  2.0
  >>> round(float(total_mixing(norms)), 4)
  0.4444
  """
  distance = _distance(norms)
  scale, squares = _squares(norms, distance >= 0, axis=(-2, -1))
  others = jnp.sum(squares * (distance > 0), axis=(-2, -1))
  if share:
    return divide(others, jnp.sum(squares, axis=(-2, -1)))
  return scale[..., 0, 0] * root(others)


def effective_reach(norms: Float[Array, "*B T S"]) -> Float[Array, "*B T"]:
  """How far back each token's sensitivity lies on average.

      reach_t = sum_{s <= t} (t - s) n_ts^2 / sum_{s <= t} n_ts^2

  Our definition. A first token that is a sink raises it, as a token far
  back does; compare with and without column 0.

  Args:
    norms: of the Jacobian's blocks.

  Returns:
    Tokens back, between 0 and t; 0 where a whole row is 0.

  Raises:
    ValueError: for norms that are not square.

  >>> import jax.numpy as jnp
  >>> effective_reach(jnp.array([[1.0, 0.0], [2.0, 2.0]])).tolist()
  [0.0, 0.5]
  """
  distance = _distance(norms)
  _, squares = _squares(norms, distance >= 0, axis=-1)
  moment = jnp.sum(squares * distance.astype(norms.dtype), axis=-1)
  return divide(moment, jnp.sum(squares, axis=-1))


def _norm(x: Float[Array, "..."]) -> Array:
  return root(jnp.sum(x * x, axis=-1))


def _length(norms: Float[Array, "*B T S"]) -> int:
  length, keys = norms.shape[-2:]
  if length != keys:
    raise ValueError(f"norms must be [..., T, T], got {norms.shape}")
  return length


def _distance(norms: Float[Array, "*B T S"]) -> Int[Array, "*B T S"]:
  """t - s for every entry."""
  token = jnp.arange(_length(norms))
  return jnp.broadcast_to(token[:, None] - token[None, :], norms.shape)


def _squares(
  norms: Float[Array, "*B T S"],
  seen: Bool[Array, "*B T S"],
  *,
  axis: int | tuple[int, ...],
) -> tuple[Array, Array]:
  """(scale, squares of norms / scale): squares of large norms overflow."""
  norms = jnp.where(seen, norms, 0)
  scale = jnp.max(norms, axis=axis, keepdims=True)
  ratio = divide(norms, scale)
  return scale, ratio * ratio
