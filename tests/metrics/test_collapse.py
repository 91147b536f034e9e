"""Collapse metrics against closed forms, invariances and the proposition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted_module

from sinkjax.metrics import collapse as module

collapse = jitted_module(module)

REDUCED = [
  collapse.rank_residual,
  lambda x: collapse.rank_residual(x, relative=True),
  collapse.effective_rank,
  collapse.stable_rank,
  collapse.spectral_entropy,
  collapse.mean_cosine,
  collapse.collapse_bound,
]


def normal(*shape, seed=0):
  drawn = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(drawn, jnp.float32)


def orthogonal(n, seed=0):
  return jnp.asarray(np.linalg.qr(normal(n, n, seed=seed))[0])


def with_values(values, length, width):
  """A matrix with these singular values."""
  k = len(values)
  left, right = orthogonal(length)[:, :k], orthogonal(width, 1)[:k]
  return (left * jnp.array(values)[None]) @ right


def test_identical_rows():
  x = jnp.tile(normal(1, 8), (5, 1))
  size = float(jnp.linalg.norm(x))
  assert collapse.rank_residual(x) < 1e-6 * size
  assert collapse.rank_residual(x, relative=True) < 1e-6
  assert not collapse.representational_gap(x).any()
  np.testing.assert_allclose(collapse.mean_cosine(x), 1, rtol=1e-5)
  np.testing.assert_allclose(collapse.effective_rank(x), 1, rtol=1e-4)
  np.testing.assert_allclose(collapse.stable_rank(x), 1, rtol=1e-5)
  np.testing.assert_allclose(collapse.spectral_entropy(x), 0, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_orthonormal_rows(rows):
  x = orthogonal(8)[:rows]
  np.testing.assert_allclose(
    collapse.rank_residual(x), math.sqrt(rows - 1), rtol=1e-5
  )
  np.testing.assert_allclose(
    collapse.rank_residual(3 * x, relative=True),
    math.sqrt(1 - 1 / rows),
    rtol=1e-5,
  )
  np.testing.assert_allclose(collapse.mean_cosine(x), 0, atol=1e-6)
  np.testing.assert_allclose(collapse.effective_rank(x), rows, rtol=1e-5)
  np.testing.assert_allclose(collapse.stable_rank(x), rows, rtol=1e-5)
  np.testing.assert_allclose(
    collapse.spectral_entropy(x), math.log(rows), rtol=1e-5
  )
  np.testing.assert_allclose(
    collapse.representational_gap(x), np.full(rows - 1, 2**0.5), rtol=1e-5
  )


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_known_singular_values(shape):
  x = with_values([4.0, 2.0, 1.0, 1.0], *shape)
  p = np.array([4, 2, 1, 1]) / 8
  q = np.array([16, 4, 1, 1]) / 22
  np.testing.assert_allclose(
    collapse.effective_rank(x), np.exp(-np.sum(p * np.log(p))), rtol=1e-4
  )
  np.testing.assert_allclose(collapse.stable_rank(x), 22 / 16, rtol=1e-5)
  np.testing.assert_allclose(
    collapse.spectral_entropy(x), -np.sum(q * np.log(q)), rtol=1e-4
  )


def test_rank_one_with_signs():
  """Rows c_t u: cosines are products of signs, residuals those of c."""
  c, u = np.array([1.0, -2.0, 3.0, 4.0]), np.array([3.0, 0.0, -4.0])
  x = jnp.array(np.outer(c, u), jnp.float32)
  np.testing.assert_allclose(collapse.mean_cosine(x), 0, atol=1e-6)
  np.testing.assert_allclose(collapse.effective_rank(x), 1, rtol=1e-4)
  np.testing.assert_allclose(
    collapse.rank_residual(x), 5 * np.sqrt(np.sum((c - 1.5) ** 2)), rtol=1e-6
  )
  for order, size in ((1, 7), (2, 5), (math.inf, 4)):
    np.testing.assert_allclose(
      collapse.representational_gap(x, order=order),
      size * np.abs(np.diff(c)),
      rtol=1e-6,
    )


def test_against_numpy():
  x = np.asarray(normal(7, 5), np.float64)
  r = x - x.mean(0)
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  cosines = (unit @ unit.T)[~np.eye(7, dtype=bool)]
  for got, want in (
    (collapse.rank_residual, np.linalg.norm(r)),
    (collapse.mean_cosine, cosines.mean()),
  ):
    np.testing.assert_allclose(got(jnp.array(x, jnp.float32)), want, rtol=1e-4)


@pytest.mark.parametrize("metric", REDUCED)
def test_row_order_does_not_count(metric):
  x = normal(6, 4)
  np.testing.assert_allclose(metric(x[::-1]), metric(x), rtol=1e-4)


@pytest.mark.parametrize("metric", [m for m in REDUCED if m is not REDUCED[2]])
def test_rotations_do_not_count(metric):
  x = normal(6, 4)
  np.testing.assert_allclose(metric(x @ orthogonal(4)), metric(x), rtol=1e-4)


def test_scale_counts_only_where_it_should():
  x = normal(6, 4)
  for metric in REDUCED:
    power = metric in (REDUCED[0], collapse.collapse_bound)
    for scale in (1e-3, 1e4):
      np.testing.assert_allclose(
        metric(scale * x), scale**power * metric(x), rtol=1e-4
      )


def test_a_common_vector_is_no_residual():
  x = normal(6, 4)
  moved = x + normal(1, 4, seed=1)
  residual = collapse.rank_residual
  np.testing.assert_allclose(residual(moved), residual(x), rtol=1e-5)


@pytest.mark.parametrize("constant", ["sharp", "paper"])
@pytest.mark.parametrize("length", [2, 3, 10])
def test_rank_collapse_implies_representational_collapse(constant, length):
  """Over random matrices at scales far apart, rows uneven."""
  x = normal(500, length, 4) * jnp.exp(3 * normal(500, length, 1, seed=1))
  gap = jnp.max(collapse.representational_gap(x), axis=-1)
  bound = collapse.collapse_bound(x, constant=constant)
  assert np.all(gap <= bound * (1 + 1e-5))
  ratio = {"sharp": 2**0.5, "paper": 2}[constant]
  np.testing.assert_allclose(bound, ratio * collapse.rank_residual(x))


def test_the_sharp_constant_is_reached_and_the_paper_s_is_not():
  u = normal(1, 4)
  x = jnp.concatenate([jnp.zeros((3, 4)), u, -u])
  gap = collapse.representational_gap(x)[-1]
  np.testing.assert_allclose(gap, collapse.collapse_bound(x), rtol=1e-6)
  assert gap < 0.75 * collapse.collapse_bound(x, constant="paper")


def test_the_converse_fails():
  x = normal(6, 4).at[5].set(normal(6, 4)[4])
  assert collapse.representational_gap(x)[-1] == 0
  assert collapse.rank_residual(x, relative=True) > 0.5


@pytest.mark.parametrize("metric", REDUCED)
def test_nan_is_not_taken_for_collapse(metric):
  assert np.isnan(metric(normal(5, 4).at[2, 1].set(jnp.nan)))


@pytest.mark.parametrize("metric", REDUCED)
def test_zeros_give_zero_and_finite_gradients(metric):
  zero = jnp.zeros((3, 4))
  assert metric(zero) == 0
  assert np.all(np.isfinite(jax.grad(metric)(zero)))


def test_gradient_of_a_gap_at_zero():
  grad = jax.grad(lambda x: collapse.representational_gap(x).sum())
  assert np.all(np.isfinite(grad(jnp.ones((3, 4)))))


def test_one_token():
  x = normal(1, 4)
  assert np.isnan(collapse.mean_cosine(x))
  assert collapse.rank_residual(x) == 0
  assert collapse.representational_gap(x).shape == (0,)


def test_a_zero_row_has_cosine_zero():
  x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
  np.testing.assert_allclose(collapse.mean_cosine(x), 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("metric", [*REDUCED, collapse.representational_gap])
def test_leading_axes_vmap_and_jit(metric):
  x = normal(2, 3, 6, 4)
  got = metric(x)
  assert got.shape[:2] == (2, 3)
  want = jax.jit(jax.vmap(jax.vmap(metric)))(x)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(got[1, 2], metric(x[1, 2]), rtol=1e-5)


@pytest.mark.parametrize("metric", [*REDUCED, collapse.representational_gap])
def test_precision(metric):
  half = normal(5, 4).astype(jnp.bfloat16)
  assert metric(half).dtype == jnp.float32
  np.testing.assert_array_equal(metric(half), metric(half.astype(jnp.float32)))
  with jax.enable_x64(True):
    assert metric(jnp.ones((5, 4), jnp.float64)).dtype == jnp.float64


def test_refusals():
  x = jnp.zeros((3, 4))
  with pytest.raises(ValueError, match=r"one of \[1, 2, inf\], got 3"):
    collapse.representational_gap(x, order=3)
  with pytest.raises(ValueError, match="constant must be one of"):
    collapse.collapse_bound(x, constant="tight")


def test_first_row_share_by_hand():
  x = np.random.default_rng(0).normal(size=(3, 7, 5)) * 10
  x[1, 0] *= 100
  first = x[:, 0] / np.linalg.norm(x[:, 0], axis=-1, keepdims=True)
  along = np.einsum("btd,bd->bt", x, first)
  want = (along**2).sum(-1) / (x**2).sum((-2, -1))
  got = np.asarray(collapse.first_row_share(jnp.asarray(x, jnp.float32)))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # A Rayleigh quotient is at most the largest eigenvalue.
  squares = np.linalg.svd(x, compute_uv=False) ** 2
  assert (got <= squares[:, 0] / squares.sum(-1) * (1 + 1e-5)).all()
  assert want[1] > 0.9
  # In any unit, also where squares overflow; and of a first row of zeros.
  big = collapse.first_row_share(jnp.asarray(x * 1e25, jnp.float32))
  np.testing.assert_allclose(big, want, rtol=1e-5)
  assert collapse.first_row_share(jnp.asarray(x).at[:, 0].set(0)).tolist() == [
    0,
    0,
    0,
  ]


@pytest.mark.parametrize("shape", [(2, 6, 4), (4, 6)])
def test_entropy_by_the_gram_matrix(shape):
  x = np.random.default_rng(0).normal(size=shape) * 1e20
  x[..., 0, :] *= 10
  squares = np.linalg.svd(x, compute_uv=False) ** 2
  p = squares / squares.sum(-1, keepdims=True)
  want = -(p * np.log(p)).sum(-1)
  got = collapse.spectral_entropy(jnp.asarray(x, jnp.float32), gram=True)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  assert not collapse.spectral_entropy(jnp.zeros(shape), gram=True).any()


def test_entropy_bound():
  """It is reached by a massive row beside equal ones, and never passed."""
  x = np.eye(6)
  x[0] *= 9
  share = collapse.first_row_share(jnp.asarray(x, jnp.float32))
  p = np.array([81, 1, 1, 1, 1, 1]) / 86
  want = -(p * np.log(p)).sum()
  np.testing.assert_allclose(collapse.entropy_bound(share, 6), want, rtol=1e-5)
  np.testing.assert_allclose(
    collapse.spectral_entropy(jnp.asarray(x, jnp.float32)), want, rtol=1e-5
  )
  many = normal(40, 6, 9) * jnp.asarray(
    np.random.default_rng(1).uniform(0, 5, (40, 6, 1)), jnp.float32
  )
  bound = collapse.entropy_bound(collapse.first_row_share(many), 6)
  assert (collapse.spectral_entropy(many) <= bound + 1e-5).all()
  assert collapse.entropy_bound(jnp.array([0.1]), 1).tolist() == [0]
  with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
    module.entropy_bound(jnp.ones(()), 0)
