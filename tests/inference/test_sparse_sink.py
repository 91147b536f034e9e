"""The bound of the mass beside the first key, against scores in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.inference import sparse_sink

SHAPE = (2, 32, 4, 8)
SCALE = 8**-0.5
bound_of = jax.jit(
  functools.partial(sparse_sink.nonsink_mass_bound, scale=SCALE, key_block=8)
)


def exact(q, k, v):
  """(pattern, z) in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  scores = SCALE * np.einsum("bthk,bshk->bhts", q, k)
  scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  pattern = weights / weights.sum(axis=-1, keepdims=True)
  return pattern, np.einsum("bhts,bshk->bthk", pattern, v)


def drawn(kind: str, seed: int):
  """Queries, keys and values, of kinds that try the bound."""
  rng = np.random.default_rng(seed)
  batch, length, heads, width = SHAPE
  q = rng.normal(size=SHAPE)
  k, v = (rng.normal(size=(batch, length, 2, width)) for _ in range(2))
  if kind == "large":
    q, k = 30 * q, 30 * k
  elif kind == "sink":
    q[..., 0], k[:, 0, :, 0] = 6, 9
  elif kind == "one key":  # one of a block is the query itself, far away
    k *= 0.01
    k[:, 13, 1] = 20 * q[:, 29, 3]
  elif kind == "no spread":  # the bound is an equality
    k[:, 1:] = k[:, 1:2]
  elif kind == "corner":  # at the box's corner, and at the ball's edge
    k = np.sign(k) * 3
    q = np.sign(q)
  elif kind == "far":  # a large centre of which the score cancels
    k += 1e3 * np.eye(width)[1]
    q[..., 1] = 0
  return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v))


KINDS = ("random", "large", "sink", "one key", "no spread", "corner", "far")


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_never_violated(kind):
  for seed in range(20):
    q, k, v = drawn(kind, seed)
    rest = exact(q, k, v)[0][..., 1:].sum(axis=-1)
    bound = np.asarray(bound_of(q, k), np.float64)
    assert np.all(bound >= rest * (1 - 1e-9)), (kind, seed)
    assert np.all(bound <= 1)
    if kind == "no spread":
      np.testing.assert_allclose(bound, rest, rtol=1e-3)


def test_the_oracle_is_the_mass_itself():
  q, k, v = drawn("sink", 0)
  rest = exact(q, k, v)[0][..., 1:].sum(axis=-1)
  got = sparse_sink.nonsink_mass(q, k, scale=SCALE)
  np.testing.assert_allclose(got, rest, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 0.1, 0.5])
def test_reading_the_first_value_alone_is_off_by_the_bound_at_most(tolerance):
  """Queries of blocks with little mass elsewhere read v_0 in place of z."""
  shares = []
  for seed in range(10):
    q, k, v = drawn("sink", seed)
    pattern, z = exact(q, k, v)
    bound = bound_of(q, k)
    skipped = np.asarray(sparse_sink.whole_blocks(bound, tolerance, 4))
    rows = np.repeat(skipped, 4, axis=-1)
    values = np.repeat(np.asarray(v, np.float64), 2, axis=2).swapaxes(1, 2)
    gap = values - values[:, :, :1]
    far = np.maximum.accumulate(np.linalg.norm(gap, axis=-1), axis=2)
    off = np.linalg.norm(z.swapaxes(1, 2) - values[:, :, :1], axis=-1)
    error = np.asarray(bound, np.float64) * far
    assert np.all(off[rows] <= error[rows] * (1 + 1e-5))
    assert np.all(error[rows] <= tolerance * far[rows])
    mass = pattern[..., 1:].sum(axis=-1).reshape(2, 4, 8, 4).max(axis=-1)
    assert np.all(mass[skipped] < tolerance)  # as by the pattern itself
    shares.append(skipped.mean())
  if tolerance == 0:
    assert not np.any(shares)
  else:
    assert np.mean(shares) > 0.1
  if tolerance == 1e-3:
    assert np.mean(shares) < 1


def test_refusals():
  q, k, _ = drawn("random", 0)
  with pytest.raises(ValueError, match="must divide the length 32, got 5"):
    sparse_sink.nonsink_mass_bound(q, k, scale=SCALE, key_block=5)
  with pytest.raises(ValueError, match="N dividing H"):
    sparse_sink.nonsink_mass_bound(q[:, :, :3], k, scale=SCALE, key_block=8)
