"""Spread and sensitivity metrics against closed forms and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted_module

from sinkjax.metrics import spread

sp = jitted_module(spread)


def normal(*shape, seed=0):
  drawn = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(drawn, jnp.float32)


def block_norms(*lead, length=6, seed=0):
  """Random positive norms with numbers above the diagonal too."""
  return jnp.asarray(np.exp(normal(*lead, length, length, seed=seed)))


def test_spread_is_the_norm_of_the_difference():
  a, b = normal(3, 2, 5, 4), normal(3, 2, 5, 4, seed=1)
  want = np.linalg.norm(np.asarray(a - b), axis=-1)
  np.testing.assert_allclose(sp.spread(a, b), want, rtol=1e-5)
  np.testing.assert_allclose(
    sp.spread(a, b, relative=True),
    want / np.linalg.norm(np.asarray(a), axis=-1),
    rtol=1e-5,
  )
  np.testing.assert_allclose(sp.spread(a, a * 1.5, relative=True), 0.5, 1e-5)


def test_relative_spread_of_zeros():
  a = jnp.zeros((1, 2, 3))
  b = a.at[0, 1].set(1)
  assert sp.spread(a, b, relative=True).tolist() == [[0, jnp.inf]]


def test_a_causal_mix_spreads_forwards_only():
  """A swap at token 2 of a running mean shows at 2 and later, fading."""
  mean = jnp.tril(jnp.ones((6, 6))) / jnp.arange(1, 7)[:, None]
  x = normal(6, 4)
  y = x.at[2].add(1.0)
  gaps = sp.spread(jnp.stack([x, mean @ x]), jnp.stack([y, mean @ y]))
  want = [[0, 0, 2, 0, 0, 0], [0, 0, 2 / 3, 2 / 4, 2 / 5, 2 / 6]]
  np.testing.assert_allclose(gaps, want, atol=1e-5)
  assert sp.reach(gaps, threshold=0.45).count.tolist() == [1, 2]
  assert sp.first_layer(gaps, threshold=0.45).tolist() == [2, 2, 0, 1, 2, 2]


def test_reach_counts_strictly_and_from_the_start():
  gaps = jnp.array([[9.0, 0.5, 0.6, 0.7], [0.0, 0.0, 0.0, 0.0]])
  assert sp.reach(gaps, threshold=0.5).count.tolist() == [3, 0]
  late = sp.reach(gaps, threshold=0.5, start=1)
  assert late.count.tolist() == [2, 0]
  np.testing.assert_allclose(late.share, [2 / 3, 0], rtol=1e-6)
  assert sp.reach(gaps, threshold=0.0).share.tolist() == [1, 0]


def test_first_layer_is_the_first_and_never_is_the_depth():
  gaps = jnp.array([[0.5, 0.0, 0.0], [0.9, 0.9, 0.0], [0.0, 0.9, 0.5]])
  assert sp.first_layer(gaps, threshold=0.5).tolist() == [1, 1, 3]
  batched = jnp.stack([gaps, gaps + 1], axis=1)
  got = sp.first_layer(batched, threshold=0.5)
  assert got.tolist() == [[1, 1, 3], [0, 0, 0]]


def test_thresholds_can_be_swept():
  gaps = jnp.abs(normal(3, 5))
  levels = jnp.array([0.1, 0.5, 2.0])
  got = jax.vmap(lambda c: sp.reach(gaps, threshold=c).count)(levels)
  want = [[int(n) for n in (gaps > c).sum(1)] for c in levels]
  assert got.tolist() == want


def test_by_distance():
  norms = block_norms(2)
  for query in range(6):
    want = [
      [float(n[query, query - d]) for d in range(query + 1)] for n in norms
    ]
    assert sp.by_distance(norms, query=query).tolist() == want
    np.testing.assert_array_equal(
      sp.by_distance(norms, query=query - 6), np.array(want, np.float32)
    )
  np.testing.assert_array_equal(sp.by_distance(norms), norms[:, 5, ::-1])


def test_distance_profile():
  norms = np.asarray(block_norms())
  want = [np.diagonal(norms, -d).mean() for d in range(6)]
  np.testing.assert_allclose(
    sp.distance_profile(jnp.array(norms)), want, rtol=1e-5
  )


def test_profile_of_what_depends_on_distance_only():
  fade = 0.5 ** jnp.arange(8)
  toeplitz = fade[jnp.abs(jnp.arange(8)[:, None] - jnp.arange(8)[None])]
  np.testing.assert_allclose(sp.distance_profile(toeplitz), fade, rtol=1e-6)
  np.testing.assert_allclose(sp.by_distance(toeplitz), fade, rtol=1e-6)


def test_mixing_and_reach_by_loops():
  norms = np.asarray(block_norms(), np.float64)
  lower = np.tril(norms, -1) ** 2
  whole = np.tril(norms) ** 2
  x = jnp.array(norms, jnp.float32)
  np.testing.assert_allclose(
    sp.total_mixing(x), lower.sum() / whole.sum(), rtol=1e-5
  )
  np.testing.assert_allclose(
    sp.total_mixing(x, share=False), np.sqrt(lower.sum()), rtol=1e-5
  )
  want = [
    sum((t - s) * whole[t, s] for s in range(t)) / whole[t].sum()
    for t in range(6)
  ]
  np.testing.assert_allclose(sp.effective_reach(x), want, rtol=1e-5)


def test_absolute_mixing_is_a_jacobian_s_off_diagonal_norm():
  a = jnp.tril(normal(5, 5))

  def layer(x):
    return jnp.tanh(a @ x)

  jac = jax.jacfwd(layer)(normal(5, 3))
  norms = jnp.sqrt(jnp.sum(jac**2, axis=(1, 3)))
  off = jac * (1 - jnp.eye(5))[:, None, :, None]
  np.testing.assert_allclose(
    sp.total_mixing(norms, share=False), jnp.linalg.norm(off.ravel()), rtol=1e-5
  )


def test_no_mixing_and_all_from_the_first_token():
  eye = jnp.eye(5)
  assert sp.total_mixing(eye) == 0
  assert sp.total_mixing(eye, share=False) == 0
  assert not sp.effective_reach(eye).any()
  sink = jnp.zeros((5, 5)).at[:, 0].set(3)
  assert sp.effective_reach(sink).tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_allclose(sp.total_mixing(sink), 4 / 5, rtol=1e-6)
  np.testing.assert_allclose(sp.total_mixing(sink, share=False), 6, rtol=1e-6)


def test_zeros():
  zero = jnp.zeros((4, 4))
  assert sp.total_mixing(zero) == 0
  assert sp.total_mixing(zero, share=False) == 0
  assert not sp.effective_reach(zero).any()
  assert not sp.distance_profile(zero).any()


MATRIX = [
  sp.by_distance,
  sp.distance_profile,
  sp.total_mixing,
  lambda n: sp.total_mixing(n, share=False),
  sp.effective_reach,
]


@pytest.mark.parametrize("metric", MATRIX)
def test_the_future_does_not_count(metric):
  norms = block_norms()
  np.testing.assert_array_equal(metric(norms), metric(jnp.tril(norms)))


@pytest.mark.parametrize("metric", MATRIX)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_neither_overflow_nor_vanish(metric, scale):
  norms = block_norms()
  power = metric in (MATRIX[0], MATRIX[1], MATRIX[3])
  np.testing.assert_allclose(
    metric(scale * norms), np.float32(scale) ** power * metric(norms), rtol=1e-5
  )


@pytest.mark.parametrize("metric", MATRIX)
def test_leading_axes_vmap_and_jit(metric):
  norms = block_norms(2, 3)
  got = metric(norms)
  assert got.shape[:2] == (2, 3)
  want = jax.jit(jax.vmap(jax.vmap(metric)))(norms)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(got[1, 2], metric(norms[1, 2]), rtol=1e-5)


def test_precision():
  half = normal(2, 3, 4).astype(jnp.bfloat16)
  assert sp.spread(half, half).dtype == jnp.float32
  with jax.enable_x64(True):
    wide = jnp.ones((4, 4), jnp.float64)
    for metric in MATRIX:
      assert metric(wide).dtype == jnp.float64
    gaps = sp.spread(wide[None], 2 * wide[None], relative=True)
    assert gaps.dtype == jnp.float64
    assert sp.reach(gaps, threshold=0.5).share.dtype == jnp.float64


@pytest.mark.parametrize("metric", MATRIX)
def test_nan_is_not_taken_for_insensitivity(metric):
  assert np.isnan(metric(block_norms().at[5, 2].set(jnp.nan))).any()


@pytest.mark.parametrize("relative", [False, True])
def test_nan_is_not_taken_for_equality(relative):
  a = jnp.zeros((1, 2, 3))
  b = a.at[0, 1, 0].set(jnp.nan)
  for x, y in ((a, b), (b, a)):
    got = sp.spread(x, y, relative=relative)
    assert np.isnan(got).tolist() == [[False, True]]


def test_gradients_at_equal_runs_are_finite():
  a = normal(2, 3, 4)
  for relative in (False, True):
    grad = jax.grad(lambda b, r=relative: sp.spread(a, b, relative=r).sum())
    assert np.all(np.isfinite(grad(a)))


def test_refusals():
  for metric in MATRIX:
    with pytest.raises(
      ValueError, match=r"must be \[..., T, T\], got \(3, 4\)"
    ):
      metric(jnp.zeros((3, 4)))
  for query in (3, -4):
    with pytest.raises(ValueError, match=r"must be in \[-3, 3\)"):
      sp.by_distance(jnp.zeros((3, 3)), query=query)
  for start in (-1, 4):
    with pytest.raises(ValueError, match=r"start must be in \[0, 4\)"):
      sp.reach(jnp.zeros((2, 4)), threshold=0.0, start=start)
