"""Edits and observers act in a streamed pass as they do in a dense one."""

import jax.numpy as jnp
import numpy as np
import pytest
from streamed import SOME, STATISTICS, observers, same

import sinkjax
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.transforms import chunks
from sinkjax.transforms.streaming import stream_statistics

EDITS = {
  "knockout": {"scores": sinkjax.knockout(0, from_layer=1)},
  "knockout in some heads": {
    "scores": sinkjax.knockout(4, heads=[True, False, True, False])
  },
  "scores": {
    "scores": sinkjax.chain(
      sinkjax.scale(np.array([1.0, 2, 0, 3])[:, None, None][None]),
      sinkjax.add(0.5, layers=[1]),
      sinkjax.knockout(3),
    )
  },
  "graded": {
    "scores": sinkjax.graded(0, 3.0, layers=[1, 2], heads=np.eye(3, 4) > 0),
    "mlp_act": sinkjax.ablate_neurons([(0, 3), (2, 7)], to=[0.5, -1.0]),
  },
  "uniform": {"scores": sinkjax.replace(0.0, layers=1)},
  "pattern": {"pattern": sinkjax.chain(sinkjax.scale(0.5), sinkjax.add(0.01))},
  "heads": {"z": sinkjax.ablate_heads(np.eye(3, 4, dtype=bool))},
  "whole": {
    "embed": sinkjax.scale(1.5),
    "resid_pre": sinkjax.add(0.1, layers=2),
    "attn_in": sinkjax.patch(jnp.ones((3, 2, 12, 32)), positions=[3]),
    "q": sinkjax.scale(2.0),
    "k": lambda k, layer: k[:, ::-1],
    "v": sinkjax.scale(jnp.linspace(0, 2, 12)[None, :, None, None]),
    "attn_out": sinkjax.scale(0.5),
    "resid_mid": lambda x, layer: x - x.mean(axis=1, keepdims=True),
    "mlp_in": sinkjax.add(jnp.linspace(0, 1, 12)[None, :, None]),
    "mlp_act": lambda x, layer: x - x.mean(axis=1, keepdims=True),
    "mlp_out": sinkjax.scale(jnp.linspace(0, 2, 12)[None, :, None]),
    "resid_post": sinkjax.patch(jnp.ones((3, 2, 12, 32)), positions=[0, 7]),
    "final": sinkjax.scale(2.0),
  },
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", EDITS)
def test_edits_act_as_in_a_dense_pass(tiny, tokens, name):
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), EDITS[name])
  statistics = STATISTICS
  if name == "pattern":  # what a row puts on its future is nobody's distance
    statistics = {k: STATISTICS[k] for k in ("sink", "entropy", "received")}
  want = sinkjax.capture(g, observers(statistics))(params, tokens)
  got = stream_statistics(g, statistics, block=5)(params, tokens)
  same(got.trace, want.trace)
  np.testing.assert_allclose(got.nll, token_nll(want.logits, tokens), rtol=1e-5)


@pytest.mark.thorough
def test_observers_outside_the_rows_and_dense_ones(tiny, tokens):
  params, cfg = tiny
  whole = (
    "embed",
    "resid_pre",
    "attn_in",
    "z",
    "mlp_in",
    "mlp_act",
    "resid_post",
    "final",
  )
  seen = {
    **observers(STATISTICS),
    "pair": (("v", "resid_post"), lambda v, x: x.sum() + v.sum()),
    **{site: (site, lambda x: x) for site in whole},
  }
  h = sinkjax.capture(sinkjax.forward(cfg), seen)
  got = stream_statistics(h, {"again": SOME["sink"]}, block=5)(params, tokens)
  again = got.trace.pop("again")
  np.testing.assert_array_equal(again, got.trace["sink"])
  want = h(params, tokens).trace
  for name in ("pair", *whole):
    np.testing.assert_allclose(
      got.trace.pop(name), want.pop(name), rtol=1e-4, atol=1e-5
    )
  same(got.trace, want)


@pytest.mark.parametrize("site", ["mlp_in", "mlp_act"])
def test_a_tap_in_the_mlp_sees_every_token(tiny, tokens, monkeypatch, site):
  """Though the MLP takes a long text in chunks."""
  params, cfg = tiny
  monkeypatch.setattr(chunks, "CHUNK", 5)

  def turned(x, layer):
    return x[:, ::-1] - x.mean(axis=1, keepdims=True)

  g = sinkjax.intervene(sinkjax.forward(cfg), {site: turned})
  h = sinkjax.capture(g, {"seen": (site, lambda x: x)})
  got = stream_statistics(h, {}, block=3)(params, tokens)
  want = h(params, tokens)
  np.testing.assert_allclose(
    got.trace["seen"], want.trace["seen"], rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(got.nll, token_nll(want.logits, tokens), rtol=1e-5)


def no_rows(scores, layer):
  return scores


@pytest.mark.parametrize(
  ("edits", "message"),
  [
    ({"scores": no_rows}, "the edit no_rows cannot act on a block"),
    ({"pattern": sinkjax.patch(jnp.ones(3))}, "the edit Patch cannot"),
    ({"scores": sinkjax.chain(no_rows)}, "the edit no_rows cannot"),
    ({"scores": sinkjax.add(jnp.zeros((12, 12)))}, "Add of a block of rows"),
  ],
)
def test_edits_that_need_every_row(tiny, tokens, edits, message):
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), edits)
  with pytest.raises(ValueError, match=message):
    stream_statistics(g, {})(params, tokens)
