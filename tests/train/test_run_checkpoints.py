"""Tests of sinkjax.train.checkpoint.RunCheckpoints."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sinkjax.train.checkpoint import RunCheckpoints
from sinkjax.train.step import init_state
from sinkjax.weights.validate import WeightsError


@pytest.fixture
def state(tiny):
  params, cfg = tiny
  return init_state(cfg, optax.adam(1e-3), jax.random.key(0), params=params)


def _moved(state, step):
  params = jax.tree.map(lambda x: x + step, state.params)
  return state._replace(step=jnp.asarray(step, jnp.int32), params=params)


def _saved(folder, state, steps=(10, 20, 30), losses=None, keep=3):
  checkpoints = RunCheckpoints(folder, keep=keep)
  for i, step in enumerate(steps):
    loss = None if losses is None else losses[i]
    checkpoints.save(step, _moved(state, step), {"at": step}, loss=loss)
  checkpoints.close()
  return RunCheckpoints(folder, keep=keep)


def _same(a, b):
  for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def test_the_last_step_comes_back_bit_for_bit(tmp_path, state):
  checkpoints = _saved(tmp_path / "c", state)
  like = jax.eval_shape(lambda: state)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    step, found, about = checkpoints.restore(like)
  assert (step, about) == (30, {"at": 30})
  _same(found, _moved(state, 30))
  assert type(found) is type(state)
  assert RunCheckpoints(tmp_path / "new").restore(like) is None


def test_the_last_and_the_best_are_kept(tmp_path, state):
  steps, losses = (10, 20, 30, 40, 50), (5.0, 1.0, 4.0, 3.0, 2.0)
  checkpoints = _saved(tmp_path, state, steps, losses, keep=2)
  assert checkpoints.steps() == [20, 40, 50]


def _largest(folder):
  return max(
    (p for p in folder.rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no manifest"])
def test_a_damaged_step_is_named_and_passed_over(tmp_path, state, damage):
  _saved(tmp_path, state).close()
  last = tmp_path / "30"
  if damage == "no manifest":
    for path in (last / "about").iterdir():
      path.unlink()
  elif damage == "empty":
    for path in sorted(last.rglob("*"), reverse=True):
      path.rmdir() if path.is_dir() else path.unlink()
  else:
    path = _largest(last / "state")
    data = bytearray(path.read_bytes())
    if damage == "cut":
      data = data[: len(data) // 2]
    else:
      data[len(data) // 2] ^= 1
    path.write_bytes(data)
  with pytest.warns(UserWarning, match=r"30: .*trying the step before"):
    step, found, about = RunCheckpoints(tmp_path, keep=3).restore(state)
  assert (step, about) == (20, {"at": 20})
  _same(found, _moved(state, 20))


def test_nothing_whole_is_an_error(tmp_path, state):
  _saved(tmp_path, state, steps=(10,)).close()
  _largest(tmp_path / "10" / "state").unlink()
  with (
    pytest.warns(UserWarning),
    pytest.raises(WeightsError, match="none of 1 saved steps is whole"),
  ):
    RunCheckpoints(tmp_path).restore(state)


def test_another_dtype_is_refused(tmp_path, state):
  checkpoints = _saved(tmp_path, state, steps=(10,))
  half = state._replace(
    params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
  )
  with (
    pytest.warns(UserWarning, match="this run has bfloat16"),
    pytest.raises(WeightsError, match="float32"),
  ):
    checkpoints.restore(half)
