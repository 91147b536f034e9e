"""Online statistics: batching, order and merging change nothing."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.transforms import statistics
from sinkjax.transforms.statistics import (
  bootstrap,
  combine,
  fold,
  mean_and_error,
  merge,
  run,
)

PLAIN = {
  "mean": mean_and_error((3,), center=0.5),
  "bootstrap": bootstrap((3,), key=jax.random.key(1), replicates=50),
  "combined": combine(
    {
      "a": mean_and_error((3,)),
      "b": bootstrap((3,), key=jax.random.key(2), replicates=50),
    }
  ),
}


ALL = {
  name: stat._replace(
    update=jax.jit(stat.update), finalize=jax.jit(stat.finalize)
  )
  for name, stat in PLAIN.items()
}


@pytest.fixture(params=ALL)
def statistic(request):
  return ALL[request.param], request.param


@pytest.fixture(scope="module")
def data():
  return np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)


def feed(name, x):
  return {"a": x, "b": x} if name == "combined" else x


def state_of(statistic, data, parts):
  """The state after the parts (first, last), in the order given."""
  stat, name = statistic
  state = stat.init()
  for a, b in parts:
    state = stat.update(state, feed(name, data[a:b]), index=a)
  return state


def same(a, b):
  chex.assert_trees_all_close(a, b, rtol=2e-6, atol=2e-5)


def test_batch_size_changes_nothing(statistic, data):
  stat, name = statistic
  whole = state_of(statistic, data, [(0, 24)])
  for size in (1, 5, 8):
    batches = [feed(name, data[i : i + size]) for i in range(0, 24, size)]
    same(fold(stat, batches), whole)
    same(run(stat, batches), stat.finalize(whole))


def test_order_changes_nothing(statistic, data):
  parts = [(0, 7), (7, 8), (8, 24)]
  same(state_of(statistic, data, parts), state_of(statistic, data, parts[::-1]))


def test_merged_halves_are_the_whole(statistic, data):
  halves = [state_of(statistic, data, [p]) for p in ((0, 11), (11, 24))]
  same(merge(*halves), state_of(statistic, data, [(0, 24)]))
  same(merge(*halves[::-1]), merge(*halves))


def test_a_saved_state_goes_on(statistic, data, tmp_path):
  stat, name = statistic
  leaves, shape = jax.tree.flatten(state_of(statistic, data, [(0, 10)]))
  np.savez(tmp_path / "state.npz", *map(np.asarray, leaves))
  with np.load(tmp_path / "state.npz") as loaded:
    state = jax.tree.unflatten(shape, [loaded[n] for n in loaded.files])
  rest = fold(stat, [feed(name, data[10:])], state=state, index=10)
  same(rest, state_of(statistic, data, [(0, 24)]))


def test_in_a_scan_under_jit(statistic, data):
  stat, name = statistic

  def step(state, batch):
    index, x = batch
    return stat.update(state, feed(name, x), index=index), None

  batches = (jnp.arange(0, 24, 4), jnp.asarray(data.reshape(6, 4, 3)))
  state, _ = jax.jit(lambda: jax.lax.scan(step, stat.init(), batches))()
  same(state, state_of(statistic, data, [(0, 24)]))


def test_weights_leave_out_and_repeat(statistic, data):
  """0 leaves an example out, even a NaN; 2 counts it twice."""
  stat, name = statistic
  holes = data.copy()
  holes[3:6] = np.nan
  weights = np.ones(24)
  weights[3:6] = 0
  got = stat.update(stat.init(), feed(name, holes), weights=weights, index=0)
  same(got, state_of(statistic, data, [(0, 3), (6, 24)]))
  got = stat.update(
    stat.init(), feed(name, data[:1]), weights=np.full(1, 2), index=0
  )
  same(got, merge(*[state_of(statistic, data, [(0, 1)])] * 2))


def test_one_trace(statistic, data):
  name = statistic[1]
  stat = PLAIN[name]
  chex.clear_trace_counter()
  counted = stat._replace(update=chex.assert_max_traces(stat.update, n=1))
  fold(counted, [feed(name, data[i : i + 4]) for i in range(0, 24, 4)])


def test_mean_and_error_are_numpys(data):
  got = run(mean_and_error((3,)), [data])
  std = data.std(axis=0, ddof=1)
  np.testing.assert_allclose(got["mean"], data.mean(axis=0), atol=1e-6)
  np.testing.assert_allclose(got["std"], std, rtol=1e-5)
  np.testing.assert_allclose(got["stderr"], std / np.sqrt(24), rtol=1e-5)
  assert got["count"] == 24


def test_center_saves_the_digits():
  x = 1e4 + np.random.default_rng(0).normal(size=500)
  want = x.astype(np.float32).std(ddof=1, dtype=np.float64)
  got = run(mean_and_error(center=1e4), [x])
  np.testing.assert_allclose(got["std"], want, rtol=1e-5)
  np.testing.assert_allclose(got["mean"], x.mean(), rtol=1e-6)


def test_one_example_has_no_error():
  got = run(mean_and_error(), [np.ones(1)])
  assert got["mean"] == 1
  assert np.isnan(got["stderr"])
  assert np.isnan(got["std"])


def test_poisson_draws_are_poisson():
  draws = np.asarray(statistics._poisson(jax.random.key(0), 0, 400_000))
  want = np.exp(-1) / np.array([1, 1, 2, 6, 24])
  got = np.array([(draws == k).mean() for k in range(5)])
  assert np.all(np.abs(got - want) < 5 * np.sqrt(want / len(draws)))
  assert abs(draws.mean() - 1) < 5 / np.sqrt(len(draws))
  assert abs(draws.var() - 1) < 0.02


@pytest.mark.slow
def test_bootstrap_interval_is_honest():
  """It holds the mean of normal data about as often as it says."""
  trials, n, level = 1000, 200, 0.95

  def holds(key):
    data, draw = jax.random.split(key)
    stat = bootstrap(key=draw, replicates=200, level=level)
    x = 3 + jax.random.normal(data, (n,))
    out = stat.finalize(stat.update(stat.init(), x, index=0))
    return (out["low"] < 3) & (out["high"] > 3), out["high"] - out["low"]

  keys = jax.random.split(jax.random.key(7), trials)
  inside, width = jax.jit(lambda k: jax.lax.map(holds, k, batch_size=50))(keys)
  three_sigma = 3 * np.sqrt(level * (1 - level) / trials)
  assert abs(float(inside.mean()) - level) < three_sigma
  np.testing.assert_allclose(width.mean(), 2 * 1.96 / np.sqrt(n), rtol=0.04)


def test_bootstrap_of_two_examples_is_finite():
  got = run(bootstrap(key=jax.random.key(0)), [np.array([1.0, 2.0])])
  assert got["low"] == 1
  assert got["high"] == 2


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: bootstrap(key=jax.random.key(0), level=1.0), r"\(0, 1\), got 1"),
    (
      lambda: bootstrap(key=jax.random.key(0), replicates=20),
      "at least 39 for level 0.95, got 20",
    ),
    (lambda: run(mean_and_error((2,)), [np.ones((4, 3))]), r"\[P, \*\(2,\)\]"),
    (lambda: run(combine({"a": mean_and_error()}), [{"b": np.ones(1)}]), "'a'"),
    (
      lambda: mean_and_error().update(None, np.ones(3), weights=np.ones(2)),
      r"weights must be \[3\], got \(2,\)",
    ),
    (lambda: ALL["bootstrap"].update(None, np.ones((1, 3))), "needs index"),
  ],
)
def test_refusals(call, message):
  with pytest.raises(ValueError, match=message):
    call()
