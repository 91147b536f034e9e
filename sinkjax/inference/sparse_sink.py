"""Bounds of the attention that a query puts on keys other than the first.

A query that puts nearly all of its attention on the first key reads v_0 and
little else. How much else is bounded before its scores are computed: from the
exact score of the first key, and one summary for each block of keys.

For query t let s_j = scale q_t k_j, and e^{s_0} be the first key's weight. With

    R = sum_{1 <= j <= t} e^{s_j},   1 - p_t0 = R / (e^{s_0} + R),

the mass 1 - p_t0 grows with R, so an upper bound of R gives one of it. In a
block C of keys with centroid c, radius r = max_j ||k_j - c|| and ranges
lo_d <= k_jd <= hi_d, every score is at most

    u_C = min(scale (q c + ||q|| r), scale sum_d max(q_d lo_d, q_d hi_d))

by Cauchy and Schwarz, and dimension by dimension. So R <= sum_C n_C e^{u_C},
n_C the keys of C that t sees: leaving some out lowers R, never a u_C.

A query of small mass may read v_0 in place of z_t = p_t0 v_0 + sum_{j>0} p_tj
v_j. As the weights sum to 1,

    z_t - v_0 = sum_{j>0} p_tj (v_j - v_0),
    ||z_t - v_0|| <= (1 - p_t0) max_{0<j<=t} ||v_j - v_0||.

Sharp edges:
  A margin for rounding is part of u_C. `scale` must be positive, and T a
  multiple of the block; softmax attention alone, without window, soft cap,
  sink logit or padding.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.inference.key_codes import ROUNDING
from sinkjax.models.normalizers import MASKED


def exact_products(function: Callable) -> Callable:
  """Products in the inputs' own precision on any device, which the margins of
  rounding rely on; half precision is widened to float32 before."""

  def widened(x):
    half = getattr(x, "dtype", None) in (jnp.bfloat16, jnp.float16)
    return x.astype(jnp.float32) if half else x

  @functools.wraps(function)
  def run(*args, **keywords):
    args, keywords = jax.tree.map(widened, (args, keywords))
    with jax.default_matmul_precision("highest"):
      return function(*args, **keywords)

  return run


def _check(q: Array, k: Array, block: int, name: str) -> None:
  if block < 1 or q.shape[1] % block:
    raise ValueError(f"{name} must divide the length {q.shape[1]}, got {block}")
  if k.shape[1] != q.shape[1] or q.shape[2] % k.shape[2]:
    raise ValueError(
      f"queries [B, T, H, K] and keys [B, T, N, K] with N dividing H are "
      f"needed, got {q.shape} and {k.shape}"
    )


def _by_head(x: Array, heads: int) -> Float[Array, "B H T K"]:
  return jnp.swapaxes(jnp.repeat(x, heads // x.shape[2], axis=2), 1, 2)


@exact_products
def score_tops(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B S N K"],
  *,
  scale: float,
  key_block: int,
) -> Float[Array, "B H T C"]:
  """u_C: an upper bound of the scores in block C, without the first key.

  Args:
    q: queries, as they enter the product.
    k: keys, likewise.
    scale: of the product, positive.
    key_block: keys in a block, a divisor of S.

  Cost: O(3 T S K / key_block) for each head, against T S K of the scores.
  """
  batch, heads, width = q.shape[0], q.shape[2], q.shape[3]
  q = jnp.swapaxes(q, 1, 2)
  keys = _by_head(k, heads)
  blocks = keys.reshape(batch, heads, -1, key_block, width)
  # the first key is no part of its block; where it is alone, n_C is zero
  inside = jnp.arange(k.shape[1]).reshape(-1, key_block) > 0
  inside = inside[None, None, :, :, None]
  count = jnp.maximum(inside.sum(axis=3), 1)
  center = jnp.sum(jnp.where(inside, blocks, 0), axis=3) / count
  gap = jnp.where(inside, blocks - center[:, :, :, None], 0)
  radius = jnp.sqrt(jnp.max(jnp.sum(gap * gap, axis=-1), axis=-1))
  high = jnp.max(jnp.where(inside, blocks, MASKED), axis=3)
  low = jnp.min(jnp.where(inside, blocks, -MASKED), axis=3)
  alone = ~jnp.any(inside, axis=3)
  high, low = jnp.where(alone, 0, high), jnp.where(alone, 0, low)
  size = jnp.sqrt(jnp.sum(q * q, axis=-1))[..., None]
  ball = jnp.einsum("bhtk,bhck->bhtc", q, center) + size * radius[:, :, None]
  box = jnp.einsum("bhtk,bhck->bhtc", jnp.maximum(q, 0), high)
  box = box + jnp.einsum("bhtk,bhck->bhtc", jnp.minimum(q, 0), low)
  wide = jnp.sqrt(jnp.sum(jnp.maximum(abs(high), abs(low)) ** 2, axis=-1))
  sink = jnp.sqrt(jnp.sum(keys[:, :, 0] ** 2, axis=-1))[:, :, None, None]
  unit = ROUNDING * width * jnp.finfo(q.dtype).eps
  margin = unit * size * (wide[:, :, None] + radius[:, :, None] + sink)
  return scale * (jnp.minimum(ball, box) + margin)


@exact_products
def nonsink_mass_bound(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  *,
  scale: float,
  key_block: int = 16,
) -> Float[Array, "B H T"]:
  """An upper bound of `1 - p_t0`, from key blocks' summaries.

  Args:
    q: queries, as they enter the product.
    k: keys, likewise.
    scale: of the product, positive.
    key_block: keys in a summary.

  Raises:
    ValueError: for a block that does not divide T, or heads that do not fit.

  Cost: O(3 T^2 K / key_block) for each head, against T^2 K of the scores.
  """
  _check(q, k, key_block, "key_block")
  length, heads, width = q.shape[1:]
  top = score_tops(q, k, scale=scale, key_block=key_block)
  first = jnp.repeat(k[:, 0], heads // k.shape[2], axis=1)
  first = scale * jnp.einsum("bthk,bhk->bht", q, first)
  unit = ROUNDING * width * jnp.finfo(q.dtype).eps
  at, start = jnp.arange(length)[:, None], jnp.arange(0, length, key_block)
  seen = jnp.clip(at - start[None] + 1, 0, key_block)
  seen = seen - (start == 0)[None]
  logs = jnp.where(seen > 0, jnp.log(jnp.maximum(seen, 1)), MASKED)
  logs = top + logs[None, None].astype(q.dtype)
  total = jax.nn.logsumexp(logs, axis=-1)
  bound = jax.nn.sigmoid(total - first) * (1 + unit)
  return jnp.minimum(bound, 1).at[:, :, 0].set(0)


@exact_products
def nonsink_mass(
  q: Float[Array, "B T H K"], k: Float[Array, "B T N K"], *, scale: float
) -> Float[Array, "B H T"]:
  """`1 - p_t0` itself, from all scores."""
  keys = _by_head(k, q.shape[2])
  scores = scale * jnp.einsum("bthk,bhsk->bhts", q, keys)
  mask = jnp.tri(q.shape[1], dtype=bool).at[:, 0].set(False)[None, None]
  total = jax.nn.logsumexp(jnp.where(mask, scores, MASKED), axis=-1)
  return jax.nn.sigmoid(total - scores[..., 0]).at[:, :, 0].set(0)


def whole_blocks(
  mass: Float[Array, "B H T"], tolerance: float, query_block: int
) -> Bool[Array, "B H N"]:
  """The blocks of queries in which every mass is below the tolerance."""
  blocks = mass.reshape(*mass.shape[:2], -1, query_block)
  return jnp.max(blocks, axis=-1) < tolerance
