"""Single claims of the sweeps of text models, on made-up outcomes."""

import numpy as np
import pytest
from made_sweeps import (
  as_the_papers_say,
  claims_of,
  config_of,
  made_up,
  measured,
)

from sinkjax.experiments.harness import sweep
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.training import (
  attention_variants,
  context_length,
  model_family,
  optimisation,
  sink_regulariser,
)
from sinkjax.experiments.training.attention_variants.masses import masses


def test_a_slope_is_what_it_is():
  """0.05 of attention a doubling, without noise to speak of."""
  claims = claims_of(context_length, as_the_papers_say(context_length, 0.5))
  slope = float(claims["longer_context_more_attention"].ours.split()[0])
  assert abs(slope - 0.05) < 0.003
  own = float(claims["trend_at_own_length"].ours.split()[0])
  assert abs(own - 0.3) < 0.06


def test_depth_is_told_apart_from_width():
  def deeper(name, form):
    layers, width = map(int, name.split("x"))
    return {"first_mass": 0.1 * layers - 0.1 * np.log2(width / 64)}

  claims = claims_of(model_family, deeper)
  depth, width = claims["deeper_stronger_sinks"], claims["wider_stronger_sinks"]
  assert "8x128" in depth.ours and depth.verdict == Verdict.SUPPORTED
  assert width.verdict == Verdict.CONTRADICTED


def test_width_is_compared_within_every_depth():
  """Wider is stronger in two layers, and weaker in four: no effect in all."""

  def opposed(name, form):
    layers, width = map(int, name.split("x"))
    sign = 1 if layers == 2 else -1
    return {"first_mass": 0.4 + 0.1 * sign * np.log2(width / 64)}

  claim = claims_of(model_family, opposed)["wider_stronger_sinks"]
  assert all(name in claim.ours for name in ("2x64", "2x128", "4x128", "4x256"))
  assert claim.verdict == Verdict.NO_EFFECT


def test_a_weaker_sink_in_a_worse_model_decides_nothing():
  """It may have learnt too little to have one, as with little data."""

  def truth(name, form):
    values = as_the_papers_say(attention_variants)
    worse = {"loss": 4.0} if name == "sigmoid" else {}
    return values(name, form) | worse

  claims = claims_of(attention_variants, truth)
  changed = {
    id for id, c in claims.items() if c.verdict == Verdict.INCONCLUSIVE
  }
  assert changed == {"less_sink_sigmoid", "normalised_sigmoid_stronger_sink"}
  assert all("the loss of sigmoid" in claims[id].why for id in changed)


def test_variants_are_compared_in_shares_of_a_row():
  """Half of the weight on every token is half of the sum, and no less sink."""

  def truth(name, form):
    if name == "softpick":
      return {"first_mass": 0.2, "row_sum": 0.5}
    return {"first_mass": 0.4}

  claim = claims_of(attention_variants, truth)["less_sink_softpick"]
  assert claim.verdict == Verdict.NO_EFFECT
  assert claim.effect.mean.value == pytest.approx(0, abs=0.005)
  for words in ("share of what a row gives 0.4", "0.2", "sum to 0.5"):
    assert words in claim.ours


@pytest.mark.parametrize(
  ("variant", "wanted"), [("softpick", (0.2, 0.4)), ("sigmoid", (None, 0.2))]
)
def test_masses_of_results_that_lack_shares(variant, wanted):
  """Unbounded sums were recorded as shares, all others as weights."""
  scalars = {"first_mass": [0.2, 0.2], "row_sum": [0.5, 0.5]}
  found = masses(variant, scalars)
  weight = None if found.weight is None else found.weight[0]
  assert (weight, found.share[0]) == pytest.approx(wanted)
  assert found.row_sum.tolist() == [0.5, 0.5]
  little = masses("clipped_softmax", scalars | {"row_sum": [0.1, 0.1]})
  assert little.share is None and little.weight.tolist() == [0.2, 0.2]
  more = scalars | {"first_weight": [0.3, 0.3], "first_share": [0.7, 0.7]}
  assert masses(variant, more).share.tolist() == [0.7, 0.7]


def test_a_share_that_does_not_follow_is_not_tested():
  """Rows that sum to next to nothing, in results without shares by row."""
  config = config_of(attention_variants)
  runs = attention_variants.variants(config)
  truth = as_the_papers_say(attention_variants)
  found = made_up(
    config,
    runs,
    lambda name, form: (
      truth(name, form)
      | ({"row_sum": 0.016} if name == "clipped_softmax" else {})
    ),
  )
  for one in found:
    for form in one["final"].values():
      del form["first_share"]
  trained = sweep.Trained.collect(config, list(runs), found)
  claims = judge(attention_variants.claims(trained, None))
  said = {c.id: c for c in claims if c.verdict == Verdict.NOT_TESTABLE}
  assert list(said) == ["less_sink_clipped_softmax"]
  assert "sum to 0.01" in said["less_sink_clipped_softmax"].ours


@pytest.mark.parametrize(
  "id", ["lower_rate_weaker_sink", "little_data_weaker_sink"]
)
def test_a_model_that_has_not_learnt_shows_no_effect_of_optimisation(id):
  values = as_the_papers_say(optimisation)
  assert claims_of(optimisation, values)[id].verdict == Verdict.SUPPORTED

  def unlearnt(name, form):
    worse = {"loss": 4.0} if name in ("rate_0.0003", "data_0.01") else {}
    return values(name, form) | worse

  assert claims_of(optimisation, unlearnt)[id].verdict == Verdict.INCONCLUSIVE


def test_a_term_that_misses_one_target_does_not_set_the_sink():
  values = as_the_papers_say(sink_regulariser)

  def missed(name, form):
    off = {"first_mass": 0.778} if name == "target_0.3" else {}
    return values(name, form) | off

  claim = claims_of(sink_regulariser, missed)["loss_term_sets_sink"]
  assert claim.verdict == Verdict.CONTRADICTED
  assert claim.effect.mean.value == pytest.approx(0.478, abs=0.005)


def test_a_longer_context_must_not_predict_better():
  """No lower is not just no difference that was found."""

  def truth(lift):
    return lambda name, form: {"near_loss": 3.0 + lift * np.log2(int(name))}

  id = "longer_context_no_better"
  for lift, verdict in (
    (0.0, Verdict.SUPPORTED),
    (0.1, Verdict.SUPPORTED),
    (-0.1, Verdict.CONTRADICTED),
  ):
    assert claims_of(context_length, truth(lift))[id].verdict == verdict


def test_relative_sinks_stand_beside_the_papers():
  """Uniform attention is 0 %; without a sink of softmax there is no share."""

  def truth(name, form):
    return {"first_mass": {"softpick": 0.07, "k_bias": 0.24}.get(name, 0.41)}

  found = measured(attention_variants, truth)
  left = found.numbers["left"]
  for name, value in {"softmax": 100, "softpick": 0, "k_bias": 50}.items():
    assert np.mean(left[name]) == pytest.approx(value, abs=2), name
  header, rows = found.tables["papers.csv"]
  by = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
  assert by["head_gate"]["left_percent"] == pytest.approx(100 * 7.3 / 46.7)
  assert by["head_gate"]["ours_left_percent"] == np.mean(left["head_gate"])
  assert by["qk_norm"]["left_percent"] is None
  none = measured(attention_variants, lambda *_: {"first_mass": 0.05})
  assert none.numbers["left"] == {} and not none.tables["papers.csv"][1]
