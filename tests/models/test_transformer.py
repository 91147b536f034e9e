"""The decoder's own laws; parity with other code is in tests/weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import variants
from streamed import observed

import sinkjax
from sinkjax.models import normalizers
from sinkjax.models.blocks import Norm
from sinkjax.models.positions import (
  alibi_slopes,
  inverse_frequencies,
  rotary_tables,
  rotate,
)

TOKENS = jnp.arange(10)[None]
QUICK = ("gpt2", "nope")


# The quick ones have between them both norms, experts, learned positions and
# none; each family's whole model is compared elsewhere.
@pytest.fixture(
  params=[
    pytest.param(x, marks=[] if x in QUICK else [pytest.mark.slow])
    for x in variants.VARIANTS
  ],
  scope="module",
)
def variant(request):
  """(params, cfg, the compiled model)."""
  params, cfg = variants.build(request.param)
  return params, cfg, jax.jit(sinkjax.forward(cfg))


def test_causal_by_gradient(variant):
  """The logits of token t have no gradient to the embedding of s > t.

  Forward mode, which compiles in a third of the time: row s of the batch has
  the derivative in a random direction of the embedding of s.
  """
  params, cfg, _ = variant
  f, tokens = sinkjax.forward(cfg), jnp.tile(TOKENS[:, :8], (8, 1))

  def logits(shift):
    g = sinkjax.intervene(f, {"embed": sinkjax.add(shift)})
    return g(params, tokens).logits

  drawn = np.random.default_rng(0).normal(size=(8, 1, cfg.d_model))
  shift = np.float32(np.eye(8)[..., None] * drawn)
  derivative = jax.jit(lambda x: jax.jvp(logits, (x,), (shift,))[1])
  reach = np.abs(derivative(np.zeros_like(shift))).sum(axis=-1)  # [S, T]
  assert np.all(reach[np.tril_indices(8, -1)] == 0)
  assert np.all(np.diag(reach) > 0)


def test_a_longer_text_changes_nothing_before(variant):
  params, _, f = variant
  long, short = f(params, TOKENS).logits, f(params, TOKENS[:, :6]).logits
  np.testing.assert_allclose(long[:, :6], short, atol=2e-5)


def test_padding_after_the_text_changes_nothing(variant):
  params, _, f = variant
  padded = f(params, TOKENS, valid=np.arange(10)[None] < 6).logits
  np.testing.assert_allclose(
    padded[:, :6], f(params, TOKENS[:, :6]).logits, atol=2e-5
  )
  assert np.all(np.isfinite(padded))


def test_bfloat16_is_close_and_float64_closer(variant):
  params, cfg, f = variant

  def logits(params, dtype):
    f = jax.jit(sinkjax.forward(cfg.replace(dtype=dtype)))
    return f(params, TOKENS).logits

  single, half = (
    np.asarray(f(params, TOKENS).logits),
    logits(params, "bfloat16"),
  )
  assert half.dtype == jnp.bfloat16
  spread = float(single.std())
  assert float(np.std(np.asarray(half, np.float32) - single)) < 0.1 * spread
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    double = logits(wide, "float64")
    assert double.dtype == jnp.float64
    assert np.abs(double - single).max() < 2e-5 * max(1, spread)


def test_one_trace(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  chex.clear_trace_counter()
  run = jax.jit(chex.assert_max_traces(f, n=1))
  run(params, tokens)
  run(params, tokens + 1)


def test_local_window_is_a_window(tiny):
  params, cfg = tiny
  cfg = cfg.replace(window=3, local_layers=(True, True, True))
  f = jax.jit(sinkjax.forward(cfg))
  h = sinkjax.capture(f, {"pattern": ("pattern", lambda x: x)})
  pattern = np.asarray(h(params, jnp.arange(9)[None]).trace["pattern"])
  t, s = np.mgrid[:9, :9]
  seen = (s <= t) & (t - s < 3)
  assert np.all(pattern[..., ~seen] == 0)
  assert np.all(pattern[..., seen] > 0)


def test_softmax_is_finite_at_extreme_scores():
  scores = jnp.array([[1e4, -1e4, 0.0], [-1e30, -1e30, 1e30], [3e38, 0, 0]])
  mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
  weights = normalizers.softmax(scores, mask)
  want = [[1, 0, 0], [0.5, 0.5, 0], [1, 0, 0]]
  np.testing.assert_array_equal(weights, want)
  total = jax.jit(lambda s: normalizers.softmax(s, mask)[:, 0].sum())
  grad = jax.grad(total)(scores)
  assert np.all(np.isfinite(grad))


def test_softmax_against_float64():
  scores = jax.random.normal(jax.random.key(0), (4, 50, 50)) * 30
  mask = jnp.tril(jnp.ones((50, 50), bool))
  got = normalizers.softmax(scores, mask)
  wide = np.where(mask, np.asarray(scores, np.float64), -np.inf)
  want = np.exp(wide - wide.max(-1, keepdims=True))
  want /= want.sum(-1, keepdims=True)
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_rotation_keeps_norms_and_depends_on_distance(tiny):
  cfg = tiny[1]
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, cfg.head_dim))

  def score(a, b):
    def at(p):
      return [table[0] for table in rotary_tables(cfg, jnp.array([[p]]))]

    return jnp.sum(rotate(q, *at(a)) * rotate(k, *at(b)))

  np.testing.assert_allclose(score(9, 4), score(25, 20), rtol=1e-4)
  turned = rotate(q, *(t[0] for t in rotary_tables(cfg, jnp.array([[17]]))))
  np.testing.assert_allclose(
    jnp.linalg.norm(turned), jnp.linalg.norm(q), rtol=1e-6
  )


def test_alibi_slopes_are_those_of_the_paper():
  """For 8 heads 1/2 to 1/256; for 12 every other one of 16 is added."""
  slopes = alibi_slopes(sinkjax.TINY.replace(n_heads=8, positions="alibi"))
  np.testing.assert_allclose(slopes, 0.5 ** np.arange(1, 9))
  cfg = sinkjax.TINY.replace(n_heads=12, positions="alibi", alibi_scale=3.0)
  more = 0.5 ** np.arange(0.5, 4, 1)
  np.testing.assert_allclose(alibi_slopes(cfg) / 3, [*slopes, *more])


def test_alibi_is_subtracted_from_the_scores(tokens):
  plain = sinkjax.TINY.replace(positions="none")
  params = sinkjax.init_params(plain, jax.random.key(0))
  scores = [
    observed(sinkjax.forward(cfg), params, tokens, "scores").trace["scores"][0]
    for cfg in (plain, plain.replace(positions="alibi"))
  ]
  places = np.arange(tokens.shape[1])
  lag = places[:, None] - places
  slopes = np.array([0.25, 0.0625, 0.015625, 0.00390625])[:, None, None]
  np.testing.assert_allclose(
    scores[0] - scores[1],
    np.broadcast_to(slopes * lag, scores[0].shape),
    atol=1e-5,  # of scores near 1 and lags of about 10, in float32
  )


def test_llama3_scaling_keeps_fast_and_divides_slow():
  scaling = sinkjax.RopeScaling("llama3", factor=8.0, original_max_len=8192)
  plain = inverse_frequencies(128, 500000.0)
  scaled = inverse_frequencies(128, 500000.0, scaling)
  wavelength = 2 * np.pi / plain
  fast, slow = wavelength < 8192 / 4, wavelength > 8192
  np.testing.assert_array_equal(scaled[fast], plain[fast])
  np.testing.assert_allclose(scaled[slow], plain[slow] / 8)
  between = ~fast & ~slow
  assert np.all(scaled[between] < plain[between])
  assert np.all(scaled[between] > plain[between] / 8)


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    (np.zeros((1, 65), int), "1 to max_len=64 tokens, got 65"),
    (np.zeros((1, 0), int), "got 0"),
    (np.zeros((1, 1, 1), int), "shape"),
    (np.zeros((1, 4)), "integers"),
    (np.array([[1, 64]]), "token id 64 is outside the vocabulary of 64"),
    (np.array([[-1, 3]]), "token id -1"),
  ],
)
def test_bad_tokens(tiny, tokens, message):
  params, cfg = tiny
  with pytest.raises(ValueError, match=message):
    sinkjax.forward(cfg)(params, tokens)


@pytest.mark.parametrize("at", [-1, 64])
def test_positions_beyond_the_context(tiny, at):
  params, cfg = tiny
  positions = jnp.array([[0, 1, at]])
  with pytest.raises(ValueError, match=f"position {at} is outside the model"):
    sinkjax.forward(cfg)(params, jnp.arange(3), positions=positions)


def test_bad_padding_shape(tiny):
  params, cfg = tiny
  with pytest.raises(ValueError, match="valid must have the tokens' shape"):
    sinkjax.forward(cfg)(params, jnp.arange(4), valid=jnp.ones((2, 4), bool))


def test_float64_needs_jax_s_64_bit_types(tiny, tokens):
  params, cfg = tiny
  f = jax.jit(sinkjax.forward(cfg.replace(dtype="float64")))
  with pytest.raises(ValueError, match="jax_enable_x64"):
    f(params, tokens)
  with jax.enable_x64(True):
    assert f(params, tokens).logits.dtype == jnp.float64


@pytest.mark.thorough
def test_a_product_of_several_faster_ones(tokens):
  """Six products in bfloat16 are one in float32."""
  params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))

  def logits(precision):
    f = sinkjax.forward(sinkjax.TINY.replace(precision=precision))
    return f(params, tokens).logits

  # Each product of six keeps 2^-22 of its terms, as float32 does within a few.
  np.testing.assert_allclose(
    logits("BF16_BF16_F32_X6"), logits("highest"), atol=2e-5, rtol=0
  )
  with pytest.raises(ValueError, match="precision"):
    sinkjax.TINY.replace(precision="BF16_X7")


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_of_one_scale_is_one_of_equal_scales(norm):
  cfg = sinkjax.TINY.replace(norm=norm, norm_bias=False)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, cfg.d_model)))
  run = jax.jit(
    lambda cfg, scale: Norm(cfg).apply({"params": scale}, x), static_argnums=0
  )
  one = run(cfg.replace(one_scale=True), {"scale": jnp.array([1.7])})
  every = run(cfg, {"scale": jnp.full(cfg.d_model, 1.7)})
  np.testing.assert_array_equal(one, every)
  shapes = sinkjax.param_shapes(cfg.replace(one_scale=True))
  assert shapes["final_norm"]["scale"].shape == (1,)
  with pytest.raises(ValueError, match="one_scale=True needs norm_scale=True"):
    cfg.replace(one_scale=True, norm_scale=False)
