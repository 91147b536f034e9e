"""Sweeps of text models: runs as they are asked for, claims as they follow.

Outcomes are made up here; `test_packing` and `test_model_family` train.
"""

import dataclasses
import importlib
import zlib

import numpy as np
import pytest

from sinkjax.experiments import TRAINING
from sinkjax.experiments.harness import claims_page as reproduce
from sinkjax.experiments.harness import sweep as text_sweep
from sinkjax.experiments.training import (
  attention_variants,
  context_length,
  model_family,
  optimisation,
  packing,
  progressive_context,
  sink_regulariser,
)
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
IDS = [module.NAME for module in SWEEPS]
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


def result_of(module, truth, **changes):
  """The `Result` of a module on made-up outcomes."""
  config = dataclasses.replace(module.Config(**module.SCALES["cpu"]), **changes)
  if module is model_family:
    config = dataclasses.replace(config, outside=())
  runs = module.variants(config)
  found = made_up(config, runs, truth)

  def run_jobs(jobs, folder, progress):
    assert [job.request["variant"] for job in jobs] == [
      one["request"]["variant"] for one in found
    ]
    return found

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_sweep, "run_jobs", run_jobs)
    return module.run(config, folder=None)


def verdicts(result):
  return [claim.verdict for claim in result.claims]


def as_the_papers_say(module, sign=1):
  """A truth in which every claim of a module holds, or its opposite does."""
  lift = 0.1 * sign

  def context(name, form):
    doublings = np.log2(int(name))
    even = uniform_mass(int(name))
    return {
      "first_mass": 0.5 + lift * doublings,
      "sink_rate_0.1": 0.5 + lift * doublings,
      "own_first_mass": even * (8 + 10 * lift * doublings),
      "near_loss": 3.0 + lift * doublings,
    }

  def packed(name, form):
    mask, bos = name.split("-")
    if name == "separate-none":
      return {"first_mass": 0.07 + lift}
    on = {"pinned": 0.4 + lift, "document": 0.4}[bos]
    if form == "text" and bos == "pinned":
      return {"first_mass": 0.4, "loss": 3.0 + lift}
    return {"first_mass": on}

  def attention(name, form):
    values = {}
    if name in attention_variants.LESS:
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

  def decree(name, form):
    if name == "free":
      return {}
    target = float(name.split("_")[1])
    return {
      "first_mass": 0.3 + lift * target,
      "loss": 3.0 + lift,
      "entropy_share": 0.5 - lift * target,
    }

  return dict(
    zip(
      IDS,
      (context, packed, attention, knobs, family, progressive, decree),
      strict=True,
    )
  )[module.NAME]


@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
def test_verdicts_follow_the_numbers(module):
  holds = result_of(module, as_the_papers_say(module))
  against = result_of(module, as_the_papers_say(module, -1))
  level = result_of(module, as_the_papers_say(module, 0))
  assert holds.claims and set(verdicts(holds)) == {"agrees"}
  assert set(verdicts(against)) == {"disagrees"}
  assert "undecided" in verdicts(level)
  alone = result_of(module, as_the_papers_say(module), seeds=(0,))
  assert not alone.claims


@pytest.mark.parametrize("module", SWEEPS, ids=IDS)
def test_everything_is_drawn_and_told(module, tmp_path):
  """What `launch.reproduce` writes, whole; tables have a row for each seed."""
  result = result_of(module, as_the_papers_say(module))
  report = importlib.import_module(f"sinkjax.report.{TRAINING[module.NAME]}")
  drawn = report.draw(result)
  sections = report.sections(result, drawn)
  assert {section.figure for section in sections} == set(drawn.values())
  assert all(png.startswith(html.PNG_SIGNATURE) for png in drawn.values())
  (tmp_path / module.NAME).mkdir()
  reproduce.write(
    tmp_path / module.NAME, result, drawn, sections, {"seconds": 1.0}
  )
  data = reproduce.read(tmp_path / module.NAME)
  details = {"device": "none"}
  page = reproduce.page(
    tmp_path, [data], model=None, seconds=1.0, command="x", details=details
  )
  assert result.title in page
  for claim in result.claims:
    assert claim.claim.split("'")[0] in page and "nan" not in claim.ours.split()
  header, rows = result.tables["rows.csv"]
  seeds = len(result.numbers["seeds"])
  assert len(rows) == seeds * len(result.numbers["rows"])
  assert {len(row) for row in rows} == {len(header)}
  header, rows = result.tables["curves.csv"]
  assert len(rows) == 3 * seeds * len(result.numbers["variants"])


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
  lines = module.plan(config)
  assert f"{len(runs) * len(config.seeds)} runs" in lines[0]
  assert any("flop in all" in line for line in lines)


