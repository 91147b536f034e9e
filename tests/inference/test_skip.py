"""Heads skipped at single queries, against the pattern cut by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.inference import skip

TOKENS = jnp.asarray(np.random.default_rng(0).integers(64, size=(2, 17)))


def model():
  cfg = sinkjax.TINY.replace(n_layers=3, n_heads=6, n_kv_heads=2)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  return scaled(params, 2), cfg


def run(params, cfg, **edits):
  f = sinkjax.intervene(sinkjax.forward(cfg), edits)
  return np.asarray(f(params, TOKENS).logits)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_threshold_of_one_is_the_identity():
  params, cfg = model()
  plain = run(params, cfg)
  for weight in (float("nan"), 0.0, 1.0):
    edit = skip.SkipDormant(jnp.asarray(1.0), jnp.asarray(weight))
    np.testing.assert_array_equal(run(params, cfg, pattern=edit), plain)
  level = jnp.full((3, 6), -50.0)
  edit = skip.SkipPredicted(jnp.asarray(1.0), level)
  np.testing.assert_array_equal(run(params, cfg, scores=edit), plain)
  edit = skip.SkipPredicted(jnp.asarray(0.9), level)
  assert np.abs(run(params, cfg, scores=edit) - plain).max() > 0.1


def pattern_of(length=9):
  rng = np.random.default_rng(5)
  scores = rng.normal(size=(2, 3, length, length)) * 2
  scores[..., 0] += 2
  mask = np.tri(length, dtype=bool)
  weights = np.exp(scores) * mask
  return jnp.asarray(weights / weights.sum(-1, keepdims=True))


@pytest.mark.thorough
def test_dormant_rows_keep_their_sink_part():
  pattern, v = pattern_of(), np.random.default_rng(6).normal(size=(9, 4))
  for weight in (float("nan"), 1.0, 0.0):
    got = skip.SkipDormant(0.6, weight)(pattern, 0)
    dormant = np.asarray(pattern[..., 0]) > 0.6
    dormant[..., 0] = False
    assert 5 < dormant.sum() < dormant.size
    np.testing.assert_array_equal(
      np.asarray(got)[~dormant], np.asarray(pattern)[~dormant]
    )
    cut = np.asarray(got)[dormant]
    assert not cut[:, 1:].any()
    first = np.asarray(pattern)[dormant][:, 0]
    np.testing.assert_array_equal(
      cut[:, 0], first if np.isnan(weight) else np.full_like(first, weight)
    )
    change = np.linalg.norm((np.asarray(got) - pattern) @ v, axis=-1)
    far = np.linalg.norm(v - (v[0] if weight == 1 else 0), axis=-1)[1:].max()
    bound = (1 - np.asarray(pattern[..., 0])) * far
    if weight != 0:
      assert np.all(change[dormant] <= bound[dormant] * (1 + 1e-5))
    part = skip.SkipDormant(0.6, weight).rows(pattern[:, :, 4:7], 0, 4)
    np.testing.assert_array_equal(part, got[:, :, 4:7])


def test_chosen_rows_are_skipped_whatever_their_mass():
  pattern = pattern_of()
  chosen = np.random.default_rng(7).random((4, 2, 3, 9)) < 0.3
  edit = skip.SkipDormant(9.0, 1.0, jnp.asarray(chosen))
  got = np.asarray(edit(pattern, jnp.asarray(2)))
  cut = (got[..., 0] == 1) & ~got[..., 1:].any(axis=-1)
  mine = chosen[2]
  assert np.all(cut[..., 1:] == mine[..., 1:])
  np.testing.assert_array_equal(
    edit.rows(pattern[:, :, 4:7], jnp.asarray(2), 4), got[:, :, 4:7]
  )


@pytest.mark.thorough
def test_predicted_skips_equal_skips_of_the_same_rows():
  """With the true level the predicted mass is exact, in one row a head."""
  rng = np.random.default_rng(8)
  scores = jnp.asarray(rng.normal(size=(1, 3, 9, 9)) * 2).at[..., 0].add(2)
  t = 6
  others = np.log(np.exp(np.asarray(scores)[0, :, t, 1 : t + 1]).sum(-1))
  edit = skip.SkipPredicted(0.6, jnp.asarray(others - np.log(t))[None])
  weights = np.exp(np.asarray(scores)) * np.tri(9)
  mass = weights[..., 0] / weights.sum(-1)
  dormant = np.asarray(edit.dormant(scores[..., 0], 0))
  np.testing.assert_array_equal(dormant[0, :, t], mass[0, :, t] > 0.6)
  assert not dormant[..., 0].any()
  got = np.asarray(edit(scores, 0))
  assert np.all((got[..., 1:] < -1e29).all(axis=-1) == dormant)
  np.testing.assert_array_equal(got[~dormant], np.asarray(scores)[~dormant])
  np.testing.assert_array_equal(got[..., 0], np.asarray(scores)[..., 0])
  np.testing.assert_array_equal(
    edit.rows(scores[:, :, 4:], 0, 4), got[:, :, 4:]
  )
