"""Attention normalisers: masked scores in, weights out.

A normaliser is `f(scores, mask) -> weights`, both [..., T, S], reducing over
the last axis. It accumulates in float32 at least, gives exact zeros where the
mask is False, and never a NaN, however large the scores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""Finite stand-in for a masked score: `-inf` turns gradients into NaN."""


def softmax(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """`exp(s_j) / sum_k exp(s_k)` over the allowed keys.

  A row whose allowed scores are all equal is uniform over the allowed keys,
  also where an edit made them all hugely negative: nothing leaks to masked
  keys.

  Args:
    scores: [..., T, S].
    mask: True where key s may be seen from t; every row needs one True.

  Returns:
    Weights that sum to one over the last axis, in the dtype of `scores`.
  """
  dtype = jnp.promote_types(scores.dtype, jnp.float32)
  s = jnp.where(mask, scores.astype(dtype), MASKED)
  top = jax.lax.stop_gradient(jnp.max(s, axis=-1, keepdims=True))
  weights = jnp.where(mask, jnp.exp(s - top), 0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return (weights / total).astype(scores.dtype)
