"""Statistics of the rows of an attention pattern, a block of rows at a time.

Each is a `RowStatistic`, see `sinkjax.metrics.row_statistic`, and has one
definition for short and long contexts. The functions of `sinkjax.metrics.sinks`
are these statistics of a whole pattern.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import summed, wide
from sinkjax.metrics.row_statistic import Dense as Dense
from sinkjax.metrics.row_statistic import PatternSums as PatternSums
from sinkjax.metrics.row_statistic import RowBlock as RowBlock
from sinkjax.metrics.row_statistic import RowStatistic as RowStatistic
from sinkjax.metrics.row_statistic import State as State
from sinkjax.metrics.row_statistic import dense as dense
from sinkjax.metrics.row_statistic import mean_over_rows as mean_over_rows
from sinkjax.metrics.row_statistic import of_pattern as of_pattern


def _weight_on(key: int) -> Callable[[RowBlock], Array]:
  """Each row's weight on one key; 0 in a block that does not reach it."""

  def per_row(block: RowBlock) -> Array:
    if key >= block.rows.shape[-1]:
      return jnp.zeros(block.rows.shape[:-1])
    return block.rows[..., key]

  return per_row


def _of_key(statistic: RowStatistic, key: int) -> RowStatistic:
  """The same, refusing a key that no query sees."""

  def check(length: int) -> None:
    if not 0 <= key < length:
      raise ValueError(f"key must be in [0, {length}), got {key}")

  def init(batch: int, heads: int, length: int) -> State:
    check(length)
    return statistic.init(batch, heads, length)

  def of_sums(sums: PatternSums, length: int) -> Array:
    check(length)
    return statistic.of_sums(sums, length)

  return statistic._replace(init=init, of_sums=of_sums)


@functools.cache
def sink_score(*, key: int = 0) -> RowStatistic:
  """Mean attention on a key over the queries that see it, [B, H].

  See `sinkjax.sink_score`.

  Raises:
    ValueError: (by init) for a key that no query sees.
  """
  mean = mean_over_rows(
    _weight_on(key), first=max(key, 0), per_sum=lambda sums: sums.weight_on(key)
  )
  return _of_key(mean, key)


@functools.cache
def first_token_mass() -> RowStatistic:
  """Each query's attention on key 0, [B, H, T].

  See `sinkjax.first_token_mass`.
  """

  def update(state: State, block: RowBlock) -> State:
    mass = block.rows[..., 0].astype(state.dtype)
    return jax.lax.dynamic_update_slice_in_dim(state, mass, block.start, 2)

  return RowStatistic(
    _zeros,
    update,
    lambda mass, length: mass,
    of_sums=lambda sums, length: sums.weight_on(0),
  )


@functools.cache
def attention_entropy(*, normalize: bool = False) -> RowStatistic:
  """Mean entropy of the rows in nats, [B, H].

  See `sinkjax.attention_entropy`.

  Args:
    normalize: divide each row by the log of the number of keys it sees.
  """

  def per_row(block: RowBlock) -> Array:
    rows, logs = block.rows, block.logs
    if logs is None:
      logs = jnp.log(jnp.where(rows > 0, wide(rows), 1))
    entropy = -summed(jnp.where(rows > 0, rows * logs, 0), -1)
    if not normalize:
      return entropy
    return over_uniform(entropy, block.queries())

  def over_uniform(entropy: Array, queries: Array) -> Array:
    # Row 0 does not count; 2 keeps its logarithm from being a divisor of 0.
    keys = jnp.maximum(queries + 1, 2).astype(entropy.dtype)
    return entropy * (1 / jnp.log(keys))[None, None]

  def per_sum(sums: PatternSums) -> Array:
    entropy = sums.sums["entropy"]
    if not normalize:
      return entropy
    return over_uniform(entropy, jnp.arange(entropy.shape[-1]))

  return mean_over_rows(per_row, first=1, needs=("entropy",), per_sum=per_sum)


@functools.cache
def row_sum() -> RowStatistic:
  """What a query gives in all, mean over queries, [B, H]; 1 for a softmax."""
  return mean_over_rows(
    lambda block: summed(block.rows, -1),
    needs=("rows",),
    per_sum=lambda sums: sums.sums["rows"],
  )


@functools.cache
def learned_sink_mass(*, with_first: bool = False) -> RowStatistic:
  """What a query leaves to a learned sink, mean over queries, [B, H].

      learned = 1 / T * sum_t (1 - sum_s A[t, s])

  A learned sink is a logit without a key, or a learned key: it takes weight in
  the softmax and is no token, so that the rows over tokens sum to less than
  one. A row whose n scores and sink logit are all 0 leaves 1 / (n + 1). Our
  definition, a share in [0, 1]; the sinks are those of gpt-oss (arXiv
  2508.10925), of softmax1 (Miller 2023) and of the key biases of Sun et al.
  (2024, arXiv 2402.17762).

  The difference has the rounding of the sum, 1e-7 in float32: without such a
  sink it is 0 within that. It means nothing where a normaliser's rows sum to
  anything, as sigmoid's do.

  Args:
    with_first: the attention on the first token added, which is the weight
      on all sinks that are known by their place.
  """

  def per_row(block: RowBlock) -> Array:
    learned = 1 - summed(block.rows, -1)
    return learned + _weight_on(0)(block) if with_first else learned

  def per_sum(sums: PatternSums) -> Array:
    learned = 1 - sums.sums["rows"]
    return learned + sums.weight_on(0) if with_first else learned

  return mean_over_rows(per_row, needs=("rows",), per_sum=per_sum)


