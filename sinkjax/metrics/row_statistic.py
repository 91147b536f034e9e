"""What a statistic of the rows of an attention pattern is.

A `RowStatistic` says what to gather from rows and how. `dense` turns it into a
reducer of whole patterns for `capture`, and `sinkjax.transforms.streaming`
feeds it one block of rows after the other, or makes it of sums over a pattern
that is never written: one definition serves short and long contexts.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.metrics.precision import summed

State = Any


class RowBlock(NamedTuple):
  """Some consecutive rows of a pattern, and what else is known of them.

  Attributes:
    rows: [B, H, b, S] weights of the queries start, start + 1, ... on the keys
      0 to S - 1; the weights of later keys are 0.
    start: the position of the first query.
    values: [B, S, N, K] values of the same keys, or `None`.
    logs: [B, H, b, S] the logarithm of each weight that is not 0, or `None`
      where it is not known. With the scores at hand it costs nothing.
  """

  rows: Float[Array, "B H T S"]
  start: Array | int = 0
  values: Float[Array, "B S N K"] | None = None
  logs: Float[Array, "B H T S"] | None = None

  def queries(self) -> Array:
    """[b] the position of each row's query."""
    return self.start + jnp.arange(self.rows.shape[-2])


class PatternSums(NamedTuple):
  """What is known of a causal pattern that is never written.

  Attributes:
    weight_on: `weight_on(key) -> [B, H, T]`, each query's weight on a key.
    sums: what a `RowStatistic` needs, by name, see
      `sinkjax.models.online_sums`.
    norms: [B, H, S] of the values that a head reads, or `None`.
  """

  weight_on: Callable[[int], Float[Array, "B H T"]]
  sums: Mapping[Any, Array]
  norms: Float[Array, "B H S"] | None = None


class RowStatistic(NamedTuple):
  """What to gather from the rows of a pattern; states add over rows.

  Attributes:
    init: `init(batch, heads, length) -> state`, all zeros.
    update: `update(state, block) -> state` for a `RowBlock`.
    finalize: `finalize(state, length) -> result`, with axes [B, ...].
    needs: the sums over a pattern of which the statistic can be made without
      its rows.
    of_sums: `of_sums(sums, length) -> result` makes it of `PatternSums`, or is
      `None` where only the rows will do.
  """

  init: Callable[[int, int, int], State]
  update: Callable[[State, RowBlock], State]
  finalize: Callable[[State, int], Any]
  needs: tuple[Any, ...] = ()
  of_sums: Callable[[PatternSums, int], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Dense:
  """The reducer that `dense` makes."""

  statistic: RowStatistic

  def __call__(
    self,
    pattern: Float[Array, "B H T S"],
    values: Float[Array, "B S N K"] | None = None,
  ) -> Any:
    """The statistic of a whole pattern."""
    batch, heads, length, _ = pattern.shape
    state = self.statistic.init(batch, heads, length)
    state = self.statistic.update(state, RowBlock(pattern, 0, values))
    return self.statistic.finalize(state, length)


def dense(statistic: RowStatistic) -> Dense:
  """A row statistic as a reducer of whole patterns.

  For `capture(f, {name: ("pattern", dense(statistic))})`, or `(("pattern",
  "v"), ...)` for a statistic that reads the values. `stream_statistics` knows
  such an observer and streams it.

  >>> half = jnp.array([[1.0, 0.0], [0.5, 0.5]])[None, None]
  >>> dense(mean_over_rows(lambda b: b.rows[..., 0]))(half).tolist()
  [[0.75]]
  """
  return Dense(statistic)


def of_pattern(
  statistic: RowStatistic, pattern: Float[Array, "*B T S"]
) -> Float[Array, "..."]:
  """The statistic of whole patterns, whatever axes stand before T and S.

  The result has the pattern's precision, float32 at least.

  >>> of_pattern(
  ...   mean_over_rows(lambda b: b.rows[..., 0]),
  ...   jnp.array([[1.0, 0.0], [0.5, 0.5]]),
  ... ).tolist()
  0.75
  """
  *leading, queries, keys = pattern.shape
  # Texts and heads that devices share stay apart: joined to one axis, no device
  # would have its part, and all would gather every pattern.
  first = math.prod(leading[:-1])
  rows = pattern.reshape(first, math.prod(leading[-1:]), queries, keys)
  result = dense(statistic)(rows)
  # Zeros of a state are float64 under `enable_x64`, whatever the pattern is.
  dtype = jnp.promote_types(pattern.dtype, jnp.float32)
  return result.reshape(*leading, *result.shape[2:]).astype(dtype)


@functools.cache
def mean_over_rows(
  per_row: Callable[[RowBlock], Float[Array, "B H T"]],
  *,
  first: int = 0,
  needs: tuple[Any, ...] = (),
  per_sum: Callable[[PatternSums], Float[Array, "B H T"]] | None = None,
) -> RowStatistic:
  """The mean of one number a row, [B, H].

      1 / (T - first) * sum_{t >= first} per_row_t

  Args:
    per_row: the number of each row of a block.
    first: the first query that counts; 0 is returned where there is none.
    needs: as in `RowStatistic`.
    per_sum: the same number of every row, made of the sums that it needs.
  """

  def of_sums(sums: PatternSums, length: int) -> Array:
    counted = per_sum(sums)[..., first:]
    return summed(counted, -1) / max(length - first, 1)

  def update(state: State, block: RowBlock) -> State:
    counts = (block.queries() >= first)[None, None]
    return state + summed(jnp.where(counts, per_row(block), 0), -1)

  return RowStatistic(
    lambda batch, heads, length: jnp.zeros((batch, heads)),
    update,
    lambda state, length: state / max(length - first, 1),
    needs,
    None if per_sum is None else of_sums,
  )
