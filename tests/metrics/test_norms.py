"""Norm metrics against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted_module

from sinkjax.metrics import norms as module

norms = jitted_module(module)


def test_first_and_rest():
  x = jnp.array([[3.0, 1.0, 2.0, 6.0]])
  first, rest = norms.first_and_rest(x)
  assert (float(first[0]), float(rest[0])) == (3.0, 3.0)
  _, rest = norms.first_and_rest(x[:, :1])
  assert np.isnan(rest[0])


def test_value_norm_ratio_of_a_drained_value():
  v = jax.random.normal(jax.random.key(0), (2, 10, 3, 8))
  v = v / norms.token_norms(v)[..., None]
  np.testing.assert_allclose(norms.value_norm_ratio(v), 1, rtol=1e-5)
  drained = v.at[:, 0].multiply(0.01)
  np.testing.assert_allclose(norms.value_norm_ratio(drained), 0.01, rtol=1e-4)


def test_norms_of_large_bfloat16_values():
  x = jnp.full((1, 4096), 300.0, jnp.bfloat16)
  np.testing.assert_allclose(norms.token_norms(x), 300 * 64, rtol=1e-2)


def test_the_ratio_of_bfloat16_values_is_not_rounded():
  x = jnp.full((1, 3, 5), 3.0, jnp.bfloat16).at[0, 1, 2].set(100.0)
  found = norms.massive_activation(x).ratio
  np.testing.assert_allclose(found, [100 / 3], rtol=1e-6)


@pytest.mark.parametrize(
  ("value", "background", "massive"),
  [
    (2000.0, 1.0, True),
    (-2000.0, 1.0, True),
    (999.0, 1.0, False),
    (99.0, 1e-3, False),
    (101.0, 0.1, True),
  ],
)
def test_massive_needs_both_conditions(value, background, massive):
  hidden = jnp.full((1, 5, 7), background).at[0, 2, 3].set(value)
  found = norms.massive_activation(hidden)
  assert bool(found.is_massive[0]) is massive
  assert (int(found.position[0]), int(found.dimension[0])) == (2, 3)
  assert float(found.value[0]) == value
  np.testing.assert_allclose(found.ratio[0], abs(value) / background, rtol=1e-5)


def test_massive_rows_are_independent():
  hidden = jnp.ones((2, 5, 7)).at[1, 0, 0].set(5000.0)
  assert norms.massive_activation(hidden).is_massive.tolist() == [False, True]


def test_massive_of_zeros_is_finite():
  found = norms.massive_activation(jnp.zeros((1, 2, 3)))
  assert not bool(found.is_massive[0])
  assert float(found.ratio[0]) == 0


def test_kurtosis_of_known_distributions():
  x = jax.random.normal(jax.random.key(0), (3, 200, 300))
  error = np.sqrt(24 / (200 * 300))  # of a normal sample's kurtosis
  np.testing.assert_allclose(norms.kurtosis(x), 3, atol=4 * error)
  even = jnp.linspace(-1, 1, 40_001).reshape(1, 1, -1)
  np.testing.assert_allclose(norms.kurtosis(even), 9 / 5, rtol=1e-3)
  one = jnp.zeros((1, 20, 30)).at[0, 4, 7].set(1e9)
  np.testing.assert_allclose(norms.kurtosis(one), 600, rtol=0.01)
  assert float(norms.kurtosis(jnp.ones((1, 4, 5)))[0]) == 0


def test_kurtosis_knows_no_scale_and_no_shift():
  x = jax.random.normal(jax.random.key(1), (2, 50, 60)) ** 3
  want = norms.kurtosis(x)
  for scale, shift in ((1e-12, 0.0), (1e12, 0.0), (1.0, 5.0)):
    found = norms.kurtosis(scale * x + shift)
    np.testing.assert_allclose(found, want, rtol=1e-3)


def test_massive_is_large_and_far_above_the_median():
  x = np.full((2, 3, 4), 0.05, np.float32)
  x[0, 1, 2] = -150.0  # both
  x[0, 2, 0] = 90.0  # not large
  x[1] = 1.0
  x[1, 0, 3] = 500.0  # not far above
  got = norms.massive_dimensions(jnp.asarray(x))
  assert got.tolist() == [[False, False, True, False], [False] * 4]