@functools.cache
def received_mass() -> RowStatistic:
  """How much attention each key gets from the queries that see it, [B, H, S].

      received_s = 1 / (T - s) * sum_{t = s}^{T - 1} A[t, s]

  At s = 0 this is the sink score. Source: Gu et al. (2025, arXiv 2410.10781),
  alpha of every k.
  """

  def update(state: State, block: RowBlock) -> State:
    keys = jnp.arange(block.rows.shape[-1])[None]
    seen = keys <= block.queries()[:, None]
    mass = summed(jnp.where(seen[None, None], block.rows, 0), -2)
    return state.at[..., : mass.shape[-1]].add(mass)

  def finalize(total: State, length: int) -> Array:
    return total / (length - jnp.arange(length))[None, None]

  return RowStatistic(
    _zeros,
    update,
    finalize,
    ("columns",),
    lambda sums, length: finalize(sums.sums["columns"], length),
  )


@functools.cache
def mass_by_distance() -> RowStatistic:
  """Mean attention at each distance back, [B, H, T]; 0 is the token itself.

      mass_d = 1 / (T - d) * sum_{t = d}^{T - 1} A[t, t - d]

  Our definition; `spread.distance_profile` is the same of a Jacobian.

  Cost: a copy of the block, whose rows are shifted into line.
  """

  def init(batch: int, heads: int, length: int) -> State:
    return _zeros(batch, heads, 2 * length - 1)  # distances from 1 - T on

  def update(state: State, block: RowBlock) -> State:
    batch, heads, count, keys = block.rows.shape
    length = (state.shape[-1] + 1) // 2
    # Keys in reverse order, and each row one entry later than the one before:
    # then the columns are the distances from start - keys + 1 on.
    lined = jnp.pad(block.rows[..., ::-1], [(0, 0)] * 3 + [(0, count)])
    lined = lined.reshape(batch, heads, -1)[..., :-count]
    mass = summed(lined.reshape(batch, heads, count, keys + count - 1), -2)
    at = (0, 0, block.start - keys + length)
    old = jax.lax.dynamic_slice(state, at, mass.shape)
    return jax.lax.dynamic_update_slice(state, old + mass, at)

  def mean(total: Array, length: int) -> Array:
    return total / (length - jnp.arange(length))[None, None]

  return RowStatistic(
    init,
    update,
    lambda total, length: mean(total[..., length - 1 :], length),
    ("diagonals",),
    lambda sums, length: mean(sums.sums["diagonals"], length),
  )


@functools.cache
def mass_within(windows: tuple[int, ...]) -> RowStatistic:
  """Mean share of a row's attention at most w - 1 tokens back, [B, H, W].

      within_w = 1 / T * sum_t sum_{t - w < s <= t} A[t, s]

  Our definition. A row with fewer than w keys counts 1.

  Args:
    windows: each w, the token itself included as in `ModelConfig.window`.
  """

  def init(batch: int, heads: int, length: int) -> State:
    return _zeros(batch, heads, len(windows))

  def update(state: State, block: RowBlock) -> State:
    keys = jnp.arange(block.rows.shape[-1])[None]
    back = (block.queries()[:, None] - keys)[None, None]
    shares = [
      summed(jnp.where((back >= 0) & (back < w), block.rows, 0), (-2, -1))
      for w in windows
    ]
    return state + jnp.stack(shares, axis=-1)

  def of_sums(sums: PatternSums, length: int) -> Array:
    by_distance = sums.sums["diagonals"]
    shares = [summed(by_distance[..., :w], -1) for w in windows]
    return jnp.stack(shares, axis=-1) / length

  return RowStatistic(
    init, update, lambda total, length: total / length, ("diagonals",), of_sums
  )


@functools.cache
def value_weighted_mass(*, key: int = 0) -> RowStatistic:
  """A key's share of what a row writes, with its value's norm, [B, H].

      share = 1 / (T - k) * sum_{t >= k} A[t, k] ||v_k|| / sum_s A[t, s] ||v_s||

  A sink that writes nothing has a large sink score and a share near 0. The
  weighting is Kobayashi et al.'s (2020, arXiv 2004.10102), without the output
  matrix; the mean of shares is our definition. A row that writes nothing
  counts 0.

  Raises:
    ValueError: (by init) for a key that no query sees; (by update) without
      values: observe `("pattern", "v")`.
  """
  weight = _weight_on(key)

  def per_row(block: RowBlock) -> Array:
    if block.values is None:
      raise ValueError('values are needed: observe the sites ("pattern", "v")')
    norms = jnp.moveaxis(token_norms(block.values), 1, 2)  # [B, N, S]
    norms = jnp.repeat(norms, block.rows.shape[1] // norms.shape[1], axis=1)
    written = block.rows * norms[:, :, None]
    total = jnp.sum(written, axis=-1, keepdims=True)
    shares = jnp.where(total > 0, written / jnp.where(total > 0, total, 1), 0)
    return weight(block._replace(rows=shares))

  def per_sum(sums: PatternSums) -> Array:
    written = sums.sums["written"]
    own = sums.weight_on(key) * sums.norms[..., key, None]
    return jnp.where(written > 0, own / jnp.where(written > 0, written, 1), 0)

  mean = mean_over_rows(
    per_row, first=max(key, 0), needs=("written",), per_sum=per_sum
  )
  return _of_key(mean, key)


def _zeros(*shape: int) -> Array:
  return jnp.zeros(shape)
