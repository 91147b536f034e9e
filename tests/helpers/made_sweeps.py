"""Sweeps of text models on made-up outcomes, instead of training."""

import contextlib
import dataclasses
import zlib

import numpy as np
import pytest

from sinkjax.experiments.harness import sweep
from sinkjax.experiments.harness.protocol import judge
from sinkjax.experiments.training import (
  attention_variants,
  context_length,
  model_family,
  optimisation,
  packing,
  progressive_context,
  sink_regulariser,
)
from sinkjax.experiments.training.attention_variants.papers import EXPECT_WEAKER
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
