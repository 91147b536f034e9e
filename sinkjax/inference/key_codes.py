"""Keys in a few bits, and how far a score from them can be off.

For an invertible matrix A and B = A^-1, a key k_j kept as k'_j is off by
e_j = k_j - k'_j, and a score with any query by

    |q k_j - q k'_j| = |(A^T q) (B e_j)| <= ||A^T q|| ||B e_j||.

The second factor is one number of a key. Every A is right; how tight the
bound is depends on it. With the second moments S_q of queries and S_k of keys
around the mean of their block, and S_q^1/2 S_k^1/2 = U s V^T,

    A = S_q^-1/2 U s^1/2,   E[A^T q q^T A] = E[B e e^T B^T] = diag(s)

for e what a key differs from that mean by; of all A it has the least product
of the two factors' mean squares, (sum s)^2; A = 1 gives tr S_q tr S_k.
Dimensions in which queries see nothing then cost nothing, and those in which
keys do not differ neither. For what a code is off by it is a good guess, since
that goes with the range of B k, not with S_k.

A code is what B k_j is, dimension by dimension, on an even grid between two
ends that are found with A on other texts, and cut off beyond them. So a code
depends on its key alone.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ROUNDING = 4.0
"""The margin: so many units of rounding for each of K products."""

FLOOR = 1e-3
"""Directions are not scaled apart by more than this allows."""

WIDER = 0.125
"""Each end of a grid is moved out by this share of the range that was seen: a
key beyond it is cut off, and its block's bound is then loose."""


class Codec(NamedTuple):
  """A basis and a grid; leading axes are those of KV heads, layers.

  Attributes:
    basis: [..., K, K] A.
    inverse: [..., K, K] B.
    low: [..., K] the grid's lower ends, of B k.
    high: [..., K] its upper ends.
    safe: [...] factor by which ||B e|| covers that B is not quite A^-1.
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
  """The balanced basis of each KV head and the ends of its grid.

  Args:
    q: queries of texts to fit on, as they enter the product.
    k: their keys; the first of each text is left out.
    block: keys that have one centre.

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
    basis = basis.astype(np.float32).astype(np.float64)
    inverse = np.linalg.inv(basis).astype(np.float32).astype(np.float64)
    defect = np.linalg.norm(inverse @ basis - np.eye(width))
    if not defect < 0.5:
      raise ValueError(f"KV head {n}: a basis that has no inverse")
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
    raise ValueError("queries or keys do not differ: there is no basis")
  root = np.sqrt(np.maximum(values, FLOOR**2 * values[-1]))
  return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def _balanced(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
  half, back = _root(queries)
  u, s, _ = np.linalg.svd(half @ _root(keys)[0])
  return back @ u * np.sqrt(np.maximum(s, FLOOR * s[0]))


def coded(
  k: Float[Array, "S K"], codec: Codec, bits: int
) -> tuple[Float[Array, "S K"], Float[Array, "S"]]:
  """What codes say of one head's keys, and how far off that is.

  Args:
    k: keys of one KV head.
    codec: that head's.
    bits: of each number of a code, 1 to 16.

  Returns:
    (k'_j, reach_j): `||B e_j|| <= reach_j`, rounding included.

  Raises:
    ValueError: for other bits.
  """
  if not 1 <= bits <= 16:
    raise ValueError(f"bits must be 1 to 16, got {bits}")
  most = 2**bits - 1
  low, step = codec.low[None], (codec.high - codec.low)[None] / most
  step = jnp.where(step > 0, step, 1)
  code = jnp.round((k @ codec.inverse.T - low) / step)
  code = jnp.clip(code, 0, most)  # what is stored
  near = (low + step * code) @ codec.basis.T
  return near, reach(k, near, codec)


def reach(
  k: Float[Array, "... K"], near: Float[Array, "... K"], codec: Codec
) -> Float[Array, "..."]:
  """`||B (k - k')||` of one head, or a little more."""
  unit = ROUNDING * k.shape[-1] * jnp.finfo(k.dtype).eps
  size = jnp.sqrt(jnp.sum(codec.inverse**2))
  off = jnp.linalg.norm((k - near) @ codec.inverse.T, axis=-1)
  rough = jnp.linalg.norm(k, axis=-1) + jnp.linalg.norm(near, axis=-1)
  return codec.safe * (off + unit * size * rough)


def sight(q: Float[Array, "T K"], codec: Codec) -> Float[Array, "T"]:
  """`||A^T q||` of one head, or a little more."""
  unit = ROUNDING * q.shape[-1] * jnp.finfo(q.dtype).eps
  size = jnp.sqrt(jnp.sum(codec.basis**2))
  seen = jnp.linalg.norm(q @ codec.basis, axis=-1)
  return seen + unit * size * jnp.linalg.norm(q, axis=-1)
