"""Statistics of the rows of an attention pattern, some rows at a time.

A `RowStatistic` says what to gather from rows and how. `dense` turns it into a
reducer of whole patterns for `capture`, `sinkjax.transforms.streaming` feeds
it a block of rows at a time: one object serves short and long contexts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.metrics.norms import token_norms


class RowStatistic(NamedTuple):
  """What to gather from the rows of a pattern; states add over rows.

  Attributes:
    init: `init(batch, heads, length) -> state`, all zeros.
    update: `update(state, rows, *, start, values, logs) -> state` for rows
      [B, H, b, S] that are the queries start, start + 1, ... and the keys
      from 0 on; keys beyond S are 0 there. `values` [B, S, N, K] are at the
      same keys. `logs` are the rows' logarithms where they are not 0, which
      cost nothing from the scores, or `None` where there are no scores.
    finalize: `finalize(state, length) -> result`, with axes [B, ...].
  """

  init: Callable[[int, int, int], Any]
  update: Callable[..., Any]
  finalize: Callable[[Any, int], Any]


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
    state = self.statistic.update(state, pattern, start=0, values=values)
    return self.statistic.finalize(state, length)


def dense(statistic: RowStatistic) -> Dense:
  """A row statistic as a reducer of whole patterns.

  For `capture(f, {name: ("pattern", dense(statistic))})`, or `(("pattern",
  "v"), ...)` for a statistic that reads the values. `stream_statistics` knows
  such an observer and streams it.

  >>> half = jnp.array([[1.0, 0.0], [0.5, 0.5]])[None, None]
  >>> dense(sink_score())(half).tolist()
  [[0.75]]
  """
  return Dense(statistic)


@functools.cache
def sink_score(*, key: int = 0) -> RowStatistic:
  """`sinkjax.sink_score`: mean attention on a key where it is seen, [B, H].

  Raises:
    ValueError: (by init) for a key that no query sees.
  """

  def init(batch, heads, length):
    if not 0 <= key < length:
      raise ValueError(f"key must be in [0, {length}), got {key}")
    return _zeros(batch, heads)

  def update(state, rows, *, start, values=None, logs=None):
    if key >= rows.shape[-1]:
      return state
    sees = _queries(rows, start) >= key
    return state + _sum(jnp.where(sees[None, None], rows[..., key], 0), -1)

  return RowStatistic(init, update, lambda x, length: x / (length - key))


@functools.cache
def first_token_mass() -> RowStatistic:
  """`sinkjax.first_token_mass`: each query's attention on key 0, [B, H, T]."""

  def update(state, rows, *, start, values=None, logs=None):
    mass = rows[..., 0].astype(state.dtype)
    return jax.lax.dynamic_update_slice_in_dim(state, mass, start, 2)

  return RowStatistic(_zeros, update, lambda x, length: x)


@functools.cache
def attention_entropy(*, normalize: bool = False) -> RowStatistic:
  """`sinkjax.attention_entropy`: mean row entropy in nats, [B, H].

  Args:
    normalize: divide each row by the log of the keys that it sees.
  """

  def update(state, rows, *, start, values=None, logs=None):
    at = _queries(rows, start)
    if logs is None:
      logs = jnp.log(jnp.where(rows > 0, rows, 1))
    entropy = -_sum(jnp.where(rows > 0, rows * logs, 0), -1)
    most = jnp.log(jnp.maximum(at + 1, 2).astype(state.dtype))
    weight = (at > 0) / most if normalize else (at > 0).astype(state.dtype)
    return state + jnp.sum(entropy * weight[None, None], axis=-1)

  return RowStatistic(
    lambda batch, heads, length: _zeros(batch, heads),
    update,
    lambda x, length: x / max(length - 1, 1),
  )


