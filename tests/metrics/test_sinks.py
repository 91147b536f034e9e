"""Sink metrics against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted_module

from sinkjax.metrics import sinks as module

sinks = jitted_module(module)


def uniform(length):
  return (
    jnp.tril(jnp.ones((length, length))) / jnp.arange(1, length + 1)[:, None]
  )


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("key", [0, 3])
def test_uniform_attention(length, key):
  """alpha_k = mean over i >= k of 1 / (i + 1): a harmonic number."""
  if key >= length:
    with pytest.raises(ValueError, match="key must be in"):
      sinks.sink_score(uniform(length), key=key)
    return
  want = np.mean([1 / (i + 1) for i in range(key, length)])
  np.testing.assert_allclose(
    sinks.sink_score(uniform(length), key=key), want, rtol=1e-6
  )


def test_everything_on_the_sink_and_on_itself():
  sink = jnp.zeros((8, 8)).at[:, 0].set(1)
  assert sinks.sink_score(sink) == 1
  np.testing.assert_allclose(sinks.sink_score(jnp.eye(8)), 1 / 8)
  assert sinks.sink_score(jnp.eye(8), key=7) == 1


@pytest.mark.parametrize(
  "metric",
  [
    sinks.sink_score,
    sinks.attention_share,
    sinks.attention_entropy,
    lambda p: sinks.sink_rate(p, eps=0.02, order="mean_first"),
  ],
)
def test_half_precision_is_added_up_in_float32(metric):
  half = jnp.stack(2 * [uniform(64)]).astype(jnp.bfloat16)
  got, want = metric(half), metric(half.astype(jnp.float32))
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(got, want)


def test_alpha_is_the_mean_of_first_token_mass():
  pattern = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 3, 9, 9)))
  np.testing.assert_allclose(
    sinks.first_token_mass(pattern).mean(-1),
    sinks.sink_score(pattern),
    rtol=1e-6,
  )


def test_the_two_orders_differ_as_they_should():
  alpha = jnp.array([[[0.9, 0.4]], [[0.0, 0.4]], [[0.3, 0.4]]])
  assert sinks.sink_rate(alpha) == pytest.approx((1 + 3) / 6)
  assert sinks.sink_rate(alpha, order="mean_first") == 1.0
  assert sinks.sink_rate(alpha, eps=0.39, order="mean_first") == 1.0
  assert sinks.sink_rate(alpha, eps=0.41, order="mean_first") == 0.0
  assert sinks.sink_rate(alpha, eps=0.41) == pytest.approx(1 / 6)


def test_threshold_is_strict():
  assert sinks.sink_rate(jnp.full((1, 2, 2), 0.5), eps=0.5) == 0


def test_one_prompt_makes_the_orders_equal():
  alpha = jax.random.uniform(jax.random.key(0), (1, 5, 4))
  for eps in (0.3, 0.5, 0.8):
    a = sinks.sink_rate(alpha, eps=eps)
    assert a == sinks.sink_rate(alpha, eps=eps, order="mean_first")


def test_refusals():
  with pytest.raises(ValueError, match="order must be one of"):
    sinks.sink_rate(jnp.zeros((1, 1, 1)), order="mean")
  with pytest.raises(ValueError, match=r"\[prompts, L, H\]"):
    sinks.sink_rate(jnp.zeros((3, 3)))


def test_entropy_of_uniform_and_one_hot_rows():
  want = np.mean([np.log(i + 1) for i in range(1, 32)])
  np.testing.assert_allclose(
    sinks.attention_entropy(uniform(32)), want, rtol=1e-5
  )
  np.testing.assert_allclose(
    sinks.attention_entropy(uniform(32), normalize=True), 1, rtol=1e-5
  )
  assert sinks.attention_entropy(jnp.eye(32)) == 0
  assert sinks.attention_entropy(jnp.ones((1, 1))) == 0


def test_entropy_of_a_two_point_row():
  p = 0.2
  pattern = jnp.array([[1.0, 0.0], [p, 1 - p]])
  want = -p * np.log(p) - (1 - p) * np.log(1 - p)
  np.testing.assert_allclose(sinks.attention_entropy(pattern), want, rtol=1e-6)


def test_entropy_has_a_gradient_at_zero_probability():
  grad = jax.grad(lambda a: sinks.attention_entropy(a).sum())(jnp.eye(4))
  assert np.all(np.isfinite(grad))
