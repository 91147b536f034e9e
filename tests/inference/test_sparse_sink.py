"""The bound against scores in float64; the attention against plain softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.inference import sparse_sink
from sinkjax.inference.sparse_sink import sparse_sink_attention

SHAPE = (2, 32, 4, 8)
SCALE = 8**-0.5
bound_of = jax.jit(
  functools.partial(sparse_sink.rest_bound, scale=SCALE, key_block=8)
)
attend = jax.jit(
  functools.partial(
    sparse_sink_attention, scale=SCALE, query_block=4, key_block=8
  ),
  static_argnames="tolerance",
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
  got = sparse_sink.rest_mass(q, k, scale=SCALE)
  np.testing.assert_allclose(got, rest, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tolerance_is_exact(kind):
  q, k, v = drawn(kind, 3)
  got = attend(q, k, v, tolerance=0.0)
  assert not got.skipped.any() and not got.error.any()
  tight = 1e-6 if kind not in ("large", "far") else 1e-3  # scores of 1000
  # A score is off by its size in units of rounding, its weight by as much.
  norms = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
  rounding = np.finfo(np.float32).eps * max(float(norms) * SCALE, 1.0)
  want = exact(q, k, v)[1]
  np.testing.assert_allclose(got.z, want, atol=tight, rtol=rounding)


@pytest.mark.parametrize("tolerance", [1e-3, 0.1, 0.5])
def test_errors_stay_below_their_bound(tolerance):
  shares = []
  for seed in range(10):
    q, k, v = drawn("sink", seed)
    pattern, z = exact(q, k, v)
    got = attend(q, k, v, tolerance=tolerance)
    off = np.linalg.norm(np.asarray(got.z) - z, axis=-1).swapaxes(1, 2)
    error = np.asarray(got.error)
    rows = np.repeat(np.asarray(got.skipped), 4, axis=-1)
    assert np.all(off[rows] <= error[rows] * (1 + 1e-5))
    assert not error[~rows].any()
    assert off[~rows].max(initial=0) < 1e-4  # rounding, scores of 20
    assert got.error.max() <= tolerance * 2 * np.linalg.norm(v, axis=-1).max()
    rest = pattern[..., 1:].sum(axis=-1).reshape(2, 4, 8, 4).max(axis=-1)
    skipped = np.asarray(got.skipped)
    assert np.all(rest[skipped] < tolerance)  # only what an oracle would
    first = np.repeat(np.asarray(v[:, 0]), 2, axis=1)[:, :, None]
    first = np.broadcast_to(first, (2, 4, 32, 8))
    np.testing.assert_array_equal(
      np.asarray(got.z).swapaxes(1, 2)[rows], first[rows]
    )
    shares.append(skipped.mean())
  assert np.mean(shares) > 0.1
  if tolerance == 1e-3:
    assert np.mean(shares) < 1


def test_refusals():
  q, k, v = drawn("random", 0)
  with pytest.raises(ValueError, match="must divide the length 32, got 5"):
    sparse_sink.rest_bound(q, k, scale=SCALE, key_block=5)
  with pytest.raises(ValueError, match="0 or more, got -1"):
    sparse_sink_attention(q, k, v, scale=SCALE, tolerance=-1)
  with pytest.raises(ValueError, match="N dividing H"):
    sparse_sink.rest_bound(q[:, :, :3], k, scale=SCALE, key_block=8)
