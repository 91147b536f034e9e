"""Keys in a few bits, and a bound of the error of a score from them.

For an invertible matrix A and B = A^-1, a key k_j stored as k'_j has the error
e_j = k_j - k'_j, and its score with any query q the error

    |q k_j - q k'_j| = |(A^T q) (B e_j)| <= ||A^T q|| ||B e_j||.

The second factor is one number per key. The bound holds for every A, which
only decides how tight it is. With the second moments S_q of queries and S_k of
keys around the mean of their block, and S_q^1/2 S_k^1/2 = U s V^T,

    A = S_q^-1/2 U s^1/2,   E[A^T q q^T A] = E[B e e^T B^T] = diag(s)

for e the difference of a key from that mean. Of all A it has the least product
of the two factors' mean squares, (sum s)^2; A = 1 gives tr S_q tr S_k. So
dimensions that queries ignore, or in which keys do not differ, cost nothing.
For the error of a code this A is a heuristic only: that error grows with the
range of B k, not with S_k.

A code rounds B k_j, dimension by dimension, to an even grid whose two ends are
found with A on other texts; numbers beyond them are clipped. So a code depends
on its key alone.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ROUNDING = 4.0
"""Machine epsilons that the margin allows for each of K products. A sum of K
products is off by half an epsilon a product at most; two of them are compared,
and the norms in the margin are rounded as well, so 4 leaves room."""

FLOOR = 1e-3
"""Smallest singular value over the largest, so that the basis keeps an
accurate inverse in float32."""

WIDER = 0.125
"""Each end of a grid is moved out by this share of the range that was seen. A
key beyond it is clipped, which makes its block's bound loose; a wider grid has
coarser steps."""


class Codec(NamedTuple):
  """A basis and a grid; leading axes are those of KV heads, layers.

  Attributes:
    basis: [..., K, K] A.
    inverse: [..., K, K] B.
    low: [..., K] the grid's lower ends, of B k.
    high: [..., K] its upper ends.
    safe: [...] factor on ||B e|| that covers the rounding of B = A^-1.
  """

  basis: Float[Array, "N K K"]
  inverse: Float[Array, "N K K"]
  low: Float[Array, "N K"]
  high: Float[Array, "N K"]
  safe: Float[Array, "N"]


def fit_codec(
  q: Float[np.ndarray, "B T H K"],
  k: Float[np.ndarray, "B T N K"],
  *,
  block: int = 16,
) -> Codec:
  """Fits the balanced basis of each KV head and the ends of its grid.

  Args:
    q: queries of texts to fit on, as they enter the product.
    k: their keys; the first of each text is left out.
    block: keys around one mean.

  Raises:
    ValueError: for a text shorter than two blocks, heads that do not fit, or
      keys that are all equal.

  Cost: O(B T H K^2 + N K^3), in float64 on the host.
  """
  q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
  (batch, length, heads, width), each = q.shape, k.shape[2]
  if length < 2 * block or k.shape[:2] != q.shape[:2] or heads % each:
    raise ValueError(
      f"queries [B, T, H, K] and keys [B, T, N, K] of at least {2 * block} "
      f"tokens with N dividing H are needed, got {q.shape} and {k.shape}"
    )
  many = length // block - 1  # the first block has the first key
  gap = k[:, block : block * (many + 1)]
  gap = gap.reshape(batch, many, block, each, width)
  gap = (gap - gap.mean(axis=2, keepdims=True)).reshape(-1, each, width)
  q = q.reshape(-1, each, heads // each, width)
  parts = []
  for n in range(each):
    basis = _balanced(_moment(q[:, n].reshape(-1, width)), _moment(gap[:, n]))
    # Rounded before it is inverted: the inverse is of the basis that is used.
    basis = basis.astype(np.float32).astype(np.float64)
    inverse = np.linalg.inv(basis).astype(np.float32).astype(np.float64)
    defect = np.linalg.norm(inverse @ basis - np.eye(width))
    # Below 1 the Neumann series bounds the true inverse; 0.5 leaves room.
    if not defect < 0.5:
      raise ValueError(f"KV head {n}: the basis cannot be inverted")
    # Without the first key, which is read exactly and lies far outside.
    seen = k[:, 1:, n].reshape(-1, width) @ inverse.T
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = WIDER * (high - low)
    parts.append((basis, inverse, low - room, high + room, 1 / (1 - defect)))
  return Codec(
    *(np.asarray(np.stack(x), np.float32) for x in zip(*parts, strict=True))
  )


def _moment(x: np.ndarray) -> np.ndarray:
  return x.T @ x / len(x)


def _root(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(S^1/2, S^-1/2), small eigenvalues raised."""
  values, vectors = np.linalg.eigh(square)
  if not values[-1] > 0:
    raise ValueError("queries or keys do not differ, so no basis can be fitted")
  root = np.sqrt(np.maximum(values, FLOOR**2 * values[-1]))
  return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _balanced(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
  half, back = _root(queries)
  u, s, _ = np.linalg.svd(half @ _root(keys)[0])
  return back @ u * np.sqrt(np.maximum(s, FLOOR * s[0]))


def coded(
  k: Float[Array, "S K"], codec: Codec, bits: int
) -> tuple[Float[Array, "S K"], Float[Array, "S"]]:
  """One head's keys as their codes give them, and the error of each.

  Args:
    k: keys of one KV head.
    codec: that head's.
    bits: of each number of a code, 1 to 16.

  Returns:
    (k'_j, r_j): `||B e_j|| <= r_j`, rounding included.

  Raises:
    ValueError: for other bits.
  """
  if not 1 <= bits <= 16:
    raise ValueError(f"bits must be 1 to 16, got {bits}")
  most = 2**bits - 1
  low, step = codec.low[None], (codec.high - codec.low)[None] / most
  step = jnp.where(step > 0, step, 1)
  code = jnp.round((k @ codec.inverse.T - low) / step)
  code = jnp.clip(code, 0, most)  # the integers that would be stored
  near = (low + step * code) @ codec.basis.T
  return near, key_error_norm(k, near, codec)


def key_error_norm(
  k: Float[Array, "... K"], near: Float[Array, "... K"], codec: Codec
) -> Float[Array, "..."]:
  """`||B (k - k')||` of one head, rounded up."""
  unit = ROUNDING * k.shape[-1] * jnp.finfo(k.dtype).eps
  size = jnp.sqrt(jnp.sum(codec.inverse**2))
  off = jnp.linalg.norm((k - near) @ codec.inverse.T, axis=-1)
  rough = jnp.linalg.norm(k, axis=-1) + jnp.linalg.norm(near, axis=-1)
  return codec.safe * (off + unit * size * rough)


def query_norm(q: Float[Array, "T K"], codec: Codec) -> Float[Array, "T"]:
  """`||A^T q||` of one head, rounded up."""
  unit = ROUNDING * q.shape[-1] * jnp.finfo(q.dtype).eps
  size = jnp.sqrt(jnp.sum(codec.basis**2))
  seen = jnp.linalg.norm(q @ codec.basis, axis=-1)
  return seen + unit * size * jnp.linalg.norm(q, axis=-1)
