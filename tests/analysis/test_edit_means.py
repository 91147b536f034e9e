"""The means of `ablate ... to=mean`: over all tokens of all texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.edit_means import with_means
from sinkjax.models.layerwise import InMemory

EDITS = "ablate neurons=2:5,0:5,1:40 to=mean; knockout key=0; ablate head=1.3"
TEXTS = [[1, 2, 3, 4, 5], [9, 8, 7], [3, 1, 4, 1, 5]]


@pytest.fixture(scope="module")
def seen(tiny):
  """Every token's hidden layer and heads, [L, tokens, ...]."""
  params, cfg = tiny
  watch = {site: (site, lambda x: x[0]) for site in ("mlp_act", "z")}
  f = jax.jit(sinkjax.capture(sinkjax.forward(cfg), watch))
  traces = [f(params, jnp.array([text])).trace for text in TEXTS]
  return {s: np.concatenate([t[s] for t in traces], axis=1) for s in watch}


@pytest.mark.thorough
@pytest.mark.parametrize("streamed", [False, True])
def test_means_are_over_tokens(tiny, seen, streamed):
  """Not over texts, of which one is shorter; by layers on disk, too."""
  params, cfg = tiny
  edits = sinkjax.parse_edits(f"{EDITS} to=mean")
  weights = InMemory(cfg, params) if streamed else params
  neurons, hidden, heads = with_means(weights, cfg, edits, TEXTS)
  mean = seen["mlp_act"].mean(axis=1)
  want = [mean[2, 5], mean[0, 5], mean[1, 40]]
  np.testing.assert_allclose(neurons.to, want, rtol=1e-5, atol=1e-7)
  assert hidden is edits[1]
  np.testing.assert_allclose(
    heads.to.array(), seen["z"].mean(axis=1), rtol=1e-5, atol=1e-6
  )
  assert str(heads) == "ablate head=1.3 to=mean"
  assert sinkjax.edited(cfg, (neurons, hidden, heads)).apart()[0] == cfg


def test_without_a_mean_nothing_runs():
  edits = sinkjax.parse_edits(EDITS.replace("mean", "1"))
  assert with_means(None, None, edits, []) == edits


def test_what_is_not_there_is_refused_before_it_runs(tiny):
  edits = sinkjax.parse_edits("ablate neurons=0:48 to=mean")
  with pytest.raises(ValueError, match="neuron 48 is out of range"):
    with_means(None, tiny[1], edits, TEXTS)
