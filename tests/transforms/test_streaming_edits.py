"""Streaming heads against hidden keys, and their slopes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.streaming_edits import MixStreaming


@functools.partial(jax.jit, static_argnames=("sinks", "window"))
def mixed(pattern, gate, sinks, window, positions=None):
  return MixStreaming(gate, sinks, window, positions)(pattern, 1)


def rows(length=9):
  scores = np.random.default_rng(0).normal(size=(2, 4, length, length))
  scores[..., ~np.tri(length, dtype=bool)] = -np.inf
  return scores


def softmax(scores):
  p = np.exp(scores - scores.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def test_rows_are_softmaxes_over_what_is_kept():
  scores, back = rows(), np.subtract.outer(np.arange(9), np.arange(9))
  hidden = (back >= 3) & (np.arange(9) >= 2)
  whole, part = softmax(scores), softmax(np.where(hidden, -np.inf, scores))
  gate = np.zeros((3, 2))
  gate[1] = 0.25, 1.0
  found = mixed(whole.astype(np.float32), gate, 2, 3)
  # Of four heads two share a KV head.
  want = 0.25 * whole[:, :2] + 0.75 * part[:, :2]
  np.testing.assert_allclose(found[:, :2], want, atol=1e-6)
  np.testing.assert_allclose(found[:, 2:], whole[:, 2:], atol=1e-6)
  # Tokens that stand elsewhere: a branch sees the end of its text.
  at = np.array([[0, 1, 2, 3, 4, 5, 6, 4, 5]] * 2)
  found = mixed(whole.astype(np.float32), 0 * gate, 2, 3, at)
  back = at[0][:, None] - at[0]
  hidden = (back >= 3) & (at[0] >= 2)
  want = softmax(np.where(hidden, -np.inf, scores))
  np.testing.assert_allclose(found, want, atol=1e-6)


def test_rows_that_keep_next_to_nothing():
  """Weights of 1e-30 are renormalised, and slopes stay numbers."""

  def first(scores, gate):
    p = jax.nn.softmax(scores)[None, None]
    edited = MixStreaming(gate, 0, 2)(p, 0)[0, 0]
    return edited[2, 1] + edited[3, 3], edited

  scores = np.where(np.tri(4, dtype=bool), 0.0, -np.inf)
  scores[2:, 0], scores[3, 2:] = 69.0, -60.0
  slopes = jax.jit(jax.value_and_grad(first, argnums=(0, 1), has_aux=True))
  given = scores.astype(np.float32), np.zeros((1, 1), np.float32)
  (_, edited), found = slopes(*given)
  # exp(-69) = 1e-30 and, in the last row, exp(-129), which float32 has not.
  np.testing.assert_allclose(edited[2], [0, 0.5, 0.5, 0], atol=1e-6)
  np.testing.assert_array_equal(edited[3], 0)
  assert all(np.isfinite(x).all() for x in found)


@pytest.mark.thorough
def test_gates_in_a_model(tiny, tokens):
  """Closed, keys are hidden from the scores on; slopes are differences."""
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  back = np.subtract.outer(np.arange(12), np.arange(12))
  hidden = jnp.asarray((back >= 4) & (np.arange(12) >= 1))

  @jax.jit
  def run(gate):
    edit = MixStreaming(gate, 1, 4)
    return sinkjax.intervene(f, {"pattern": edit})(params, tokens).logits

  def hide(scores, layer):
    return jnp.where(hidden, -1e30, scores)

  ones = jnp.ones((cfg.n_layers, cfg.n_kv_heads))
  plain = jax.jit(f)(params, tokens).logits
  np.testing.assert_allclose(run(ones), plain, atol=1e-4)
  closed = jax.jit(sinkjax.intervene(f, {"scores": hide}))(params, tokens)
  np.testing.assert_allclose(run(0 * ones), closed.logits, atol=1e-4)
  assert np.abs(closed.logits - plain).max() > 0.1

  @jax.jit
  def value(gate):
    return jnp.mean(jnp.square(run(gate) - plain))

  half = 0.5 * ones
  slope = jax.grad(value)(half)
  step = 1e-2
  for at in ((0, 0), (2, 1)):
    up, down = (value(half.at[at].add(x)) for x in (step, -step))
    np.testing.assert_allclose(slope[at], (up - down) / 2 / step, rtol=2e-2)


def test_mistakes_are_named(tiny, tokens):
  params, cfg = tiny
  for change, gate, said in (
    ({}, np.ones((3, 4)), r"gate must be \[L, N\] = \[3, 2\]"),
    ({}, np.ones((2, 2)), "gate must have the model's 3 layers"),
    ({"sink_logit": True}, np.ones((3, 2)), "softmax over tokens"),
  ):
    f = sinkjax.forward(cfg.replace(**change))
    edited = sinkjax.intervene(f, {"pattern": MixStreaming(gate, 1, 4)})
    with pytest.raises(ValueError, match=said):
      edited(params, tokens)
