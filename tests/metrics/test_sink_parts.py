"""The two parts of a row, in float64 by hand, and what a norm loses."""

import numpy as np
import pytest
from jitted import jitted

from sinkjax.metrics import sink_parts as module

sink_parts, large_dimensions, norm_without = map(
  jitted, (module.sink_parts, module.large_dimensions, module.norm_without)
)


def attention(rng, batch=2, heads=4, length=7, kv=2, width=3):
  """(pattern, v) of a causal softmax."""
  scores = rng.normal(size=(batch, heads, length, length))
  scores[..., 0] += 2
  scores[~np.broadcast_to(np.tri(length, dtype=bool), scores.shape)] = -np.inf
  p = np.exp(scores)
  v = rng.normal(size=(batch, length, kv, width))
  return (p / p.sum(-1, keepdims=True)).astype(np.float32), v.astype(np.float32)


@pytest.mark.parametrize("total", [1.0, 0.6])
def test_norms_are_those_of_the_exact_parts(total):
  """Rows of a model with a learned sink sum to less than 1."""
  p, v = attention(np.random.default_rng(0))
  p = p * np.float32(total)
  found = sink_parts(p, v)
  for b, h, t in np.ndindex(p.shape[:3]):
    row, values = p[b, h, t].astype(float), v[b, :, h // 2].astype(float)
    if t == 0:
      assert found.adds[b, h, t] == found.takes[b, h, t] == 0
      continue
    z = row @ values
    left = row[1:] @ values[1:] * row.sum() / row[1:].sum()
    adds = row[0] * values[0]
    # z = r + p v - (p / c) r, so what is taken is what is left over.
    takes = left + adds - z
    np.testing.assert_allclose(found.adds[b, h, t], np.linalg.norm(adds), 1e-5)
    np.testing.assert_allclose(
      found.takes[b, h, t], np.linalg.norm(takes), 1e-5
    )


def test_a_row_on_the_sink_alone_takes_nothing():
  p = np.array([[1, 0], [1, 0]], np.float32)[None, None]
  found = sink_parts(p, np.ones((1, 2, 1, 4), np.float32))
  assert found.takes[0, 0, 1] == 0 and found.adds[0, 0, 1] == 2


def test_large_dimensions_are_large_on_most_tokens_not_on_the_first():
  x = np.random.default_rng(0).normal(size=(2, 11, 64)).astype(np.float32)
  x[:, 0, 3] = 1e4
  x[:, 1:, 5] = 50.0
  x[1, 1:6, 7] = -50.0
  share = np.asarray(large_dimensions(x))
  want = np.zeros((2, 64))
  want[:, 5] = 1
  want[1, 7] = 0.5
  np.testing.assert_allclose(share, want, atol=1e-6)


def normed(x, eps):
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


@pytest.mark.parametrize("eps", [1e-6, 1e-3])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_the_norm_of_an_input_without_some_dimensions(eps, size):
  """A dimension of 1e4 has all of the norm but 1e-6."""
  rng = np.random.default_rng(0)
  x, dims = rng.normal(size=(5, 16)), np.arange(16) == 3
  x[:, 3] = size
  unit = normed(x, eps)
  want = (normed(np.where(dims, 0, x), eps) / unit)[:, 5]
  found = norm_without(unit.astype(np.float32), dims[None])
  # Where an eps is 1e-10 of the whole it is left out: 1e-3 of the rest's 1.
  tolerance = 2e-3 if (eps, size) == (1e-3, 1e4) else 1e-5
  np.testing.assert_allclose(found, want, tolerance)
  assert (found >= 1 - 1e-6).all()
  none = norm_without(unit.astype(np.float32), np.zeros((1, 16), bool))
  np.testing.assert_allclose(none, 1, 1e-5)