def test_a_slope_is_told_as_it_is():
  """0.05 of attention a doubling, without noise to speak of."""
  result = result_of(context_length, as_the_papers_say(context_length, 0.5))
  slope = float(result.claims[0].ours.split()[0])
  assert abs(slope - 0.05) < 0.003
  own = float(result.claims[2].ours.split()[0])
  assert abs(own - 0.5) < 0.1


def test_depth_is_told_apart_from_width():
  def deeper(name, form):
    layers, width = map(int, name.split("x"))
    return {"first_mass": 0.1 * layers - 0.1 * np.log2(width / 64)}

  claims = {c.claim: c.verdict for c in result_of(model_family, deeper).claims}
  assert claims["Deeper models of one width do (width 128)."] == "agrees"
  assert claims["Wider models of one depth do (2 layers)."] == "disagrees"


def test_what_each_variant_of_attention_is():
  """One option away from softmax, and on a path that has it."""
  runs = attention_variants.variants(attention_variants.Config())
  base = runs["softmax"]
  for name, run in runs.items():
    model, plain = run.model.to_dict(), base.model.to_dict()
    changed = {key for key in model if model[key] != plain[key]}
    assert changed - {"attention", "vocab_size"} <= {
      "normalizer",
      "attn_bias",
      "gate",
      "sink_logit",
      "qk_norm",
    }, name
    same = not changed - {"vocab_size"} and run.packing == base.packing
    assert same == (name == "softmax")
  assert runs["registers"].text_vocab_size == base.text_vocab_size


def test_less_of_a_sink_in_a_worse_model_decides_nothing():
  """It may have learnt too little to have one, as with little data."""

  def truth(name, form):
    values = as_the_papers_say(attention_variants)
    worse = {"loss": 4.0} if name == "sigmoid" else {}
    return values(name, form) | worse

  claims = {c.claim: c for c in result_of(attention_variants, truth).claims}
  changed = {name for name, c in claims.items() if c.verdict == "undecided"}
  assert changed == {
    "There is less of a sink with sigmoid.",
    "Normalising the sigmoids brings the sink back.",
  }
  assert all("sigmoid is a worse model" in claims[name].why for name in changed)


def test_what_is_left_of_the_sink_stands_beside_the_papers():
  """Even attention is nothing left; of no sink nothing can be left."""

  def truth(name, form):
    return {"first_mass": {"softpick": 0.07, "k_bias": 0.24}.get(name, 0.41)}

  found = result_of(attention_variants, truth)
  left = found.numbers["left"]
  for name, value in {"softmax": 100, "softpick": 0, "k_bias": 50}.items():
    assert np.mean(left[name]) == pytest.approx(value, abs=2), name
  header, rows = found.tables["papers.csv"]
  by = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
  assert by["head_gate"]["left_percent"] == pytest.approx(100 * 7.3 / 46.7)
  assert by["head_gate"]["ours_left_percent"] == np.mean(left["head_gate"])
  assert by["qk_norm"]["left_percent"] is None
  none = result_of(attention_variants, lambda *_: {"first_mass": 0.05})
  assert none.numbers["left"] == {} and not none.tables["papers.csv"][1]


def test_knobs_leave_the_tokens_as_they_are():
  runs = optimisation.variants(optimisation.Config())
  assert {run.steps * run.batch for run in runs.values()} == {700 * 8}
  assert runs["data_0.01"].train_share == 0.01
  assert runs["rate_0.01"].optimizer.peak == 0.01
  with pytest.raises(ValueError, match="no whole number"):
    optimisation.variants(optimisation.Config(batches=(0.3,)))


def test_windows_grow_to_the_fixed_length():
  runs = progressive_context.variants(progressive_context.Config())
  growing = runs["growing"]
  assert [stage.length for stage in growing.stages] == [64, 128, 256]
  assert [growing.batch_at(s) * s.length for s in growing.all_stages()] == [
    runs["fixed"].batch * 256
  ] * 3
  with pytest.raises(ValueError, match="add up to 1"):
    progressive_context.variants(
      progressive_context.Config(shares=(0.3, 0.3, 0.3))
    )


@pytest.mark.parametrize(
  ("module", "changes", "words"),
  [
    (context_length, {"contexts": (32,)}, "must be 64 at least"),
    (context_length, {"contexts": (100,)}, "divide the 2048 tokens"),
    (attention_variants, {"variants": ("hardmax",)}, "has no 'hardmax'"),
    (sink_regulariser, {"targets": (1.5,)}, r"must be in \[0, 1\]"),
  ],
)
def test_what_cannot_be_is_said(module, changes, words):
  config = dataclasses.replace(module.Config(), **changes)
  with pytest.raises(ValueError, match=words):
    module.variants(config)
