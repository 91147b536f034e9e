"""Estimators against the exact map, and whether their errors are honest."""

import jax
import numpy as np
import pytest
from quick import quick
from variants import scaled

import sinkjax
from sinkjax.transforms.estimators import estimate_norms, power_norms
from sinkjax.transforms.jacobian import jacobian_norms

T = 5


@pytest.fixture(scope="module")
def small():
  """(f, params, tokens): two layers that mix strongly."""
  cfg = sinkjax.TINY.replace(n_layers=2)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = scaled(params, 1.5)
  tokens = jax.random.randint(jax.random.key(1), (T,), 0, cfg.vocab_size)
  return sinkjax.forward(cfg), params, tokens


@pytest.fixture(scope="module")
def exact(small):
  return jacobian_norms(*small)


@pytest.mark.slow
@pytest.mark.parametrize("by", quick(["cols", "rows"], "rows"))
def test_intervals_cover_as_often_as_they_say(small, exact, by):
  seeds, covered, scores = 150, [], []
  causal = np.tril_indices(T)
  for seed in range(seeds):
    found = estimate_norms(*small, samples=64, by=by, key=jax.random.key(seed))
    low, high = found.interval(0.95)
    covered.append(((low <= exact) & (exact <= high))[causal].mean())
    scores.append((found.norms - exact)[causal] / found.stderr[causal])
  assert 0.93 <= np.mean(covered) <= 0.97
  assert abs(np.mean(scores)) < 0.15
  assert 0.9 < np.std(scores) < 1.15


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("by", ["cols", "rows"])
def test_the_error_shrinks_with_the_root_of_samples(small, by):
  few = estimate_norms(*small, samples=32, by=by)
  many = estimate_norms(*small, samples=32 * 16, by=by)
  causal = np.tril_indices(T)
  ratio = (few.stderr[causal] / many.stderr[causal]).mean()
  assert 3 < ratio < 5


@pytest.mark.thorough
@pytest.mark.parametrize("by", ["cols", "rows"])
def test_zero_above_the_diagonal(small, by):
  found = estimate_norms(*small, samples=4, by=by)
  above = np.triu_indices(T, 1)
  assert not found.norms[above].any()
  assert not found.stderr[above].any()


@pytest.mark.thorough
@pytest.mark.parametrize("by", ["cols", "rows"])
def test_a_budget_or_a_selection_changes_nothing(small, by):
  whole = estimate_norms(*small, samples=8, by=by)
  part = estimate_norms(*small, samples=8, by=by, rows=[4, 1], cols=[2, 0])
  np.testing.assert_allclose(
    part.norms, whole.norms[np.ix_([4, 1], [2, 0])], rtol=1e-5
  )
  tight = estimate_norms(*small, samples=8, by=by, budget_bytes=60_000)
  np.testing.assert_allclose(tight.norms, whole.norms, rtol=1e-5)


@pytest.mark.thorough
def test_edits_and_points_are_those_of_the_exact_map(small):
  f, params, tokens = small
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=1)})
  points = {"source": ("resid_mid", 0), "target": "final"}
  want = jacobian_norms(g, params, tokens, **points)
  for by in ("cols", "rows"):
    got = estimate_norms(g, params, tokens, samples=512, by=by, **points)
    gap = np.abs(got.norms - want)
    assert (gap <= 5 * got.stderr + 1e-12).all()


@pytest.mark.thorough
def test_power_iteration_finds_the_spectral_norm(small):
  spectral = jacobian_norms(*small, norm="spectral")
  pairs = [(4, 0), (3, 3), (-1, 2), (0, 3)]
  found = power_norms(*small, pairs, iterations=200)
  want = [spectral[pair] for pair in pairs]
  np.testing.assert_allclose(found.norms, want, rtol=1e-4)
  assert found.norms[3] == 0
  assert (found.residual < 1e-3).all()


@pytest.mark.slow
@pytest.mark.thorough
def test_power_iteration_never_exceeds_the_norm(small):
  spectral = jacobian_norms(*small, norm="spectral")
  pairs = [(t, s) for t in range(T) for s in range(t + 1)]
  found = power_norms(*small, pairs, iterations=1, key=jax.random.key(3))
  want = np.array([spectral[pair] for pair in pairs])
  assert (found.norms <= want * (1 + 1e-5)).all()
  assert found.residual.max() > 0.1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"samples": 1}, "samples must be at least 2"),
    ({"by": "both"}, "cols"),
    ({"source": "q"}, "no residual site"),
    ({"cols": [9]}, "outside a text of 5"),
    ({"budget_bytes": 10}, "too small"),
  ],
)
def test_bad_options_are_named(small, options, message):
  with pytest.raises(ValueError, match=message):
    estimate_norms(*small, **options)


def test_power_iteration_refuses_nonsense(small):
  with pytest.raises(ValueError, match="no pairs"):
    power_norms(*small, [])
  with pytest.raises(ValueError, match="iterations"):
    power_norms(*small, [(1, 0)], iterations=0)
  found = estimate_norms(*small, samples=4)
  with pytest.raises(ValueError, match="level"):
    found.interval(95.0)
