"""The recipe "add a normaliser": a function and an entry for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.normalizers import MASKED, NORMALIZERS
from sinkjax.train.probe import make_probe


def squares(scores, mask):
  """`s_j^2 / sum_k s_k^2` over the allowed keys."""
  weights = jnp.where(mask, jnp.square(scores), 0)
  return weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-6)


@pytest.fixture(autouse=True)
def entry(monkeypatch):
  monkeypatch.setitem(NORMALIZERS, "squares", squares)


@pytest.mark.slow
def test_a_model_uses_it(tiny, tokens):
  params, cfg = tiny
  cfg = cfg.replace(normalizer="squares")
  f = sinkjax.forward(cfg)
  seen = {site: (site, lambda x: x) for site in ("scores", "pattern")}
  trace = sinkjax.capture(f, seen)(params, tokens).trace
  scores = np.asarray(trace["scores"], np.float64)
  want = np.tril(scores**2)
  want /= want.sum(axis=-1, keepdims=True) + 1e-6
  np.testing.assert_allclose(trace["pattern"], want, rtol=1e-4, atol=1e-6)
  norms = [
    sinkjax.jacobian_norms(f, params, tokens[0, :4], method=method)
    for method in ("exact", "reference")
  ]
  np.testing.assert_allclose(*norms, rtol=1e-4, atol=1e-6)
  record = make_probe(cfg)(params, tokens)
  np.testing.assert_allclose(
    record["first_mass"], trace["pattern"][..., 0].mean(), rtol=1e-5
  )


def test_without_its_entry_it_is_refused(tiny, monkeypatch):
  monkeypatch.delitem(NORMALIZERS, "squares")
  with pytest.raises(ValueError, match="normalizer must be one of .*softpick"):
    sinkjax.TINY.replace(normalizer="squares")


@pytest.mark.parametrize("name", [*NORMALIZERS, "squares"])
def test_a_masked_score_leaves_nothing_behind(name):
  """However low the other scores of a row are."""
  scores = jnp.array([[[-1e4, MASKED]]])
  mask = jnp.array([[[True, False]]])
  assert NORMALIZERS[name](scores, mask)[0, 0, 1] == 0
  slope = jax.grad(lambda s: NORMALIZERS[name](s, mask).sum())(scores)
  assert np.isfinite(slope).all()
