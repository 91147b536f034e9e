"""Sweeps of text models: runs as they are asked for, claims as they follow.

Outcomes are made up here; `test_packing` and `test_noise_training` train.
"""

import contextlib
import dataclasses
import re
import zlib

import numpy as np
import pytest

from sinkjax.experiments import BY_NAME
from sinkjax.experiments.harness import runner, sweep
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.training import (
  attention_variants,
  context_length,
  model_family,
  optimisation,
  packing,
  progressive_context,
  sink_regulariser,
)
from sinkjax.experiments.training.attention_variants.masses import masses
from sinkjax.experiments.training.attention_variants.papers import EXPECT_WEAKER
from sinkjax.report import html
from sinkjax.train.probe import uniform_mass

SWEEPS = (
  context_length,
  packing,
  attention_variants,
  optimisation,
  model_family,
  progressive_context,
  sink_regulariser,
)
IDS = [module.__name__.rpartition(".")[2] for module in SWEEPS]
PROBED = ("first_mass", "sink_rate_0.1", "value_ratio")


def made_up(config, variants, truth):
  """Outcomes in which `truth(variant, form)` changes some scalars.

  Every number has noise of its own, far smaller than a change of 0.1.
  """

  def noise(*key):
    seed = zlib.crc32(repr(key).encode())
    return 0.002 * np.random.default_rng(seed).standard_normal()

  def final(name, run, form, seed):
    length = run.packing.length
    values = {
      "loss": 3.0,
      "near_loss": 3.2,
      "texts": 8,
      "first_mass": 0.4,
      "first_weight": 0.4,
      "first_share": 0.4,
      "sink_rate_0.1": 0.5,
      "sink_rate_0.3": 0.3,
      "uniform_mass": 0.07,
      "row_sum": 1.0,
      "entropy_share": 0.5,
      "value_ratio": 0.5,
      "kurtosis": 9.0,
      "massive_ratio": 20.0,
      "effective_rank": 30.0,
      "own_first_mass": 0.4,
      "own_sink_rate_0.3": 0.3,
      "own_uniform_mass": uniform_mass(length),
    }
    values |= truth(name, form)
    if "row_sum" in values and "first_share" not in truth(name, form):
      # As in a model: what the first token has is a part of its row.
      values["first_weight"] = values["first_mass"]
      values["first_share"] = values["first_mass"] / values["row_sum"]
    exact = ("texts", "uniform_mass", "own_uniform_mass")
    return {
      key: value if key in exact else value + noise(name, form, seed, key)
      for key, value in values.items()
    }

  def outcome(name, run, seed):
    forms = (
      ("bos", "text")
      if run.packing.front or run.packing.bos != "none"
      else ("text",)
    )
    ends = {form: final(name, run, form, seed) for form in forms}
    last = ends[forms[0]]
    history = []
    for step, share in ((0, 0.0), (run.steps // 2, 0.5), (run.steps, 1.0)):
      at = {key: share * last[key] for key in PROBED}
      history.append({"kind": "eval", "step": step, "loss": 7 - 4 * share})
      history.append({"kind": "probe", "step": step, **at})
    alpha = np.full((run.model.n_layers, run.model.n_heads), 0.1).tolist()
    return {
      "request": {"variant": name},
      "final": ends,
      "history": history,
      "alpha": alpha,
      "training_seconds": truth(name, forms[0]).get("seconds", 60.0)
      + noise(name, seed),
    }

  return [
    outcome(name, run, seed)
    for seed in config.seeds
    for name, run in variants.items()
  ]


SEEDS = tuple(range(10))
"""The sign-flip test with Holm's correction over 16 claims needs ten."""


def config_of(module, **changes):
  config = module.Config(**module.SCALES["cpu"])
  config = dataclasses.replace(config, seeds=SEEDS)
  if module is model_family:
    config = dataclasses.replace(config, outside=())
  return dataclasses.replace(config, **changes)


@contextlib.contextmanager
def outcomes(module, config, truth):
  """Instead of training, runs have made-up outcomes."""
  found = made_up(config, module.variants(config), truth)

  def run_jobs(jobs, folder, progress):
    assert [job.request["variant"] for job in jobs] == [
      one["request"]["variant"] for one in found
    ]
    return found

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sweep, "run_jobs", run_jobs)
    yield


def measured(module, truth, **changes):
  """The `Result` of a module on made-up outcomes."""
  config = config_of(module, **changes)
  with outcomes(module, config, truth):
    return module.EXPERIMENT.measure(config, folder=None)


def claims_of(module, truth, **changes):
  """{id: claim with its verdict} on made-up outcomes."""
  result = measured(module, truth, **changes)
  stored = result.as_stored(config_of(module, **changes))
  made = judge(module.EXPERIMENT.claims(stored))
  found = {claim.id: claim for claim in made}
  assert len(found) == len(made)
  return found


def verdicts(module, truth, **changes):
  return [c.verdict for c in claims_of(module, truth, **changes).values()]


def as_the_papers_say(module, sign=1):
  """A truth in which every claim of a module holds, or its opposite does."""
  lift = 0.1 * sign

  def context(name, form):
    doublings = np.log2(int(name))
    even = uniform_mass(int(name))
    return {
      "first_mass": 0.5 + lift * doublings,
      "sink_rate_0.1": 0.5 + lift * doublings,
      "own_first_mass": even * (8 + 6 * lift * (doublings - 7)),
      # Longer contexts may be worse models: worse ones have weaker sinks.
      "near_loss": 3.0 + lift * doublings,
    }

  def packed(name, form):
    mask, bos = name.split("-")
    if name == "separate-none":
      return {"first_mass": 0.07 + lift}
    on = {"pinned": 0.4 + lift, "document": 0.4}[bos]
    if form == "text" and bos == "pinned":
      return {"first_mass": 0.4, "loss": 3.0 + lift}
    return {"first_mass": on, "loss": 3.0}

  def attention(name, form):
    values = {}
    if name in EXPECT_WEAKER:
      values |= {"first_mass": 0.4 - lift, "loss": 2.98}
    if name in ("softpick", "element_gate"):
      values |= {"kurtosis": 9 - 10 * lift, "massive_ratio": 20 - 50 * lift}
    return values

  def knobs(name, form):
    less = ("rate_0.0003", "data_0.01", "decay_2")
    sizes = dict.fromkeys(less, 0.4 - lift) | {"decay_0.5": 0.4 + lift}
    return {"first_mass": sizes.get(name, 0.4)}

  def family(name, form):
    layers, width = map(int, name.split("x"))
    return {"first_mass": 0.1 + lift * np.log2(layers * width)}

  def progressive(name, form):
    if name != "growing":
      return {}
    return {
      "first_mass": 0.4 - lift,
      "loss": 3.0 - lift,
      "seconds": 60.0 * (1 - lift),
    }

  def regularised(name, form):
    if name == "free":
      return {}
    target = float(name.split("_")[1])
    return {
      "first_mass": target if lift > 0 else 0.5,
      "loss": 3.0 + lift,
      "entropy_share": 0.5 - lift * target,
    }

  return dict(
    zip(
      IDS,
      (context, packed, attention, knobs, family, progressive, regularised),
      strict=True,
    )
  )[IDS[SWEEPS.index(module)]]


@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
def test_verdicts_follow_the_numbers(module):
  holds = verdicts(module, as_the_papers_say(module))
  assert holds and set(holds) == {Verdict.SUPPORTED}
  against = verdicts(module, as_the_papers_say(module, -1))
  assert set(against) == {Verdict.CONTRADICTED}
  assert Verdict.NO_EFFECT in verdicts(module, as_the_papers_say(module, 0))
  few = verdicts(module, as_the_papers_say(module), seeds=(0, 1, 2))
  assert set(few) == {Verdict.INCONCLUSIVE}
  assert not verdicts(module, as_the_papers_say(module), seeds=(0,))


@pytest.mark.thorough
@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
def test_everything_is_written_drawn_and_reported(module, tmp_path):
  """What the runner writes, read again; tables have a row for each seed."""
  entry = BY_NAME[IDS[SWEEPS.index(module)]]
  config, folder = config_of(module), tmp_path / entry.name
  request = runner.Request(entry, config, {"scale": "cpu"})
  with outcomes(module, config, as_the_papers_say(module)):
    runner.run(folder, request, lambda: None, overwrite=False)
  one = runner.measured(folder)
  drawn = module.EXPERIMENT.draw(one.result)
  for name, png in drawn.items():
    assert png.startswith(html.PNG_SIGNATURE)
    assert (folder / name).read_bytes() == png
  assert {x.figure for x in one.sections()} == set(drawn.values())
  runner.report(tmp_path, [one], command="x")
  page = (tmp_path / "report.html").read_text()
  assert module.EXPERIMENT.title in page
  for claim in one.claims():
    words = re.split(r"[^\w.]+", f"{claim.ours} {claim.how} {claim.why}")
    assert claim.claim.split("'")[0] in page and "nan" not in words
  numbers = one.result.numbers
  header, rows = one.result.tables["rows.csv"]
  seeds = len(numbers["seeds"])
  assert len(rows) == seeds * len(numbers["rows"])
  assert {len(row) for row in rows} == {len(header)}
  header, rows = one.result.tables["curves.csv"]
  assert len(rows) == 3 * seeds * len(numbers["variants"])


def test_what_was_trained_is_read_back_from_the_files():
  """Every number of the trained models, as far as files keep them."""
  config = config_of(packing)
  runs = packing.variants(config)
  found = made_up(config, runs, as_the_papers_say(packing))
  trained = sweep.Trained.collect(config, list(runs), found)
  again = sweep.Trained.of(trained.as_result({}, {}, {}).as_stored(config))
  assert again.seeds == trained.seeds and again.rate == trained.rate
  assert again.uniform == pytest.approx(trained.uniform, rel=1e-6)
  for key, scalars in trained.final.items():
    assert set(again.final[key]) == set(scalars)
    for name, values in scalars.items():  # files keep seven digits
      np.testing.assert_allclose(again.final[key][name], values, rtol=1e-6)
  for name, probes in again.probes.items():
    assert set(probes) == {"step", "first_mass", "sink_rate_0.1"}
    for key, values in probes.items():
      np.testing.assert_array_equal(values, trained.probes[name][key])
    np.testing.assert_array_equal(again.alpha[name], trained.alpha[name])
    for key, values in again.losses[name].items():
      np.testing.assert_array_equal(values, trained.losses[name][key])
    np.testing.assert_allclose(again.seconds[name], trained.seconds[name])


@pytest.mark.thorough
@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
@pytest.mark.parametrize("scale", ["demo", "cpu", "gpu", "paper"])
def test_every_scale_can_be_trained(module, scale):
  """Runs are distinct, fit their model, and say what they need."""
  config = module.Config(**module.SCALES[scale])
  runs = module.variants(config)
  requests = [str(run.to_dict()) for run in runs.values()]
  assert len(set(requests)) == len(requests) > 1
  tokens = {run.steps * run.batch * run.packing.length for run in runs.values()}
  assert len(tokens) == 1  # equal tokens, always
  for run in runs.values():
    if run.batch % run.accumulate:
      pytest.fail("a batch that its parts do not divide")
  lines = module.EXPERIMENT.plan(config)
  assert f"{len(runs) * len(config.seeds)} runs" in lines[0]
  assert any("flop in all" in line for line in lines)


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


def test_runs_from_before_a_measurement_can_be_gone_on_with():
  config = config_of(packing)
  runs = packing.variants(config)
  found = made_up(config, runs, as_the_papers_say(packing))
  for form in found[3]["final"].values():
    del form["first_share"]
  trained = sweep.Trained.collect(config, list(runs), found)
  assert all("first_share" not in x for x in trained.final.values())
  assert all("first_weight" in x for x in trained.final.values())


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
