"""Sweeps of models that control their mixing: made-up and tiny ones."""

import dataclasses

import numpy as np
import pytest
from made_controls import SEEDS, all_drawn, row_of, stored, verdicts
from variants import scaled

import sinkjax
from sinkjax.experiments.harness.protocol import Verdict
from sinkjax.experiments.shared import controlled
from sinkjax.experiments.training import (
  head_roles,
  mixing_gate,
  norms_and_optimisers,
  sink_recipes,
)


def by_layer_and_length(config, depth, length):
  """[N, L, 4] rates of 0.5 in the first layer on the shortest texts."""
  n, layer, _ = np.ogrid[: len(config.lengths), : config.layers, :4]
  return 0.5 + depth * layer + length * n + 0.0 * np.ones((1, 1, 4))


GATES = dataclasses.replace(
  mixing_gate.Config(), seeds=SEEDS, variants=("softmax", "rate", "gate")
)


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
  """Less sink with both; the gate's rate falls in depth, and on long texts."""

  def truth(name, form):
    if name == "softmax":
      return {}
    return {"first_mass": 0.2, "value_ratio": 0.8 if name == "rate" else 0.5}

  one = np.ones((len(GATES.lengths), GATES.layers, 4))
  rows = [
    row_of("softmax", one, 0.4 * one),
    row_of("rate", by_layer_and_length(GATES, 0.05, 0.0), 0.2 * one, 0.5),
    row_of("gate", by_layer_and_length(GATES, -0.05, -0.04), 0.2 * one, 0.1),
  ]
  return stored(mixing_gate, GATES, rows, truth, tmp_path_factory.mktemp("g"))


def test_claims_of_rates(gates):
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  assert verdicts(mixing_gate, gates) == {
    "weaker_sink_rate": yes,
    "less_value_drain_rate": yes,
    "mixes_no_more_rate": no,
    "lower_rate_in_depth_rate": no,
    "weaker_sink_gate": yes,
    "less_value_drain_gate": Verdict.NO_EFFECT,
    "mixes_no_more_gate": yes,
    "lower_rate_in_depth_gate": yes,
    "lower_rate_on_long_texts_gate": yes,
  }


@pytest.mark.thorough
def test_figures_of_rates(gates):
  sections = all_drawn(mixing_gate, gates)
  header, lines = gates.tables["controls.csv"]
  assert {len(line) for line in lines} == {len(header)}
  assert len(lines) == 3 * len(SEEDS)
  rates = next(s for s in sections if s.title.startswith("At which rate"))
  assert len(rates.table.rows) == len(lines)


ROLES = dataclasses.replace(head_roles.Config(), seeds=SEEDS, shares=(0.0, 0.5))


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
  """Two heads that rest and two that do not; the other model is worse."""
  one = np.ones((len(ROLES.lengths), ROLES.layers, 4))
  resting = one * [0.2, 0.2, 0.9, 0.9]
  rows = [
    row_of("softmax", one, 0.4 * one),
    row_of("share_0", one, 0.1 * one, loss=3.3),
    row_of("share_0.5", resting, one * [0.9, 0.9, 0.1, 0.1]),
  ]

  def truth(name, form):
    return {"loss": 3.3} if name == "share_0" else {}

  return stored(head_roles, ROLES, rows, truth, tmp_path_factory.mktemp("r"))


def test_claims_of_roles(roles):
  yes = Verdict.SUPPORTED
  assert verdicts(head_roles, roles) == {
    "no_worse_0": Verdict.CONTRADICTED,
    # A worse model has a weaker sink for that reason alone.
    "information_heads_less_sink_0": Verdict.INCONCLUSIVE,
    "no_worse_0_5": yes,
    "information_heads_less_sink_0_5": yes,
    "control_heads_rest_0_5": yes,
  }


@pytest.mark.thorough
def test_figures_of_roles(roles):
  sections = all_drawn(head_roles, roles)
  table = next(s for s in sections if s.title == "Do the roles hold?").table
  by_name = {line[0]: line[-4:] for line in table.rows}
  assert by_name["softmax"][0] == "" and by_name["share_0"][2] == ""
  np.testing.assert_allclose(
    by_name["share_0.5"], [0.2, 0.9, 0.9, 0.1], atol=0.01
  )


