"""Scores of a rotary model by hand, split, and what a softmax makes of them."""

import numpy as np
import pytest
from jitted import jitted

from sinkjax.metrics import score_parts as module

excess_of_key, score_parts, leaves_range = map(
  jitted, (module.excess_of_key, module.score_parts, module.leaves_range)
)

B, T, H, N, K = 2, 6, 4, 2, 4
SCALE = 0.5


def rotated(x, base=10.0):
  """[B, T, H, K] turned by t times a rate of each pair, as complex numbers."""
  z = x[..., : K // 2] + 1j * x[..., K // 2 :]
  angle = np.arange(T)[:, None] / base ** np.arange(K // 2)
  z = z * np.exp(1j * angle)[None, :, None]
  return np.concatenate([z.real, z.imag], axis=-1)


def made(query_bias=1.0, key_bias=1.0, turn=rotated):
  """(q, k, b_q, b_k, scores) in float64, the first two without biases."""
  rng = np.random.default_rng(0)
  q, k = rng.normal(size=(B, T, H, K)), rng.normal(size=(B, T, N, K))
  b_q = query_bias * rng.normal(size=(H, K))
  b_k = key_bias * rng.normal(size=(N, K))
  keys = np.repeat(turn(k + b_k), H // N, axis=2)
  scores = SCALE * np.einsum("bthk,bshk->bhts", turn(q + b_q), keys)
  return q, k, b_q, b_k, scores


def excess(scores, key):
  """[B, H, T] by loops."""
  out = np.zeros(scores.shape[:-1])
  for t in range(max(1, key), T):
    others = [s for s in range(t + 1) if s != key]
    out[..., t] = scores[..., t, key] - scores[..., t, others].mean(-1)
  return out


def narrow(*arrays):
  return [x.astype(np.float32) for x in arrays]


@pytest.mark.parametrize("key", [0, 2])
def test_the_excess_is_the_log_odds_over_the_geometric_mean(key):
  *_, scores = made()
  found = excess_of_key(*narrow(scores), key=key)
  np.testing.assert_allclose(found, excess(scores, key), atol=1e-5)
  for t in range(max(1, key), T):
    p = np.exp(scores[..., t, : t + 1])
    p /= p.sum(-1, keepdims=True)
    rest = np.delete(p, key, axis=-1)
    odds = p[..., key] / np.exp(np.log(rest).mean(-1))
    np.testing.assert_allclose(found[..., t], np.log(odds), atol=1e-5)


def test_parts_by_hand_and_their_sum():
  q, k, b_q, _, scores = made()
  parts = score_parts(*narrow(q, k, b_q, scores), scale=SCALE)
  keys = np.repeat(k, H // N, axis=2)
  content = SCALE * np.einsum("bthk,bshk->bhts", q, keys)
  bias = SCALE * np.einsum("hk,bshk->bhs", b_q, keys)[:, :, None]
  bias = np.broadcast_to(bias, content.shape)
  np.testing.assert_allclose(parts.content, excess(content, 0), atol=1e-5)
  np.testing.assert_allclose(parts.query_bias, excess(bias, 0), atol=1e-5)
  np.testing.assert_allclose(parts.total, excess(scores, 0), atol=1e-5)
  whole = parts.content + parts.query_bias + parts.position
  np.testing.assert_allclose(whole, parts.total, atol=1e-5)
  assert np.abs(parts.position).max() > 0.1


def test_without_rotation_no_position_and_no_key_bias_counts():
  """A key's bias adds the same to every key: a softmax does not see it."""
  q, k, b_q, _, scores = made(turn=lambda x: x)
  parts = score_parts(*narrow(q, k, b_q, scores), scale=SCALE)
  np.testing.assert_allclose(parts.position, 0, atol=1e-5)
  q, k, b_q, _, scores = made(query_bias=0.0, turn=lambda x: x)
  parts = score_parts(*narrow(q, k, b_q, scores), scale=SCALE)
  np.testing.assert_allclose(parts.content, parts.total, atol=1e-5)
  assert not np.any(parts.query_bias)


def test_a_key_that_is_not_there_is_refused():
  with pytest.raises(ValueError, match=r"key must be in \[0, 6\), got 6"):
    excess_of_key(*narrow(made()[-1]), key=6)


def test_the_end_of_the_range_is_that_of_all_other_tokens():
  norms = np.random.default_rng(0).random((3, 9)).astype(np.float32)
  norms[1, 0] = 30
  rest = norms[:, 1:].astype(float)
  want = norms[:, 0] / (rest.mean() + 2 * rest.std())
  np.testing.assert_allclose(leaves_range(norms), want, rtol=1e-5)
