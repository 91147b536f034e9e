"""How alike the tokens' vectors have become: rank and token collapse.

Every function reduces the two last axes [T, D], one row a token, and keeps
any axes in front. A zero matrix gives a number, not NaN; NaN in gives NaN
out. Half precision is widened to float32; other inputs keep theirs.

Sources: Barbero et al. (2025, arXiv 2504.02732), Wu et al. (2024, arXiv
2405.18781), Roy and Vetterli (2007), Queipo-de-Llano et al. (2025, arXiv
2510.06477).
"""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.metrics.matrices import each_matrix
from sinkjax.metrics.precision import divide, root, wide

ORDERS = (1, 2, math.inf)
CONSTANTS = {"sharp": math.sqrt(2), "paper": 2.0}


def rank_residual(
  x: Float[Array, "*B T D"], *, relative: bool = False
) -> Float[Array, "*B"]:
  """Distance from the matrix whose rows are all the mean row.

      ||X - 1 m^T||_F,  m = 1 / T * sum_t x_t;   relative: over ||X||_F

  The quantity that rank collapse sends to 0 (Barbero et al. 2504.02732,
  section 3; mu(X) of Wu et al.); the wording is our reading. Rows that agree
  exactly leave rounding of about eps * ||X||_F.

  Args:
    x: one row a token.
    relative: divide by ||X||_F, which gives a share in [0, 1].

  Returns:
    The norm, the two last axes reduced; 0 for a zero matrix.

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
  >>> round(float(rank_residual(x)), 4), float(rank_residual(x, relative=True))
  (7.0711, 1.0)
  """
  x = wide(x)
  residual = _frobenius(_centred(x))
  if not relative:
    return residual
  return divide(residual, _frobenius(x))


def effective_rank(x: Float[Array, "*B T D"]) -> Float[Array, "*B"]:
  """How many directions the rows use, by the entropy of singular values.

      exp(-sum_j p_j log p_j),   p_j = s_j / sum_k s_k

  Roy and Vetterli, definition 1. Not centred: a common mean row is one of
  the directions. O(T D min(T, D)) each, as is every measure of a spectrum.

  Args:
    x: one row a token.

  Returns:
    Between 1 and min(T, D); 0 for a zero matrix.

  >>> import jax.numpy as jnp
  >>> round(float(effective_rank(jnp.eye(3))), 4)
  3.0
  """
  s = _singular_values(x)
  count = jnp.exp(_entropy(_shares(s)))
  # exp(0) = 1 direction would be the answer for a zero matrix, which has none.
  return jnp.where(s[..., 0] == 0, jnp.zeros_like(count), count)


def stable_rank(x: Float[Array, "*B T D"]) -> Float[Array, "*B"]:
  """`||X||_F^2 / ||X||_2^2`: the rank that small singular values barely move.

  Args:
    x: one row a token.

  Returns:
    Between 1 and the rank; 0 for a zero matrix.

  >>> import jax.numpy as jnp
  >>> round(float(stable_rank(jnp.diag(jnp.array([2.0, 1.0, 1.0])))), 4)
  1.5
  """
  s = _singular_values(x)
  ratio = divide(s, s[..., :1])  # squares of large values would overflow
  return jnp.sum(ratio * ratio, axis=-1)


def spectral_entropy(
  x: Float[Array, "*B T D"], *, gram: bool = False
) -> Float[Array, "*B"]:
  """Entropy of the squared singular values, in nats.

      H = -sum_j p_j log p_j,   p_j = s_j^2 / ||X||_F^2

  Queipo-de-Llano et al. A massive first row brings it near 0. Not centred;
  whether the authors divide by log min(T, D) is not known to us: we do not.

  Args:
    x: one row a token.
    gram: from the eigenvalues of X X^T, or X^T X where that is smaller: four
      times as fast on a CPU, with shares that are right to the precision of the
      type, 1e-7 in float32, in place of the square of that.

  Returns:
    Between 0 and log min(T, D); 0 for a zero matrix.

  >>> import jax.numpy as jnp
  >>> round(float(spectral_entropy(jnp.eye(4))), 4)
  1.3863
  """
  if gram:
    return _entropy(_shares(_squared_singular_values(x)))
  s = _singular_values(x)
  ratio = divide(s, s[..., :1])
  return _entropy(_shares(ratio * ratio))


