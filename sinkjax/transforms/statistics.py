"""Statistics over many examples, gathered a batch at a time.

A `Statistic` is three pure functions, as optax has them: `init() -> state`,
`update(state, value, *, weights=None, index=None) -> state` and
`finalize(state) -> result`. A value is a batch [P, ...] of P examples;
`weights` [P] says how often each counts (False or 0 leaves it out, whatever
it holds), `index` is the number of the batch's first example in the data.

Every state is a pytree of arrays that ADDS: `merge` of the states of two
disjoint sets of examples is the state of their union, so `psum` over hosts is
too, and a state saved and loaded goes on where it stopped.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

State = Any

_POISSON_TERMS = 16  # P(more) is about 1e-15, below float32's resolution


class Statistic(NamedTuple):
  """Three pure functions; see the module.

  Attributes:
    init: `init() -> state`, the state of no examples: all zeros.
    update: `update(state, value, *, weights=None, index=None) -> state`.
    finalize: `finalize(state) -> result`.
  """

  init: Callable[[], State]
  update: Callable[..., State]
  finalize: Callable[[State], Any]


def merge(a: State, b: State) -> State:
  """The state of both sets of examples: the sum, leaf by leaf.

  >>> merge({"count": 1}, {"count": 2})
  {'count': 3}
  """
  return jax.tree.map(lambda x, y: x + y, a, b)


def fold(
  statistic: Statistic,
  batches: Iterable[Any],
  *,
  state: State | None = None,
  index: int = 0,
) -> State:
  """The state after all batches; `run` without the last step.

  Args:
    statistic: what to gather; its update is jitted once for each batch shape.
    batches: values with the examples on the first axis of every leaf.
    state: where to go on from, `None` for no examples.
    index: the number of the first example.

  Cost: one update a batch; one batch and one state in memory.
  """
  state = statistic.init() if state is None else state
  update = jax.jit(statistic.update)
  for batch in batches:
    state = update(state, batch, index=jnp.asarray(index, jnp.int32))
    index += np.shape(jax.tree.leaves(batch)[0])[0]
  return state


def run(statistic: Statistic, batches: Iterable[Any]) -> Any:
  """The statistic of all batches.

  >>> run(mean_and_error(), [np.array([1.0, 2.0]), np.array([6.0])])["mean"]
  Array(3., dtype=float32)
  """
  return statistic.finalize(fold(statistic, batches))


def combine(statistics: Mapping[str, Statistic]) -> Statistic:
  """Several statistics at once: values, states and results are dicts.

  Raises:
    ValueError: (by update) for a value whose names are not the statistics'.
  """
  statistics = dict(statistics)

  def update(
    state: State,
    value: Any,
    *,
    weights: ArrayLike | None = None,
    index: ArrayLike | None = None,
  ) -> State:
    if set(value) != set(statistics):
      raise ValueError(
        f"the value must have the entries {sorted(statistics)}, got "
        f"{sorted(value)}"
      )
    return {
      name: statistic.update(
        state[name], value[name], weights=weights, index=index
      )
      for name, statistic in statistics.items()
    }

  return Statistic(
    lambda: {name: s.init() for name, s in statistics.items()},
    update,
    lambda state: {
      name: s.finalize(state[name]) for name, s in statistics.items()
    },
  )


def mean_and_error(
  shape: tuple[int, ...] = (), *, center: Any = 0.0
) -> Statistic:
  """Mean, standard deviation and standard error over examples, by element.

      n = sum w;   mean = c + sum w (x - c) / n
      std^2 = (sum w (x - c)^2 - (sum w (x - c))^2 / n) / (n - 1)
      stderr = std / sqrt(n)

  The squares are taken about `center` c: far from the mean they cancel, and
  float32 loses about 2 log10(|mean - c| / std) of its 7 digits.

  Args:
    shape: of one example.
    center: a number, or an array of that shape, near the mean.

  Returns:
    A statistic of [P, *shape] batches; its result is a dict of `count` [] and
    `mean`, `std`, `stderr` [*shape]. Both deviations divide by n - 1 and are
    NaN for n <= 1. Counts are exact up to 2^24 examples in float32.
  """

  def init() -> State:
    return {
      "count": jnp.zeros(()),
      "sum": jnp.zeros(shape),
      "square": jnp.zeros(shape),
    }

  def about() -> Array:
    return jnp.broadcast_to(jnp.asarray(center, float), shape)

  def update(
    state: State,
    value: Any,
    *,
    weights: ArrayLike | None = None,
    index: ArrayLike | None = None,
  ) -> State:
    value, weights = _examples(value, weights, shape)
    shift = jnp.where(weights > 0, value - about()[None], 0)
    new = {
      "count": jnp.sum(weights),
      "sum": jnp.sum(weights * shift, axis=0),
      "square": jnp.sum(weights * shift * shift, axis=0),
    }
    return merge(state, new)

  def finalize(state: State) -> dict[str, Array]:
    count, total = state["count"], state["sum"]
    shift = total / count
    spread = jnp.maximum(state["square"] - shift * total, 0)
    # One example has no deviation: NaN, not the 0 that would look exact.
    freedom = jnp.where(count > 1, count - 1, jnp.nan)
    std = jnp.sqrt(spread / freedom)
    return {
      "count": count,
      "mean": about() + shift,
      "std": std,
      "stderr": std / jnp.sqrt(count),
    }

  return Statistic(init, update, finalize)


def bootstrap(
  shape: tuple[int, ...] = (),
  *,
  key: Array,
  replicates: int = 200,
  level: float = 0.95,
) -> Statistic:
  """An interval for the mean by the online Poisson bootstrap.

  In every replicate each example counts Poisson(1) times, drawn from
  `fold_in(key, its number)`: the result depends on the examples, not on how
  they were batched, ordered or split among hosts. The interval is the
  percentile interval of the replicates' means, its ends at rank
  `(R + 1) (1 -+ level) / 2` of R, so that the ranks themselves are unbiased.

  Source: Oza and Russell (2001) for Poisson weights; Efron's percentile
  interval.

  Args:
    shape: of one example.
    key: a typed key.
    replicates: R; the ends are interpolated between order statistics, so
      `2 / (1 - level)` are the fewest that make sense.
    level: how often the interval should hold the mean.

  Returns:
    A statistic of [P, *shape] batches that needs `index`; its result is a
    dict of `mean`, `low` and `high`, [*shape] each. A replicate that no
    example entered is left out.

  Raises:
    ValueError: for a level outside (0, 1) or too few replicates for it; (by
      update) without `index`.

  Cost: O(P R) draws a batch and R numbers an element of state.
  """
  if not 0 < level < 1:
    raise ValueError(f"level must be in (0, 1), got {level}")
  if (replicates + 1) * (1 - level) < 2:
    raise ValueError(
      f"replicates must be at least {math.ceil(2 / (1 - level)) - 1} for "
      f"level {level}, got {replicates}"
    )
  # Rank (R + 1) p of R, as the fraction of R - 1 steps that quantile takes.
  tails = [(1 - level) / 2, (1 + level) / 2]
  at = [((replicates + 1) * p - 1) / (replicates - 1) for p in tails]

  def init() -> State:
    many = (replicates, *shape)
    return {
      "count": jnp.zeros(()),
      "sum": jnp.zeros(shape),
      "counts": jnp.zeros(replicates),
      "sums": jnp.zeros(many),
    }

  def update(
    state: State,
    value: Any,
    *,
    weights: ArrayLike | None = None,
    index: ArrayLike | None = None,
  ) -> State:
    if index is None:
      raise ValueError("bootstrap needs index, the first example's number")
    value, weights = _examples(value, weights, shape)
    value = jnp.where(weights > 0, value, 0)  # 0 times NaN would be NaN
    number = index + jnp.arange(value.shape[0])
    draws_PxR = jax.vmap(lambda i: _poisson(key, i, replicates))(number)
    # Examples left out count 0 times in every replicate.
    draws_PxR = draws_PxR * weights.reshape(-1, 1)
    sums = jnp.einsum("pr,p...->r...", draws_PxR, value, precision="highest")
    new = {
      "count": jnp.sum(weights),
      "sum": jnp.sum(weights * value, axis=0),
      "counts": jnp.sum(draws_PxR, axis=0),
      "sums": sums,
    }
    return merge(state, new)

  def finalize(state: State) -> dict[str, Array]:
    counts = state["counts"].reshape(-1, *[1] * len(shape))
    means = jnp.where(counts > 0, state["sums"] / counts, jnp.nan)
    low, high = (jnp.nanquantile(means, q, axis=0) for q in at)
    return {"mean": state["sum"] / state["count"], "low": low, "high": high}

  return Statistic(init, update, finalize)


def _examples(
  value: ArrayLike, weights: ArrayLike | None, shape: tuple[int, ...]
) -> tuple[Array, Array]:
  """Values as floats and weights [P, 1, ...] to go with them."""
  value = jnp.asarray(value)
  if value.shape[1:] != tuple(shape) or not value.ndim:
    raise ValueError(
      f"a batch must have shape [P, *{tuple(shape)}], got {value.shape}"
    )
  value = value.astype(jnp.result_type(float))
  count = value.shape[0]
  if weights is None:
    weights = jnp.ones(count)
  if jnp.shape(weights) != (count,):
    raise ValueError(f"weights must be [{count}], got {jnp.shape(weights)}")
  weights = jnp.asarray(weights, value.dtype)
  return value, weights.reshape(-1, *[1] * len(shape))


@functools.cache
def _poisson_table() -> np.ndarray:
  """P(X <= k) of Poisson(1), from k = 0."""
  terms = [1 / math.factorial(k) for k in range(_POISSON_TERMS)]
  return np.cumsum(terms) / math.e


def _poisson(key: Array, number: ArrayLike, replicates: int) -> Array:
  """[R] Poisson(1) draws of one example, by inversion."""
  u = jax.random.uniform(jax.random.fold_in(key, number), (replicates,))
  below = jnp.asarray(_poisson_table(), u.dtype)
  return jnp.sum(u[:, None] >= below[None], axis=1).astype(u.dtype)
