"""Bounds on how sensitive a token's output is to another's input.

A layer maps x_t to y_t = x_t + sum_h W_O^h sum_s a_ts^h v_s^h and on to
psi(y_t) + y_t. If `steps[l, t, s]` bounds the norm of layer l's Jacobian block
d x_t^{l+1} / d x_s^l, then the sum over causal paths

    ||d x_t^L / d x_s^0|| <= sum_{k} steps[L-1, t, k_{L-1}] ... steps[0, k_1, s]

is entry (t, s) of a matrix product. Builders return the logs of such steps,
`log_path_sum` multiplies them. All is in natural logs, and the log of zero is
-inf: a path that does not exist.

Gains are operator 2-norms of a token's own derivatives, measured at the point
at which the Jacobian is taken:

    copy_gain[l, h, s]  ||W_O^h W_V^h N'(x_s)||, N the norm before attention
    mlp_gain[l, t]      ||d x_t^{l+1} / d y_t||, at most 1 + Lip(psi)

Any global constant that is at least as large serves too. H counts from
`pattern`; positions and layers count from 0.

Sources: Barbero et al. (2025, arXiv 2504.02732), theorem 3.2; Barbero et al.
(2024, arXiv 2406.04267), theorem 5.1. What the softmax adds is our
derivation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def path_counts(length: int, depth: int) -> np.ndarray:
  """How many causal paths of `depth` steps lead from token s to token t.

      tril(1)^depth [t, s] = binom(t - s + depth - 1, depth - 1)

  A path may stay or go to any later token at each step. Exact, in Python
  integers. O(T^3 log depth).

  Args:
    length: T.
    depth: number of steps, that is layers.

  Returns:
    [T, T] array of dtype object, zero above the diagonal.

  Raises:
    ValueError: if either is less than 1.

  >>> path_counts(3, 2).tolist()
  [[1, 0, 0], [2, 1, 0], [3, 2, 1]]
  """
  if length < 1 or depth < 1:
    raise ValueError(
      f"length and depth must be at least 1, got {length} and {depth}"
    )
  # Python integers: the counts pass 2^63 at some dozens of tokens and layers.
  step = np.tril(np.ones((length, length), int)).astype(object)
  return np.linalg.matrix_power(step, depth)


def log_path_sum(log_steps: Float[Array, "L T S"]) -> Float[Array, "T S"]:
  """Log of the sum over all paths of the product of their steps.

      log (M^{L-1} ... M^1 M^0)[t, s],   M^l = exp(log_steps[l])

  Layer 0 is applied first, so it stands on the right. Each product is a
  log-sum-exp, and after each layer the largest entry is taken out and summed
  apart: nothing overflows, no path is lost however small, and the entries
  keep their precision relative to the largest. The gradient with respect to a
  step is the share of the sum that passes through it. O(L T^3) time and
  O(T^2) memory beyond the steps.

  Args:
    log_steps: log of one bound for each layer, query and key; -inf for none.

  Returns:
    Log of the bound for each query t and key s, -inf where no path leads.

  Raises:
    ValueError: for steps that are not square, or no layer.

  >>> import jax.numpy as jnp
  >>> steps = jnp.log(jnp.array([[[1.0, 0.0], [3.0, 2.0]]] * 2))
  >>> jnp.exp(log_path_sum(steps)).round().astype(int).tolist()
  [[1, 0], [9, 4]]
  """
  layers, queries, keys = log_steps.shape
  if queries != keys or layers == 0:
    raise ValueError(
      f"log_steps must be [L, T, T] with L >= 1, got {log_steps.shape}"
    )

  def layer(paths: Array, step: Array) -> tuple[Array, Array]:
    def row(log_row: Array) -> Array:
      return _log_sum(log_row[:, None] + paths)

    return _renormalise(jax.lax.map(row, step))

  steps, scales = jax.vmap(_renormalise)(log_steps)
  paths, more = jax.lax.scan(layer, steps[0], steps[1:])
  return paths + (jnp.sum(scales) + jnp.sum(more))


def paper_steps(
  pattern: Float[Array, "L H T S"], *, constant: Float[Array, "*L"] | float
) -> Float[Array, "L T S"]:
  """Log steps of Barbero et al.'s bound.

      C (sum_h |a_ts^h| + delta_ts / H)

  Our reading of theorem 3.2 of arXiv 2504.02732, C_max^L times the sum over
  paths of abar. It holds for frozen attention (a constant in the input) and
  for a C that absorbs the residual stream: see `paper_constant`.

  Args:
    pattern: attention probabilities of every layer and head.
    constant: C, one for all layers or [L]; positive.

  Returns:
    Log steps for `log_path_sum`.

  Raises:
    ValueError: for constants that are not one for each layer.

  >>> import jax.numpy as jnp
  >>> pattern = jnp.array([[[[1.0, 0.0], [0.5, 0.5]]]])
  >>> jnp.exp(paper_steps(pattern, constant=2.0)).round().astype(int).tolist()
  [[[4, 0], [1, 3]]]
  """
  layers, heads, length, _ = pattern.shape
  constant = jnp.asarray(constant, pattern.dtype)
  if constant.shape not in ((), (layers,)):
    raise ValueError(
      f"constant must be a scalar or have shape ({layers},), "
      f"got {constant.shape}"
    )
  mixing = jnp.sum(jnp.abs(pattern), axis=1)
  steps = mixing + _stay(mixing, jnp.full((layers, length), 1 / heads))
  constant = jnp.broadcast_to(constant, (layers,))
  return _log(constant)[:, None, None] + _log(steps)


def paper_constant(
  copy_gain: Float[Array, "L H S"],
  mlp_gain: Float[Array, "L T"],
  *,
  absorb_residual: bool = True,
) -> Float[Array, ""]:
  """A C at which `paper_steps` follows from the gains.

      C = max_l  max_t mlp_gain[l, t] * max(H, max_{h, s} copy_gain[l, h, s])

  A step is at most mlp_gain (delta + sum_h copy_gain a), and C (sum_h a +
  delta / H) is at least that if C >= mlp_gain * copy_gain and C / H >=
  mlp_gain. Without the second, the bound leaves out that the residual stream
  passes a token on with gain 1, and is violated: the product
  mlp_gain * copy_gain alone, "the Lipschitz constant of attention", is kept
  to show it. Our derivation.

  Args:
    copy_gain: norms of the heads' copying maps at each token.
    mlp_gain: norms of the MLP's derivative with its skip connection.
    absorb_residual: whether C covers the residual stream.

  Returns:
    C_max, the greatest over layers.

  >>> import jax.numpy as jnp
  >>> copy, mlp = jnp.full((1, 4, 3), 0.5), jnp.full((1, 3), 2.0)
  >>> float(paper_constant(copy, mlp))
  8.0
  >>> float(paper_constant(copy, mlp, absorb_residual=False))
  1.0
  """
  copy = jnp.max(copy_gain, axis=(1, 2))
  if absorb_residual:
    # The residual part of a step is C / H, which must be at least its gain.
    copy = jnp.maximum(copy, copy_gain.shape[1])
  return jnp.max(jnp.max(mlp_gain, axis=1) * copy)


def frozen_steps(
  pattern: Float[Array, "L H T S"],
  copy_gain: Float[Array, "L H S"],
  *,
  mlp_gain: Float[Array, "L T"],
) -> Float[Array, "L T S"]:
  """Log steps of the tight bound for frozen attention.

      mlp_gain_t (delta_ts + sum_h copy_gain_hs |a_ts^h|)

  The triangle inequality on a layer's block with a held constant, as the
  precursor assumes (Barbero et al. 2406.04267, theorem 5.1, with its beta and
  sigma replaced by measured gains). Exact if all maps are multiples c >= 0 of
  the identity. Where attention depends on the input it is no bound: see
  `full_steps`.

  Args:
    pattern: attention probabilities of every layer and head.
    copy_gain: norms of the heads' copying maps at each token.
    mlp_gain: norms of the MLP's derivative with its skip connection.

  Returns:
    Log steps for `log_path_sum`.

  >>> import jax.numpy as jnp
  >>> pattern = jnp.array([[[[1.0, 0.0], [0.5, 0.5]]]])
  >>> copy, mlp = jnp.full((1, 1, 2), 4.0), jnp.array([[1.0, 10.0]])
  >>> steps = frozen_steps(pattern, copy, mlp_gain=mlp)
  >>> jnp.exp(steps).round().astype(int).tolist()
  [[[5, 0], [20, 30]]]
  """
  mixing = jnp.sum(jnp.abs(pattern) * copy_gain[:, :, None, :], axis=1)
  return (
    _log(mixing + _stay(mixing, jnp.ones_like(mlp_gain)))
    + (_log(mlp_gain)[:, :, None])
  )


def full_steps(
  pattern: Float[Array, "L H T S"],
  copy_gain: Float[Array, "L H S"],
  *,
  mlp_gain: Float[Array, "L T"],
  key_gain: Float[Array, "L H T S"],
  query_gain: Float[Array, "L T"],
) -> Float[Array, "L T S"]:
  """Log steps of the bound that counts how attention itself moves.

      mlp_gain_t { delta_ts (1 + query_gain_t)
                   + sum_h (|a_ts^h| copy_gain_hs + key_gain_hts) }

  With scores e_tw and z_t = sum_w a_tw v_w, the softmax gives d a_tw / d e_ts =
  a_tw (delta_ws - a_ts), hence sum_w v_w d a_tw / d e_ts = a_ts (v_s - z_t).
  The score e_ts depends on x_s through its key and on x_t through its query,
  so with k_ts = d e_ts / d x_s and q_ts = d e_ts / d x_t the block of y_t is

      d y_t / d x_s = delta_ts I
        + sum_h W_O { a_ts dv_s / dx_s + a_ts (v_s - z_t) k_ts^T
                      + delta_ts sum_w a_tw (v_w - z_t) q_tw^T }

  and the triangle inequality gives the steps, with the rank-one term's norm
  a product:

      key_gain[l, h, t, s] = ||W_O^h dz_t / d e_ts|| ||k_ts||
                           = a_ts ||W_O^h (v_s - z_t)|| ||k_ts||
      query_gain[l, t] = ||sum_h W_O^h sum_w a_tw (v_w - z_t) q_tw^T||

  Our derivation; holds for a softmax with a further constant in its
  denominator as well. Both additions carry a_ts or delta_ts: attention that
  goes to the first token lowers this bound too. Where the pattern is edited,
  the first line of key_gain holds and the second does not: a weight that is
  set to zero leaves the score its part in the other weights.

  Args:
    pattern: attention probabilities of every layer and head.
    copy_gain: norms of the heads' copying maps at each token.
    mlp_gain: norms of the MLP's derivative with its skip connection.
    key_gain: as above.
    query_gain: as above.

  Returns:
    Log steps for `log_path_sum`.

  >>> import jax.numpy as jnp
  >>> pattern = jnp.array([[[[1.0, 0.0], [0.5, 0.5]]]])
  >>> copy, mlp, query = jnp.ones((1, 1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2))
  >>> steps = full_steps(
  ...   pattern, copy, mlp_gain=mlp, key_gain=6 * pattern**2, query_gain=query
  ... )
  >>> jnp.exp(steps).round().astype(int).tolist()
  [[[9, 0], [2, 4]]]
  """
  mixing = jnp.abs(pattern) * copy_gain[:, :, None, :] + key_gain
  mixing = jnp.sum(mixing, axis=1)
  return (
    _log(mixing + _stay(mixing, 1 + query_gain)) + (_log(mlp_gain)[:, :, None])
  )


def looseness(
  log_bound: Float[Array, "*B T S"], norms: Float[Array, "*B T S"]
) -> Float[Array, "*B T S"]:
  """How many decades a bound lies above the truth.

      log10(bound / norm)

  Args:
    log_bound: natural log, as `log_path_sum` returns it.
    norms: norms of the true Jacobian's blocks.

  Returns:
    Decades, negative where the bound is violated; NaN where either is zero.

  >>> import jax.numpy as jnp
  >>> bound = jnp.log(jnp.array([[10.0, 0.0]]))
  >>> looseness(bound, jnp.array([[0.1, 0.0]])).round(4).tolist()
  [[2.0, nan]]
  """
  defined = (norms > 0) & (log_bound > -jnp.inf)
  decades = (log_bound - _log(norms)) / math.log(10)
  return jnp.where(defined, decades, jnp.nan)


def violations(
  log_bound: Float[Array, "*B T S"],
  norms: Float[Array, "*B T S"],
  *,
  tolerance: float = 1e-4,
) -> Int[Array, "*B"]:
  """How many entries exceed their bound.

      sum_ts 1[norm_ts > bound_ts (1 + tolerance)]

  An entry that is NaN on either side counts: it shows nothing.

  Args:
    log_bound: natural log, as `log_path_sum` returns it.
    norms: norms of the true Jacobian's blocks.
    tolerance: relative. By default what float32 rounding of norms and of path
      sums through some dozens of layers comes to.

  Returns:
    The count, the two last axes reduced; 0 for a bound that holds.

  >>> import jax.numpy as jnp
  >>> bound = jnp.log(jnp.array([[1.0, 0.0], [1.0, 1.0]]))
  >>> int(violations(bound, jnp.array([[1.0, 0.0], [1.1, 0.5]])))
  1
  """
  # Asked as "held" and negated, because a comparison with NaN is false.
  held = _log(norms) <= log_bound + math.log1p(tolerance)
  return jnp.sum(~held, axis=(-2, -1))


def _log(x: Float[Array, "..."]) -> Array:
  """The log, -inf at 0 with gradient 0; NaN stays, and below 0 is NaN."""
  zero = x == 0
  return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, x)))


def _stay(
  mixing: Float[Array, "L T S"], gain: Float[Array, "L T"]
) -> Float[Array, "L T S"]:
  """`gain` [L, T] on the diagonal of zeros like mixing [L, T, S]."""
  queries, keys = mixing.shape[1:]
  if queries != keys:
    raise ValueError(f"pattern must be [L, H, T, T], got T, S = {mixing.shape}")
  eye = jnp.eye(queries, dtype=mixing.dtype)
  return gain[:, :, None].astype(mixing.dtype) * eye[None]


def _log_sum(logs: Float[Array, "N S"]) -> Float[Array, "S"]:
  """log sum exp over axis 0, with gradient 0 where every log is -inf."""
  less, top = jax.vmap(_renormalise, 1, (1, 0))(logs)
  return _log(jnp.sum(jnp.exp(less), axis=0)) + top


def _renormalise(logs: Float[Array, "..."]) -> tuple[Array, Array]:
  """(logs less their maximum, the maximum), which is 0 if there is none."""
  # A shift cancels in the sum, and so does its gradient.
  top = jax.lax.stop_gradient(jnp.max(logs))
  top = jnp.where(jnp.isfinite(top), top, 0)
  return logs - top, top