def first_row_share(x: Float[Array, "*B T D"]) -> Float[Array, "*B"]:
  """The part of all squares that lies along the first row.

      p = sum_t (x_t . u)^2 / ||X||_F^2,   u = x_0 / ||x_0||

  A Rayleigh quotient, so at most s_1^2 / ||X||_F^2: a lower bound of the
  largest share in `spectral_entropy`, and all that a massive first token says
  about the spectrum. With M = ||x_0||^2, R the squares of the other rows and
  alpha their part along u, p = (M + alpha R) / (M + R), as in Queipo-de-Llano
  et al. (2510.06477), our reading. O(T D).

  Args:
    x: one row a token.

  Returns:
    In [0, 1]; 0 where the first row is zero.

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  >>> round(float(first_row_share(x)), 4)
  0.8333
  """
  x = wide(x)
  # Over the largest number: squares of large values would overflow.
  x = divide(x, jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
  first = divide(x[..., 0, :], _norm(x[..., 0, :], 2)[..., None])
  along = jnp.sum(x * first[..., None, :], axis=-1)
  return divide(jnp.sum(along * along, axis=-1), jnp.sum(x * x, axis=(-2, -1)))


def entropy_bound(share: Float[Array, "*B"], rank: int) -> Float[Array, "*B"]:
  """The largest `spectral_entropy` that a share of one direction allows.

      H <= -p log p - (1 - p) log(1 - p) + (1 - p) log(r - 1)

  for s_1^2 / ||X||_F^2 >= p >= 1/r and rank r; below 1/r a share says nothing,
  and the bound is log r. Reached where all other singular values are equal.
  Queipo-de-Llano et al. (2510.06477), our reading.

  Args:
    share: p, in [0, 1], of `first_row_share`.
    rank: r, at most min(T, D).

  Raises:
    ValueError: for a rank below 1.

  >>> import jax.numpy as jnp
  >>> [f"{x:.3f}" for x in entropy_bound(jnp.array([0.0, 0.25, 1.0]), 4)]
  ['1.386', '1.386', '0.000']
  """
  if rank < 1:
    raise ValueError(f"rank must be at least 1, got {rank}")
  p = jnp.clip(wide(jnp.asarray(share)), 1 / rank, 1)
  two = _entropy(jnp.stack([p, 1 - p], axis=-1))
  return two + (1 - p) * math.log(max(rank - 1, 1))


def mean_cosine(x: Float[Array, "*B T D"]) -> Float[Array, "*B"]:
  """Mean cosine between two distinct rows.

      1 / (T (T - 1)) * sum_{s != t} x_s . x_t / (||x_s|| ||x_t||)

  By ||sum of unit rows||^2, O(T D), not the [T, T] matrix. A zero row's
  cosine with any other counts as 0.

  Args:
    x: one row a token.

  Returns:
    In [-1 / (T - 1), 1]; NaN for T = 1: there is no pair.

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])
  >>> round(float(mean_cosine(x)), 4)
  0.3333
  """
  x = wide(x)
  length = x.shape[-2]
  if length == 1:
    return jnp.full(x.shape[:-2], jnp.nan, x.dtype)
  # sum over pairs of u_s . u_t = |sum u|^2 - sum |u|^2
  unit = divide(x, _norm(x, 2)[..., None])
  total = jnp.sum(unit, axis=-2)
  pairs = jnp.sum(total * total, axis=-1) - jnp.sum(unit * unit, axis=(-2, -1))
  return pairs / (length * (length - 1))


def representational_gap(
  x: Float[Array, "*B T D"], *, order: int | float = 2
) -> Float[Array, "*B G"]:
  """How far each token is from the one before: `||x_t - x_{t-1}||`.

  The last entry, for the last token, is what representational collapse sends
  to 0 (Barbero et al. 2504.02732, section 3; our reading of the wording).

  Args:
    x: one row a token.
    order: 1, 2 or inf.

  Returns:
    [*B, T - 1] norms for t = 1 .. T - 1, empty for T = 1.

  Raises:
    ValueError: for another order.

  >>> import jax.numpy as jnp
  >>> representational_gap(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
  [5.0]
  """
  x = wide(x)
  return _norm(x[..., 1:, :] - x[..., :-1, :], order)


def collapse_bound(
  x: Float[Array, "*B T D"], *, constant: str = "sharp"
) -> Float[Array, "*B"]:
  """The largest gap that the rank residual allows between any two rows.

      ||x_t - x_s||_2 <= c ||X - 1 m^T||_F

  "Rank collapse implies representational collapse", proposition 3.1 of
  Barbero et al. (2504.02732; our reading), with c = 2 by the triangle
  inequality. Since the deviations a and b of two rows satisfy a^2 + b^2 <=
  F^2, a + b <= sqrt(2) F: the sharp constant, reached by rows u, -u and zeros.
  The converse fails: two rows can agree while the others differ.

  Args:
    x: one row a token.
    constant: "sharp" for sqrt(2), "paper" for 2.

  Returns:
    An upper bound of every `representational_gap` at order 2.

  Raises:
    ValueError: for another constant.

  >>> import jax.numpy as jnp
  >>> x = jnp.array([[1.0], [-1.0]])
  >>> round(float(collapse_bound(x)), 4), representational_gap(x).tolist()
  (2.0, [2.0])
  """
  if constant not in CONSTANTS:
    raise ValueError(
      f"constant must be one of {list(CONSTANTS)}, got {constant!r}"
    )
  return CONSTANTS[constant] * rank_residual(x)


def _centred(x: Float[Array, "..."]) -> Array:
  return x - jnp.mean(x, axis=-2, keepdims=True)


def _frobenius(x: Float[Array, "..."]) -> Array:
  return root(jnp.sum(x * x, axis=(-2, -1)))


def _norm(x: Float[Array, "..."], order: int | float) -> Array:
  """The 1-, 2- or inf-norm over the last axis."""
  if order not in ORDERS:
    raise ValueError(f"order must be one of {list(ORDERS)}, got {order!r}")
  if order == 1:
    return jnp.sum(jnp.abs(x), axis=-1)
  if order == 2:
    return root(jnp.sum(x * x, axis=-1))
  return jnp.max(jnp.abs(x), axis=-1)


def _singular_values(x: Float[Array, "..."]) -> Array:
  values = functools.partial(jnp.linalg.svd, compute_uv=False)
  return each_matrix(values, wide(x))


def _squared_singular_values(x: Float[Array, "..."]) -> Array:
  """[*B, min(T, D)] in units of the largest number of the matrix."""
  x = wide(x)
  x = divide(x, jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True))
  if x.shape[-2] > x.shape[-1]:
    x = jnp.swapaxes(x, -2, -1)
  # A product of lower precision would make shares of rounding.
  products = jnp.matmul(x, jnp.swapaxes(x, -2, -1), precision="highest")
  # Rounding may make an eigenvalue of 0 a little less than that.
  return jnp.maximum(each_matrix(jnp.linalg.eigvalsh, products), 0)


