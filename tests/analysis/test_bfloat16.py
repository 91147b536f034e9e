"""What bfloat16 weights and activations change in the metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.inference.head_scores import _level, _moments, _reads, _square
from sinkjax.models import attention, blocks

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def profiles(smollm2_path):
  """{dtype: profile} of SmolLM2 on two texts of 64 tokens."""
  found = {}
  texts = [text for text in SWAP_TEXTS.split("\n\n") if len(text) > 200][:2]
  for dtype in "float32", "bfloat16":
    params, cfg, tokenizer = sinkjax.load("smollm2-135m", dtype=dtype)
    ids = [tokenizer.encode(text)[:64] for text in texts]
    found[dtype] = sink_profile(params, cfg, ids)
  return found


@pytest.mark.slow
def test_attention_metrics(profiles):
  """A score of 20 is rounded by up to 2^-9 of it, 0.04, and so is each of the
  norms and products before it: a weight p changes by 0.1 p (1 - p), at most
  0.025; means over rows and heads by a tenth of that."""
  one, half = profiles["float32"], profiles["bfloat16"]
  for name in "alpha", "entropy_share":
    off = np.abs(half.values[name] - one.values[name])
    assert off.max() < 0.03, name
    assert off.mean() < 0.003, name
    assert off.max() > 1e-5, name  # it is another computation
  for eps in 0.3, 0.5, 0.8:
    near = np.abs(one.alpha - eps) < 0.03
    assert abs(half.sink_rate(eps) - one.sink_rate(eps)) <= near.mean()


@pytest.mark.slow
def test_norms(profiles):
  """Each of 30 layers rounds the residual twice by up to 2^-9, in random
  directions: sqrt(60) 2^-9, 1.5 % of the largest."""
  one, half = profiles["float32"], profiles["bfloat16"]
  for name in "hidden_norm_first", "hidden_norm_median", "key_norm_rest":
    want = one.values[name]
    off = np.abs(half.values[name] - want).max() / want.max()
    assert off < 0.03, name


@pytest.mark.slow
def test_loss(profiles):
  """A logit of 20 is rounded by 0.04; the mean of 63 tokens by a fifth."""
  one, half = profiles["float32"], profiles["bfloat16"]
  np.testing.assert_allclose(half.nll, one.nll, atol=0.03)


def test_a_small_scale_beside_one_keeps_its_digits():
  cfg = sinkjax.TINY.replace(norm_offset=1.0)
  x = jax.random.normal(jax.random.key(0), (1, 3, cfg.d_model))
  scale = jnp.full(cfg.d_model, 0.0101, jnp.bfloat16)
  got = blocks.Norm(cfg).apply({"params": {"scale": scale}}, x)
  want = blocks.Norm(cfg).apply(
    {"params": {"scale": scale.astype(jnp.float32)}}, x
  )
  # 1.0101 would be 1.0078 in bfloat16.
  np.testing.assert_array_equal(got, want)


def test_a_soft_cap_is_rounded_once():
  x = jnp.linspace(-60, 60, 301)
  half = x.astype(jnp.bfloat16)
  want = attention.softcapped(half.astype(jnp.float32), 50.0)
  got = attention.softcapped(half, 50.0)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_scores_of_heads_add_in_float32():
  """Sums and log-sum-exps in bfloat16 would be off by 2e-3 and more."""
  keys = jax.random.split(jax.random.key(0), 3)
  pattern = jax.nn.softmax(jax.random.normal(keys[0], (1, 4, 48, 48)))
  v, z = jax.random.normal(keys[1], (2, 1, 48, 4, 16))
  scores = 9 * jax.random.normal(keys[2], (1, 4, 48, 48))
  x = jax.random.normal(keys[2], (1, 48, 64))
  for form, *values in (
    (_reads, pattern, v),
    (_moments, z),
    (_level, scores),
    (_square, x),
  ):
    half = [value.astype(jnp.bfloat16) for value in values]
    want = form(*(value.astype(jnp.float32) for value in half))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      form(*half),
      want,
    )


def test_a_jacobian_of_half_the_bytes(tiny):
  """Weights in bfloat16, the derivative in float32: cast layer by layer."""
  params, cfg = tiny
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  f, text = sinkjax.forward(cfg), jnp.arange(6)
  got = sinkjax.jacobian_norms(f, half, text)
  want = sinkjax.jacobian_norms(f, rounded, text)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  with pytest.raises(ValueError, match="casts weights a layer at a time"):
    sinkjax.jacobian_norms(
      sinkjax.forward(cfg.replace(dtype="bfloat16")), half, text
    )
