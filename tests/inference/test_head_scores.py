"""Scores of heads against the pattern and values of a model made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.inference import head_scores

pytestmark = pytest.mark.thorough

TOKENS = jnp.asarray(np.random.default_rng(0).integers(64, size=(3, 11)))
NOOP = (1, 2)
"""The layer and head that is dormant."""


@pytest.fixture(scope="module")
def made():
  """One head attends to the first token alone, whose values are zero."""
  cfg = sinkjax.TINY.replace(n_heads=4, n_kv_heads=4)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = scaled(params, 2)
  layer, head = NOOP

  def attend_first(scores, at):
    mine = (at == layer) & (jnp.arange(4) == head)[None, :, None, None]
    first = (jnp.arange(scores.shape[-1]) == 0)[None, None, None]
    return jnp.where(mine, jnp.where(first, 60.0, -60.0), scores)

  def small(v, at):
    mine = (at == layer) & (jnp.arange(4) == head)[None, None, :, None]
    first = (jnp.arange(v.shape[1]) == 0)[None, :, None, None]
    return jnp.where(mine & first, 0.0, v)

  f = sinkjax.intervene(
    sinkjax.forward(cfg), {"scores": attend_first, "v": small}
  )
  watch = head_scores.observers()
  trace = sinkjax.capture(f, watch)(params, TOKENS).trace
  sites = ("pattern", "v", "z", "scores", "resid_mid")
  keep = {x: (x, lambda value: value) for x in sites}
  whole = sinkjax.capture(f, keep)(params, TOKENS).trace
  return params, head_scores.seen_of(trace), jax.tree.map(np.asarray, whole)


def test_the_known_noop_is_the_least_of_its_layer_by_every_activation(made):
  params, seen, _ = made
  scores = head_scores.scores_of(params, seen)
  for name in set(scores._fields) - {"weights"}:
    values = getattr(scores, name)
    assert np.unravel_index(values.argmin(), values.shape) == NOOP, name
    assert values[NOOP] < 1e-3 * np.sort(values.ravel())[1], name
  weights = scores.weights
  assert weights[NOOP] > 0.5 * weights.mean()  # which know nothing of it


def test_scores_are_the_sums_they_say(made):
  params, seen, whole = made
  scores = head_scores.scores_of(params, seen)
  pattern = np.asarray(whole["pattern"], np.float64)[:, :, :, 1:]
  size = np.linalg.norm(whole["v"], axis=-1).swapaxes(2, 3)
  read = pattern * size[:, :, :, None]
  at = {"axis": (1, 3)}
  close = {"rtol": 1e-4, "atol": 1e-6}
  unit = size[..., 1:].mean(axis=(1, 2, 3))[:, None]  # of a layer
  np.testing.assert_allclose(
    scores.value_mass, read.sum(-1).mean(**at) / unit, **close
  )
  beside = read[..., 1:].sum(-1).mean(**at)
  np.testing.assert_allclose(scores.nonsink_norm, beside, **close)
  np.testing.assert_allclose(scores.nonsink_update, beside / unit, **close)
  off = (1 - pattern[..., 0]).mean(**at)
  np.testing.assert_allclose(scores.off_sink, off, **close)
  z, out = whole["z"][:, :, 1:], params["blocks"]["attn"]["o"]["kernel"]
  wrote = np.einsum("lbthk,lhkd->lbthd", z, out)
  want = np.sqrt((wrote**2).sum(-1).mean(axis=(1, 2)))
  np.testing.assert_allclose(scores.output_norm, want, **close)
  resid = (whole["resid_mid"][:, :, 1:] ** 2).sum(-1).mean(axis=(1, 2)) ** 0.5
  np.testing.assert_allclose(scores.output, want / resid[:, None], **close)
  np.testing.assert_allclose(scores.dormant.mean(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(seen.mean, z.mean(axis=(1, 2)), **close)
  t = 7
  one = head_scores.observers()["level"][1](
    jnp.asarray(whole["scores"][0][:, :, : t + 1])
  )
  rows = [
    np.log(np.exp(whole["scores"][0][:, :, i, 1 : i + 1]).mean(-1))
    for i in range(1, t + 1)
  ]
  np.testing.assert_allclose(one, np.mean(rows, axis=0), rtol=1e-4, atol=1e-5)


def test_weight_norms_are_of_a_heads_own_matrices(made):
  params = made[0]
  attn = params["blocks"]["attn"]
  own = [attn["q"]["kernel"][1, :, 3], attn["o"]["kernel"][1, 3]]
  want = np.sqrt(sum(float(jnp.sum(x**2)) for x in own))
  got = head_scores.weight_norms(params)[1, 3]
  assert got == pytest.approx(want, rel=1e-5)


def test_another_models_moments_are_refused(made):
  params, seen, _ = made
  with pytest.raises(ValueError, match="the parameters have"):
    head_scores.scores_of(params, seen._replace(mean=seen.mean[:2]))
