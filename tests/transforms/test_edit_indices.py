"""Indices of layers, heads, tokens and ids that a model does not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.loss_sensitivity import loss_gradient
from sinkjax.analysis.over_squashing import over_squashing
from sinkjax.analysis.sink_profile import measure
from sinkjax.experiments.paper.massive.experiment import SetFirst
from sinkjax.experiments.shared.attack_sites import Clip
from sinkjax.experiments.shared.perturb import Shift
from sinkjax.inference.quantize import Quantize, before_rotation
from sinkjax.inference.quantize_linear import Flat
from sinkjax.inference.scoring import last_logits
from sinkjax.inference.skip import SkipDormant, SkipPredicted
from sinkjax.transforms.layer_gains import layer_gains


def same_logits(tiny, tokens, site, *edits):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  plain = np.asarray(jax.jit(f)(params, tokens).logits)
  # The edits are no arguments: their indices are concrete, as they were given.
  logits = [
    jax.jit(sinkjax.intervene(f, {site: e}))(params, tokens)[0] for e in edits
  ]
  assert np.any(np.asarray(logits[0]) != plain)
  np.testing.assert_array_equal(*logits)


HEAD_2 = [False, False, True, False]
LAYER_2 = [False, False, True]


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("one", "other"),
  [
    (sinkjax.knockout(-10), sinkjax.knockout(2)),
    (sinkjax.knockout(0, from_layer=-1), sinkjax.knockout(0, from_layer=2)),
    (sinkjax.knockout(0, heads=[2]), sinkjax.knockout(0, heads=HEAD_2)),
    (sinkjax.knockout(0, heads=-2), sinkjax.knockout(0, heads=[2])),
    (sinkjax.scale(0.5, layers=-1), sinkjax.scale(0.5, layers=2)),
    (sinkjax.scale(0.5, layers=LAYER_2), sinkjax.scale(0.5, layers=[2])),
  ],
)
def test_negative_indices_and_masks_of_scores(tiny, tokens, one, other):
  same_logits(tiny, tokens, "scores", one, other)
  same_logits(tiny, tokens, "scores", *map(sinkjax.chain, (one, other)))


@pytest.mark.parametrize(
  ("one", "other"), [(-2, 10), ([-12, 3], [0, 3]), (np.arange(12) == 4, 4)]
)
def test_positions_of_a_patch(tiny, tokens, one, other):
  new = np.ones((3, 2, 12, tiny[1].d_model), np.float32)
  edits = [sinkjax.patch(new, positions=p) for p in (one, other)]
  same_logits(tiny, tokens, "resid_mid", *edits)


def test_a_knockout_from_no_layer_on(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=3)})
  np.testing.assert_array_equal(
    jax.jit(g)(params, tokens).logits, jax.jit(f)(params, tokens).logits
  )


WRONG = [
  ("scores", sinkjax.knockout(12), "position 12 .* 12"),
  ("scores", sinkjax.knockout(-13), "position -13"),
  ("scores", sinkjax.knockout(0, from_layer=4), "layer 4 .* to 3"),
  ("scores", sinkjax.knockout(0, from_layer=-4), "layer -4"),
  ("scores", sinkjax.knockout(0, heads=[4]), "head 4 .* 4"),
  ("scores", sinkjax.knockout(0, heads=[True]), r"heads must have shape \[4"),
  ("scores", sinkjax.knockout(0, heads=[1.0]), "integer or a bool mask"),
  ("mlp_out", sinkjax.scale(1.0, layers=3), "layer 3"),
  ("mlp_out", sinkjax.add(1.0, layers=[0, -4]), "layer -4"),
  ("mlp_out", sinkjax.replace(1.0, layers=[9]), "layer 9"),
  ("mlp_out", sinkjax.hold(layers=[True, False]), r"shape \[3\]"),
  ("mlp_out", sinkjax.chain(sinkjax.hold(layers=3)), "layer 3"),
  ("mlp_out", sinkjax.patch(np.ones((1, 2, 12, 1))), "3 layers"),
  ("mlp_out", sinkjax.patch(np.ones((3, 1)), positions=12), "position 12"),
  ("z", sinkjax.ablate_heads(np.ones((1, 4), bool)), r"\[3, 4\]"),
  ("z", sinkjax.ablate_heads(np.ones((3, 4), int)), "bool mask"),
  (
    "z",
    sinkjax.ablate_heads(np.ones((3, 4), bool), mean=np.ones((1, 4, 16))),
    "mean must have the model's 3 layers",
  ),
  ("scores", sinkjax.knockout([0, 12]), "position 12"),
  ("scores", sinkjax.knockout(0, from_layer=[1, 2]), "must be one integer"),
  ("scores", sinkjax.knockout(0, from_layer=True), "must be one integer"),
  (
    "pattern",
    SkipDormant(0.9, chosen=np.ones((1, 2, 4, 12), bool)),
    "3 layers",
  ),
  ("pattern", SkipDormant(0.9, chosen=np.ones((3, 2, 4, 12))), "bool mask"),
  ("scores", SkipPredicted(0.9, np.ones((1, 4))), "level .* 3 layers"),
]


@pytest.mark.parametrize(("site", "edit", "message"), WRONG)
def test_an_index_that_is_not_there_raises(tiny, tokens, site, edit, message):
  """In forward, in what takes the model apart, and in the streamed pass."""
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), {site: edit})
  with pytest.raises(ValueError, match=message):
    g(params, tokens)
  with pytest.raises(ValueError, match=message):
    sinkjax.jacobian_norms(g, params, tokens[0])
  with pytest.raises(ValueError, match=message):
    sinkjax.stream_statistics(g, {})(params, tokens)


UNROTATED = before_rotation(sinkjax.TINY, Quantize(4, keep=12), np.arange(12))


@pytest.mark.parametrize(
  ("site", "edit", "message"),
  [
    ("k", Quantize(4, keep=12), "position 12"),
    ("k", Quantize(4, layers=-4), "layer -4"),
    ("k", Quantize(4, per="tensor", limits=np.ones((1, 2))), "limits .* 3"),
    (
      "k",
      before_rotation(sinkjax.TINY, Quantize(4, keep=12), np.arange(12)),
      "12",
    ),
    ("z", Flat(Quantize(4, keep=-13)), "position -13"),
    ("embed", Shift(np.ones((3, 32)), 0), "shift .* 1 layers"),
    ("resid_mid", Shift(np.ones((1, 32)), 0), "shift .* 3 layers"),
    ("resid_mid", Shift(np.ones((3, 32)), 12), "position 12"),
    ("resid_mid", Clip(np.ones((1, 12))), "limit .* 3 layers"),
    ("resid_post", SetFirst(np.ones(32, bool), np.ones(32), 3), "layer 3"),
    ("resid_post", SetFirst([32], np.ones(32), 0), "dimension 32"),
  ],
)
def test_other_edits_check_their_indices(tiny, tokens, site, edit, message):
  params, cfg = tiny
  with pytest.raises(ValueError, match=message):
    sinkjax.intervene(sinkjax.forward(cfg), {site: edit})(params, tokens)


@pytest.mark.slow
def test_a_negative_position_of_other_edits(tiny, tokens):
  shift = np.ones((3, tiny[1].d_model), np.float32)
  same_logits(tiny, tokens, "resid_mid", Shift(shift, -2), Shift(shift, 10))
  edits = [Quantize(2, keep=k) for k in (-1, 11, np.arange(12) == 11)]
  same_logits(tiny, tokens, "k", *edits[:2])
  same_logits(tiny, tokens, "k", *edits[1:])


def test_several_keys_are_hidden(tiny, tokens):
  two = sinkjax.chain(sinkjax.knockout(0), sinkjax.knockout(4))
  mask = np.isin(np.arange(12), [0, 4])
  same_logits(tiny, tokens, "scores", two, sinkjax.knockout([4, -12]))
  same_logits(tiny, tokens, "scores", two, sinkjax.knockout(mask))


@pytest.mark.parametrize("index", [-1, 12])
def test_a_traced_index_out_of_range_touches_nothing(tiny, tokens, index):
  params, cfg = tiny
  f = sinkjax.forward(cfg)

  @jax.jit
  def run(i):
    edits = {
      "scores": sinkjax.chain(
        sinkjax.knockout(i),
        sinkjax.knockout(0, from_layer=i),
        sinkjax.knockout(0, heads=i),
      ),
      "mlp_out": sinkjax.scale(0.0, layers=i),
      "resid_mid": sinkjax.patch(jnp.ones((3, 1, 1, 1)), positions=i),
    }
    return sinkjax.intervene(f, edits)(params, tokens).logits

  np.testing.assert_array_equal(run(index), jax.jit(f)(params, tokens).logits)


@pytest.mark.parametrize(
  ("text", "message"),
  [([1, 64], "token id 64"), ([-1, 2], "token id -1"), ([1] * 4096, "max_len")],
)
def test_texts_that_the_model_cannot_have(tiny, text, message):
  params, cfg = tiny
  f, text = sinkjax.forward(cfg), jnp.array(text)
  for analysis in (
    lambda: sinkjax.jacobian_norms(f, params, text),
    lambda: sinkjax.jacobian_norms(f, params, text, method="reference"),
    lambda: sinkjax.token_jacobian(f, params, text, [(1, 0)]),
    lambda: sinkjax.estimate_norms(f, params, text, samples=2),
    lambda: sinkjax.power_norms(f, params, text, [(1, 0)]),
    lambda: layer_gains(f, params, text),
    lambda: sinkjax.stream_statistics(f, {})(params, text),
    lambda: loss_gradient(f, params, text),
    lambda: over_squashing(f, params, text),
    lambda: measure(cfg)(params, text[None]),
    lambda: last_logits(cfg)(params, text[None]),
  ):
    with pytest.raises(ValueError, match=message):
      analysis()