@functools.cache
def received_mass() -> RowStatistic:
  """How much attention each key gets where it is seen, [B, H, S].

      received_s = 1 / (T - s) * sum_{t = s}^{T - 1} A[t, s]

  At s = 0 this is the sink score. Source: Gu et al. (2025, arXiv 2410.10781),
  alpha of every k.
  """

  def update(state, rows, *, start, values=None, logs=None):
    keys = jnp.arange(rows.shape[-1])[None]
    seen = keys <= _queries(rows, start)[:, None]
    mass = _sum(jnp.where(seen[None, None], rows, 0), -2)
    return state.at[..., : rows.shape[-1]].add(mass)

  def finalize(state, length):
    return state / (length - jnp.arange(length))[None, None]

  return RowStatistic(_zeros, update, finalize)


@functools.cache
def mass_by_distance() -> RowStatistic:
  """Mean attention at each distance back, [B, H, T]; 0 is the token itself.

      mass_d = 1 / (T - d) * sum_{t = d}^{T - 1} A[t, t - d]

  Our definition; `spread.distance_profile` is the same of a Jacobian.

  Cost: a copy of the block, whose rows are shifted into line.
  """

  def init(batch, heads, length):
    return _zeros(batch, heads, 2 * length - 1)  # distances from 1 - T on

  def update(state, rows, *, start, values=None, logs=None):
    batch, heads, count, keys = rows.shape
    length = (state.shape[-1] + 1) // 2
    # Keys turned round, and each row one entry later than the one before:
    # the columns are the distances from start - keys + 1 on.
    lined = jnp.pad(rows[..., ::-1], [(0, 0)] * 3 + [(0, count)])
    lined = lined.reshape(batch, heads, -1)[..., :-count]
    mass = _sum(lined.reshape(batch, heads, count, keys + count - 1), -2)
    at = (0, 0, start - keys + length)
    old = jax.lax.dynamic_slice(state, at, mass.shape)
    return jax.lax.dynamic_update_slice(state, old + mass, at)

  def finalize(state, length):
    seen = length - jnp.arange(length)
    return state[..., length - 1 :] / seen[None, None]

  return RowStatistic(init, update, finalize)


@functools.cache
def mass_within(windows: tuple[int, ...]) -> RowStatistic:
  """Mean share of a row's attention at most w - 1 tokens back, [B, H, W].

      within_w = 1 / T * sum_t sum_{t - w < s <= t} A[t, s]

  Our definition. A row with fewer than w keys counts 1.

  Args:
    windows: each w, the token itself included as in `ModelConfig.window`.
  """

  def init(batch, heads, length):
    return _zeros(batch, heads, len(windows))

  def update(state, rows, *, start, values=None, logs=None):
    keys = jnp.arange(rows.shape[-1])[None]
    back = (_queries(rows, start)[:, None] - keys)[None, None]
    shares = [
      _sum(jnp.where((back >= 0) & (back < w), rows, 0), (-2, -1))
      for w in windows
    ]
    return state + jnp.stack(shares, axis=-1)

  return RowStatistic(init, update, lambda x, length: x / length)


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
  score = sink_score(key=key)

  def update(state, rows, *, start, values=None, logs=None):
    if values is None:
      raise ValueError('values are needed: observe the sites ("pattern", "v")')
    norms = jnp.moveaxis(token_norms(values), 1, 2)  # [B, N, S]
    norms = jnp.repeat(norms, rows.shape[1] // norms.shape[1], axis=1)
    written = rows * norms[:, :, None]
    total = jnp.sum(written, axis=-1, keepdims=True)
    shares = jnp.where(total > 0, written / jnp.where(total > 0, total, 1), 0)
    return score.update(state, shares, start=start)

  return RowStatistic(score.init, update, score.finalize)


def _zeros(*shape: int) -> Array:
  return jnp.zeros(shape)


def _queries(rows, start):
  """[b] absolute index of each row."""
  return start + jnp.arange(rows.shape[-2])


def _sum(x, axis):
  """The sum in float32 at least."""
  return jnp.sum(x, axis=axis, dtype=jnp.promote_types(x.dtype, jnp.float32))
