"""Ablated experts: the sum without them, and masks of another shape."""

import jax
import numpy as np
import pytest
from jitted import jitted

import sinkjax
from sinkjax.transforms.expert_edits import AblateExperts, ablate_experts

CFG = sinkjax.TINY.replace(
  n_layers=2, d_ff=8, n_experts=3, experts_per_token=2, shared_d_ff=4
)
TOKENS = np.array([[1, 2, 3, 4, 5]])


@pytest.fixture(scope="module")
def runs():
  """The experts' outputs, and what the MLP adds, by a mask."""
  watch = {"out": ("expert_out", lambda x: x), "mlp": ("mlp_out", lambda x: x)}
  params = jitted(sinkjax.init_params)(CFG, jax.random.key(0))

  @jax.jit
  def run(edit):
    edits = {} if edit is None else {"expert_out": edit}
    f = sinkjax.intervene(sinkjax.forward(CFG), edits)
    return sinkjax.capture(f, watch)(params, TOKENS).trace

  return lambda edit: jax.tree.map(np.asarray, run(edit))


def test_mlp_is_the_sum_of_the_others(runs):
  plain = runs(ablate_experts([], CFG))
  used = np.abs(plain["out"][0]).sum(axis=(0, 1, 3))
  expert = int(used[:-1].argmax())
  for off in (expert, -1):
    cut = runs(ablate_experts([(0, off)], CFG))
    assert not cut["out"][0, :, :, off].any()
    # The first layer reads the same, so the others' outputs are the same.
    kept = np.delete(plain["out"][0], off, axis=2)
    np.testing.assert_array_equal(np.delete(cut["out"][0], off, axis=2), kept)
    np.testing.assert_allclose(cut["mlp"][0], kept.sum(axis=2), atol=1e-6)
    assert np.abs(cut["mlp"] - plain["mlp"])[1].max() > 1e-6  # and read on


def test_nothing_off_is_the_model(runs):
  same = runs(ablate_experts([], CFG))["mlp"]
  np.testing.assert_allclose(same, runs(None)["mlp"], atol=1e-6)


def test_what_is_not_there_is_refused():
  with pytest.raises(ValueError, match=r"expert 1\.4 is not there: this model"):
    ablate_experts([(1, 4)], CFG)
  wrong = AblateExperts(np.zeros((2, 3), bool))
  with pytest.raises(ValueError, match=r"bool \[L, E\] = \[2, 4\]"):
    wrong.placed(CFG, 5, "expert_out")
