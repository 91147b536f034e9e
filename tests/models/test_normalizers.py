"""Every normaliser against its formula in float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from variants import scaled

import sinkjax
from sinkjax.models.normalizers import NORMALIZERS, softmax1
from sinkjax.transforms.layer_gains import layer_gains

ROWS, KEYS = 6, 9
MASK = jnp.tri(ROWS, KEYS, k=KEYS - ROWS, dtype=bool)[None]


def elu(s):
  return np.where(s > 0, s, np.exp(np.minimum(s, 0)) - 1)


def logistic(s):
  return 1 / (1 + np.exp(-s))


def share(w, rest=0.0):
  return w / (w.sum() + rest)


def softpick(s):
  lifted = np.exp(s) - 1
  scale = np.exp(max(s.max(), 0))
  return np.maximum(lifted, 0) / (np.abs(lifted).sum() + 1e-8 * scale)


def clipped(s):
  low = -3 / len(s)
  return np.clip((1 - low) * share(np.exp(s)) + low, 0, 1)


FORMULAS = {
  "softmax": lambda s: share(np.exp(s)),
  "softmax1": lambda s: share(np.exp(s), 1),
  "clipped_softmax": clipped,
  "sigmoid": logistic,
  "normalized_sigmoid": lambda s: share(logistic(s)),
  "elu1": lambda s: elu(s) + 1,
  "relu": lambda s: np.maximum(s, 0),
  "softpick": softpick,
}
"""Of one row's allowed scores."""


def by_formula(name, scores):
  out = np.zeros_like(scores)
  for at in np.ndindex(scores.shape[:-1]):
    seen = np.asarray(MASK)[0, at[-1]]
    out[at][seen] = FORMULAS[name](scores[at][seen])
  return out


def some_scores(scale, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, ROWS, KEYS)) * scale


def test_all_are_here():
  assert set(FORMULAS) == set(NORMALIZERS) == set(sinkjax.config.NORMALIZERS)


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_values(name, scale):
  scores = some_scores(scale)
  want = by_formula(name, scores)
  got = NORMALIZERS[name](jnp.asarray(scores, jnp.float32), MASK)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
  half = NORMALIZERS[name](jnp.asarray(scores, jnp.bfloat16), MASK)
  assert half.dtype == jnp.bfloat16
  rounded = np.asarray(jnp.asarray(scores, jnp.bfloat16)).astype(np.float64)
  want = by_formula(name, rounded)
  np.testing.assert_allclose(
    np.asarray(half).astype(np.float64), want, rtol=5e-3, atol=1e-6
  )


@pytest.mark.parametrize("name", NORMALIZERS)
def test_gradients(name):
  """The slope along random directions, by differences of the formula."""
  scores = some_scores(3.0, seed=1)
  rng = np.random.default_rng(2)
  weights = rng.normal(size=scores.shape)
  step, some = 1e-6, jnp.asarray(scores, jnp.float32)

  def total(s):
    return jnp.sum(NORMALIZERS[name](s, MASK) * weights)

  gradient = np.asarray(jax.grad(total)(some), np.float64)
  at = np.asarray(some, np.float64)
  for _ in range(5):
    d = rng.normal(size=scores.shape)
    ends = [
      np.sum(by_formula(name, at + h * d) * weights) for h in (step, -step)
    ]
    want = (ends[0] - ends[1]) / (2 * step)
    assert np.sum(gradient * d) == pytest.approx(want, rel=1e-4, abs=1e-4)
  assert not gradient[np.broadcast_to(~MASK, gradient.shape)].any()


@pytest.mark.parametrize("name", NORMALIZERS)
@pytest.mark.parametrize("level", [-1e4, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_huge_scores(name, level, dtype):
  scores = jnp.asarray(some_scores(1.0) + level, dtype)
  weights = NORMALIZERS[name](scores, MASK)
  gradient = jax.grad(lambda s: NORMALIZERS[name](s, MASK).sum())(scores)
  for array in (weights, gradient):
    assert np.isfinite(np.asarray(array, np.float64)).all()
  assert not np.asarray(weights)[np.broadcast_to(~MASK, weights.shape)].any()
  if name in ("softmax", "normalized_sigmoid"):
    sums = np.asarray(weights, np.float64).sum(-1)
    np.testing.assert_allclose(sums, 1, rtol=2e-2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(NORMALIZERS, "softpick"))
def test_in_the_model(name, tokens):
  """A prefix gives what it gives alone; the exact Jacobian is jacfwd's."""
  cfg = sinkjax.TINY.replace(normalizer=name, n_layers=2)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = scaled(params, 1.5)
  fn = jax.jit(sinkjax.forward(cfg))
  whole = fn(params, tokens).logits
  np.testing.assert_allclose(
    fn(params, tokens[:, :7]).logits, whole[:, :7], atol=2e-5
  )
  ids = tokens[0, :4]
  f = sinkjax.forward(cfg)
  norms = [
    sinkjax.jacobian_norms(f, params, ids, method=method)
    for method in ("exact", "reference")
  ]
  np.testing.assert_allclose(*norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "normalized_sigmoid"])
def test_a_row_without_a_finite_score(name):
  scores = jnp.zeros((2, 3)).at[1, :2].set(-jnp.inf)
  mask = jnp.array([[True, True, True], [True, True, False]])
  with pytest.raises(ValueError, match="row of attention scores is -inf"):
    NORMALIZERS[name](scores, mask)
  # One key is enough, and so is a sink that takes the weight.
  allowed = NORMALIZERS[name](scores, jnp.ones((2, 3), bool))
  np.testing.assert_allclose(allowed[1], [0, 0, 1])
  np.testing.assert_array_equal(softmax1(scores, mask)[1], 0)


def test_what_does_not_go_together():
  for more in ({"sink_logit": True}, {"attention": "fused"}):
    with pytest.raises(ValueError, match="normalizer='softpick' has no"):
      sinkjax.TINY.replace(normalizer="softpick", **more)
  with pytest.raises(ValueError, match="normalizer"):
    sinkjax.TINY.replace(normalizer="softmax2")
  cfg = sinkjax.TINY.replace(normalizer="softpick")
  params = sinkjax.init_params(cfg, jax.random.key(0))
  with pytest.raises(ValueError, match="those of a softmax"):
    layer_gains(sinkjax.forward(cfg), params, jnp.arange(4))