NORMS = dataclasses.replace(
  norms_and_optimisers.Config(), seeds=SEEDS, recipes=("pre", "post", "muon")
)


def test_claims_of_norms(tmp_path):
  """Smaller activations with both, and without sinks; the sink stays."""

  def truth(name, form):
    size = 20.0
    size *= 0.4 if name.startswith("post") else 1
    size *= 0.5 if name.endswith("_sink_free") else 1
    return {"massive_ratio": size, "loss": 4.0 if name == "post" else 3.0}

  one = np.ones((len(NORMS.lengths), NORMS.layers, 4))
  names = norms_and_optimisers.variants(NORMS)
  rows = [row_of(name, one, 0.4 * one) for name in names]
  result = stored(norms_and_optimisers, NORMS, rows, truth, tmp_path)
  yes, no_effect = Verdict.SUPPORTED, Verdict.NO_EFFECT
  assert verdicts(norms_and_optimisers, result) == {
    # What has learnt less has smaller activations for that reason alone.
    "smaller_activations_post": Verdict.INCONCLUSIVE,
    "smaller_activations_muon": no_effect,
    "smaller_activations_post_sink_free": yes,
    "smaller_activations_muon_sink_free": no_effect,
    "smaller_without_sinks_pre": yes,
    "smaller_without_sinks_post": yes,
    "smaller_without_sinks_muon": yes,
    "sink_without_pre_norms": yes,
  }


RECIPES = dataclasses.replace(
  sink_recipes.Config(),
  seeds=SEEDS,
  recipes=("document_bos", "no_bos", "roles"),
)


def test_claims_of_recipes(tmp_path):
  def truth(name, form):
    if name == "no_bos":
      return {"loss": 3.2, "massive_ratio": 5.0}
    return {"massive_ratio": 10.0 if name == "roles" else 20.0}

  one = np.ones((len(RECIPES.lengths), RECIPES.layers, 4))
  names = sink_recipes.variants(RECIPES)
  rows = [row_of(name, one, 0.4 * one) for name in names]
  result = stored(sink_recipes, RECIPES, rows, truth, tmp_path)
  assert verdicts(sink_recipes, result) == {
    "no_worse_no_bos": Verdict.CONTRADICTED,
    # What has learnt less has smaller activations for that reason alone.
    "smaller_activations_no_bos": Verdict.INCONCLUSIVE,
    "no_worse_roles": Verdict.SUPPORTED,
    "smaller_activations_roles": Verdict.SUPPORTED,
  }


def test_what_each_variant_is():
  runs = mixing_gate.variants(mixing_gate.Config())
  base = runs["softmax"].model.to_dict()
  for name, run in runs.items():
    model = run.model.to_dict()
    changed = {key for key in model if model[key] != base.get(key)}
    changed -= {"attention"}
    assert len(changed) == (name != "softmax"), name
    assert model["max_len"] == 1024
  with pytest.raises(ValueError, match="mixing_gate has no 'halting'"):
    mixing_gate.variants(mixing_gate.Config(variants=("halting",)))

  runs = head_roles.variants(head_roles.Config())
  counts = [run.model.control_heads for run in runs.values()]
  assert counts == [0, 0, 1, 2, 3]
  for share in (0.3, 1.0):
    with pytest.raises(ValueError, match="a whole number of 4 heads"):
      head_roles.variants(head_roles.Config(shares=(share,)))

  runs = norms_and_optimisers.variants(norms_and_optimisers.Config())
  assert len(runs) == 12
  muon = {name for name, run in runs.items() if run.optimizer.name == "muon"}
  assert len(muon) == 4 and all(name.startswith("muon") for name in muon)
  assert "name" not in runs["pre"].to_dict()["optimizer"]
  again = type(runs["muon"]).from_dict(runs["muon"].to_dict())
  assert again == runs["muon"]
  with pytest.raises(ValueError, match="norms_and_optimisers has no 'lion'"):
    norms_and_optimisers.variants(
      norms_and_optimisers.Config(recipes=("lion",))
    )

  runs = sink_recipes.variants(sink_recipes.Config())
  terms = {name: run.sink() for name, run in runs.items() if run.sink()}
  assert list(terms) == ["target"]
  assert terms["target"] == (0.6, 10.0, 2, 0.0)
  again = type(runs["target"]).from_dict(runs["target"].to_dict())
  assert again == runs["target"]
  assert "sink_heads" not in runs["gate"].to_dict()
  with pytest.raises(ValueError, match="sink_heads needs a sink_target"):
    dataclasses.replace(runs["gate"], sink_heads=2)
  with pytest.raises(ValueError, match="sink_others needs sink_heads"):
    dataclasses.replace(runs["target"], sink_heads=None, sink_others=0.1)
  with pytest.raises(ValueError, match="need two heads"):
    sink_recipes.variants(sink_recipes.Config(head_dim=128))
  for module in (mixing_gate, head_roles, norms_and_optimisers, sink_recipes):
    for scale in module.SCALES.values():
      module.variants(module.Config(**scale))