def _shares(x: Float[Array, "..."]) -> Array:
  return divide(x, jnp.sum(x, axis=-1, keepdims=True))


def _entropy(p: Float[Array, "..."]) -> Array:
  # 0 log 0 counts as 0, its limit; as computed it would be NaN.
  return -jnp.sum(p * jnp.log(jnp.where(p > 0, p, 1)), axis=-1)


COLLAPSE_MEASURES = (
  "mean cosine",
  "rank residual",
  "effective rank",
  "smallest gap",
)
"""What `collapse_measures` returns, in its order."""


def collapse_measures(x: Float[Array, "*B T D"]) -> Float[Array, "*B 4"]:
  """`COLLAPSE_MEASURES` of tokens 1 to T - 1: position 0 is a case apart.

  Args:
    x: one row a token.

  Returns:
    The mean cosine; the rank residual, relative; the effective rank over its
    maximum; and the smallest gap to the token before, over the norm of the
    larger of the two.
  """
  x = x[..., 1:, :]
  gap = representational_gap(x)
  norm = jnp.sqrt(jnp.sum(x * x, axis=-1))
  gap = jnp.min(gap / jnp.maximum(norm[..., 1:], norm[..., :-1]), axis=-1)
  most = min(x.shape[-2:])
  return jnp.stack(
    [
      mean_cosine(x),
      rank_residual(x, relative=True),
      effective_rank(x) / most,
      gap,
    ],
    axis=-1,
  )
