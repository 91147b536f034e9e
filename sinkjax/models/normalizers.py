"""Attention normalisers: masked scores in, weights out.

A normaliser is `f(scores, mask) -> weights`, both [..., T, S], reducing over
the last axis. It accumulates in float32 at least, gives exact zeros where the
mask is False, and never a NaN, however large the scores. A row's weights
depend on its allowed keys alone, so a prefix gives what it gives by itself.

`NORMALIZERS` has them by name: a new one is a function and an entry there.
This module imports nothing of ours, so that `sinkjax.config` can check a name
against the table without a circle of imports.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""The score of a key that must not be seen.

Finite, because `-inf - -inf` is NaN in a row with no other key, and its
gradient is NaN wherever it stands. In float32 exp(-1e30 - s) is exactly 0 for
every score that a model can have, and bfloat16 has the same range.
"""


def softmax(
  scores: Float[Array, "*B T S"],
  mask: Bool[Array, "*#B T S"],
  sinks: Float[Array, "*#B #T 1"] | None = None,
) -> Float[Array, "*B T S"]:
  """`exp(s_j) / (exp(sink) + sum_k exp(s_k))` over the allowed keys.

  A row whose allowed scores are all equal is uniform over the allowed keys,
  also where an edit made them all hugely negative: nothing leaks to masked
  keys.

  Args:
    scores: [..., T, S].
    mask: True where key s may be seen from t; every row needs one True.
    sinks: a logit that takes weight and has no key, or `None`.

  Returns:
    Weights that sum to one over the last axis, or to less with a sink, in the
    dtype of `scores`.

  Raises:
    ValueError: for concrete scores with a row of -inf. Under a transformation
      of JAX, which hides the values, such a row becomes NaN.
  """
  s, dtype = _wide(scores, mask)
  top = jnp.max(s, axis=-1, keepdims=True)
  if sinks is not None:
    # The sink may be the largest logit, and its exponential must not overflow.
    top = jnp.maximum(top, sinks.astype(dtype))
  top = jax.lax.stop_gradient(top)  # it cancels, and so would its gradient
  weights = jnp.where(mask, jnp.exp(s - top), 0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  if sinks is not None:
    total += jnp.exp(sinks.astype(dtype) - top)
  _check_rows(top, total)
  return (weights / total).astype(scores.dtype)


def log_softmax(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """Logarithms of `softmax`; numbers of no meaning at masked keys.

  The maximum and the sum are written as they are there, and XLA takes the two
  for one.
  """
  s, _ = _wide(scores, mask)
  shift = s - jnp.max(s, axis=-1, keepdims=True)
  weights = jnp.where(mask, jnp.exp(shift), 0)
  return shift - jnp.log(jnp.sum(weights, axis=-1, keepdims=True))


def leftover(
  scores: Float[Array, "*B T S"],
  mask: Bool[Array, "*#B T S"],
  sinks: Float[Array, "*#B #T 1"],
) -> Float[Array, "*B T 1"]:
  """What `softmax` leaves to its sink: `sigmoid(sink - logsumexp(s))`.

  One minus the row's sum, without its cancellation.
  """
  s, dtype = _wide(scores, mask)
  total = jax.nn.logsumexp(s, axis=-1, keepdims=True)
  return jax.nn.sigmoid(sinks.astype(dtype) - total).astype(scores.dtype)


def softmax1(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """`exp(s_j) / (1 + sum_k exp(s_k))`: a row may sum to less than one.

  Miller (2023), Kaul et al. (2024, arXiv 2410.17174); `softmax` with a sink
  logit of 0. Arguments as there.
  """
  return softmax(scores, mask, jnp.zeros((1,) * scores.ndim))


def clipped_softmax(
  scores: Float[Array, "*B T S"],
  mask: Bool[Array, "*#B T S"],
  *,
  alpha: float = 3.0,
) -> Float[Array, "*B T S"]:
  """`clip((1 - g) softmax(s) + g, 0, 1)` with `g = -alpha / n`.

  Bondarenko et al. (2023, arXiv 2306.12929), zeta = 1. Their n is the length
  that is trained on; here it is the number of keys that the row may see, so
  that a prefix gives what it gives by itself. A row is uniform over `alpha`
  keys and more: then it is all zeros.

  Args:
    scores: [..., T, S].
    mask: as for `softmax`.
    alpha: weights below about alpha / n become exactly 0. Theirs is 2 to 4;
      3 is the middle.
  """
  dtype = jnp.promote_types(scores.dtype, jnp.float32)
  shift = -alpha / jnp.sum(mask, axis=-1, keepdims=True, dtype=dtype)
  weights = (1 - shift) * softmax(scores.astype(dtype), mask) + shift
  return jnp.where(mask, jnp.clip(weights, 0, 1), 0).astype(scores.dtype)


def sigmoid(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """`sigmoid(s_j)`; rows sum to anything (Gu et al., arXiv 2410.10781)."""
  s, _ = _wide(scores, mask)
  # sigmoid(MASKED) is 0 only by rounding; a mask must give exact zeros.
  return jnp.where(mask, ELEMENTWISE["sigmoid"](s), 0).astype(scores.dtype)


def normalized_sigmoid(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """`sigmoid(s_j) / sum_k sigmoid(s_k)` (Gu et al., arXiv 2410.10781).

  As a softmax of log-sigmoids: a row of hugely negative scores stays a row.
  """
  s, _ = _wide(scores, mask)
  return softmax(jax.nn.log_sigmoid(s), mask).astype(scores.dtype)


def elu1(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """`elu(s_j) + 1`: `s_j + 1` above 0, else `exp(s_j)`; not normalised.

  Gu et al. (2024, arXiv 2410.10781), their unnormalised form.
  """
  s, _ = _wide(scores, mask)
  return jnp.where(mask, ELEMENTWISE["elu1"](s), 0).astype(scores.dtype)


def relu(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> Float[Array, "*B T S"]:
  """`max(s_j, 0)`, not normalised (Guo et al., arXiv 2410.13835)."""
  s, _ = _wide(scores, mask)
  return jnp.where(mask, ELEMENTWISE["relu"](s), 0).astype(scores.dtype)


def softpick(
  scores: Float[Array, "*B T S"],
  mask: Bool[Array, "*#B T S"],
  *,
  eps: float = 1e-8,
) -> Float[Array, "*B T S"]:
  """`relu(exp(s_j) - 1) / (sum_k |exp(s_k) - 1| + eps)`.

  Zuhri et al. (2025, arXiv 2504.20966): exact zeros, rows that sum to one or
  less. Both are divided by exp(m) with m the largest score or 0, and eps is
  added after, as in theirs.
  """
  s, _ = _wide(scores, mask)
  # At least 0: exp(-top) below stands for the 1 that is taken off, and would
  # overflow where every score is hugely negative.
  top = jnp.maximum(jnp.max(s, axis=-1, keepdims=True), 0)
  top = jax.lax.stop_gradient(top)
  lifted = jnp.where(mask, jnp.exp(s - top) - jnp.exp(-top), 0)
  total = jnp.sum(jnp.abs(lifted), axis=-1, keepdims=True) + eps
  return (jax.nn.relu(lifted) / total).astype(scores.dtype)


NORMALIZERS: dict[str, Callable] = {
  "softmax": softmax,
  "softmax1": softmax1,
  "clipped_softmax": clipped_softmax,
  "sigmoid": sigmoid,
  "normalized_sigmoid": normalized_sigmoid,
  "elu1": elu1,
  "relu": relu,
  "softpick": softpick,
}
"""Every normaliser by the name that `ModelConfig.normalizer` has for it."""

ELEMENTWISE: dict[str, Callable] = {
  "sigmoid": jax.nn.sigmoid,
  "elu1": lambda s: jax.nn.elu(s) + 1,
  "relu": jax.nn.relu,
}
"""Normalisers whose weight depends on its own score alone, as `f(score)`."""

UNNORMALIZED = tuple(ELEMENTWISE)
"""Those whose rows may sum to more than one: metrics of shares are computed
from `metrics.sinks.attention_share` there."""


def _check_rows(top: Array, total: Array) -> None:
  """Refuses rows of -inf, where values can be seen."""
  if isinstance(total, jax.core.Tracer):
    return
  # Where a key is masked the largest score is `MASKED`, and nothing is added.
  if bool(jnp.any((top == -jnp.inf) | (total == 0))):
    raise ValueError(
      "a row of attention scores is -inf at every key that it may see, so that "
      "its softmax is not defined: keep one key, or hide keys by "
      f"{MASKED} in place of -inf"
    )


def _wide(
  scores: Float[Array, "*B T S"], mask: Bool[Array, "*#B T S"]
) -> tuple[Array, Any]:
  """(masked scores in float32 at least, that dtype)."""
  dtype = jnp.promote_types(scores.dtype, jnp.float32)
  return jnp.where(mask, scores.astype(dtype), MASKED), dtype