@pytest.mark.thorough
@pytest.mark.parametrize("mixing", ["none", "rate"])
def test_rates_of_a_model(mixing):
  """Of rates the sigmoids; else one less what the learned key takes."""
  import jax
  import jax.numpy as jnp

  cfg = sinkjax.TINY.replace(mixing=mixing, control_heads=2)
  params = scaled(sinkjax.init_params(cfg, jax.random.key(0)), 2)
  tokens = jnp.asarray(np.random.default_rng(0).integers(64, size=(2, 9)))
  watch = controlled.observers(cfg) | {"p": ("pattern", lambda p: p)}
  trace = jax.jit(sinkjax.capture(sinkjax.forward(cfg), watch))(
    params, tokens
  ).trace
  p = np.asarray(trace["p"], np.float64)
  want = p[:, :, :, 1:].sum(-1).mean(-1)
  assert want[..., :2].max() < 1 and np.allclose(want[..., 2:], 1)
  if mixing == "rate":
    want = 0.5
  np.testing.assert_allclose(trace["rate"], want + 0 * p[..., 0, 0], rtol=1e-5)
  share = p[..., 0] / p.sum(-1)
  np.testing.assert_allclose(trace["first"], share.mean(-1), rtol=1e-5)


@pytest.mark.slow
def test_tiny_models_are_trained_and_read_again(corpus, tmp_path):
  small = {
    "corpus": corpus,
    "layers": 2,
    "d_model": 32,
    "head_dim": 16,
    "vocab_size": 300,
    "length": 32,
    "batch": 4,
    "steps": 4,
    "warmup": 2,
    "every": 2,
    "texts": 16,
    "seeds": (0, 1),
    "lengths": (16, 64),
    "starts": 4,
    "map_tokens": 8,
    "map_texts": 2,
  }
  for module, own in (
    (mixing_gate, {"variants": ("softmax", "gate")}),
    (head_roles, {"shares": (0.5,)}),
    (
      norms_and_optimisers,
      {"recipes": ("pre", "muon_one_scale"), "normalizers": ("softmax",)},
    ),
    (sink_recipes, {"recipes": ("no_bos", "target", "gate_roles")}),
  ):
    config = module.Config(**small, **own)
    name = module.__name__.rpartition(".")[2]
    result = module.EXPERIMENT.measure(config, folder=tmp_path / name)
    rows = result.numbers["controls"]
    assert [row["variant"] for row in rows] == result.numbers["variants"]
    for row in rows:
      assert controlled.rates(row).shape == (2, 2, 2, 2)
      assert all(0 < x < 1 for x in row["mixing_rest"])
      assert row["seeds"] == [0, 1]
    all_drawn(module, result.as_stored(config))
    again = module.EXPERIMENT.measure(config, folder=tmp_path / name)
    assert again.numbers["controls"] == rows
