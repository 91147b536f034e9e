"""Tests of decompositions of many matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.metrics.matrices import each_matrix


def batched_calls(x):
  """Leading axes of what LAPACK would be handed, with this mesh in context."""
  seen = []

  def function(matrices):
    seen.append(matrices.shape[:-2])
    return jnp.linalg.eigvalsh(matrices)

  made = jax.jit(lambda x: each_matrix(function, x))(x)
  np.testing.assert_allclose(made, np.linalg.eigvalsh(x), rtol=1e-4, atol=1e-5)
  return seen


@pytest.fixture
def x():
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
  return x + x.swapaxes(-1, -2)


def test_a_batch_where_nobody_else_uses_the_threads(x):
  assert batched_calls(x) == [(2, 3)]


def test_one_by_one_on_devices_that_share_threads(x, monkeypatch):
  """The CPU's branch is traced for single matrices, another's for the batch."""

  class Mesh:
    size = 8

  monkeypatch.setattr(jax.sharding, "get_abstract_mesh", Mesh)
  assert sorted(batched_calls(x)) == [(), (2, 3)]
