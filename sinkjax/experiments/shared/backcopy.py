"""Experiments on the Bigram-Backcopy task (Guo et al., arXiv 2410.13835).

A head that copies at triggers has nothing to do at any other token. What is
trained, measured and drawn is the same for the experiments `bigram_backcopy`,
with one layer, and `residual_peak`, with three; each has claims of its own.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sinkjax.data.corpus import gather
from sinkjax.data.synthetic import Backcopy, backcopy_optimum, backcopy_task
from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, SHARE, Effect, Expect
from sinkjax.experiments.harness.jobs import Advance, Job, run_jobs
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.shared.backcopy_training import (
  BackcopyConfig,
  train,
  uniform_first,
)
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect

SOURCE = "Guo et al., section 2"

_LARGE = {"length": 256, "batch": 512, "d_model": 256, "peak": 3e-4}

LARGE_SCALES: dict[str, dict[str, Any]] = {
  "gpu": _LARGE | {"steps": 3000, "every": 50},
  "paper": _LARGE | {"steps": 10_000, "every": 100},
}
"""Fields of `BackcopyConfig` by --scale, for those that need a card."""


def task_of(config: BackcopyConfig) -> Backcopy:
  """The task of the corpus's bigrams."""
  text = "\n".join(gather(config.corpus).texts)
  return backcopy_task(text, triggers=config.triggers)


def jobs(config: BackcopyConfig, task: Backcopy) -> list[Job]:
  """Every run of the sweep: all seeds of a normaliser in a row."""
  request = dataclasses.asdict(config)
  # A request holds all that decides one outcome. The lists of the sweep do not,
  # and with them in it a new seed would make every kept run stale.
  del request["normalizers"], request["seeds"]

  def job(normalizer: str, seed: int) -> Job:
    what = {"normalizer": normalizer, "seed": seed}

    def work(folder: pathlib.Path, device: jax.Device, advance: Advance):
      return train(config, task, **what, advance=advance)

    return Job(f"{normalizer}-{seed}", config.steps, {**request, **what}, work)

  return [
    job(normalizer, seed)
    for normalizer in config.normalizers
    for seed in config.seeds
  ]


def plan(config: BackcopyConfig) -> list[str]:
  """What will be trained, for --dry_run."""
  runs = len(config.normalizers) * len(config.seeds)
  tokens = config.steps * config.batch * config.length
  return [
    f"{runs} runs ({', '.join(config.normalizers)}; seeds "
    f"{', '.join(map(str, config.seeds))}) of {config.layers} "
    f"layer{'s' * (config.layers > 1)}, {config.steps:,} steps and {tokens:,} "
    "tokens each"
  ]


def measure(
  config: BackcopyConfig,
  *,
  folder: pathlib.Path,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains the runs that are missing and collects what all came to.

  Args:
    config: of the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `run_jobs`.
  """
  task = task_of(config)
  found = run_jobs(jobs(config, task), folder, progress=progress)
  about = ("normalizer", "layers", "seed")
  measured = history.histories(found, about, len(config.seeds))
  return Result(
    numbers={
      "models": list(config.normalizers),
      "layers": config.layers,
      "seeds": list(config.seeds),
      "steps": measured.steps,
      "optimum": float(backcopy_optimum(task, config.length).mean()),
      "uniform_first": uniform_first(config, task),
      # Id 0 is BOS, so the ids of characters start at 1.
      "tokens": [
        "BOS" if i == 0 else task.characters[i - 1] for i in found[0]["tokens"]
      ],
      "triggers": list(task.characters[: config.triggers]),
      "last": measured.last(config.normalizers),
    },
    tables={"history.csv": measured.table},
    arrays={
      **measured.arrays,
      "steps": np.array(measured.steps),
      # All seeds of a normaliser stand in a row: this is the first of each.
      "maps": np.array([one["map"] for one in found[:: len(config.seeds)]]),
    },
  )


def is_tested(result: Result) -> bool:
  """Whether softmax was trained, and with the seeds that an interval needs."""
  return (
    "softmax" in result.numbers["models"] and len(result.numbers["seeds"]) > 1
  )


def others(result: Result) -> list[str]:
  """The normalisers that are compared with softmax."""
  return [name for name in result.numbers["models"] if name != "softmax"]


def through_training(
  result: Result, name: str, normalizer: str = "softmax"
) -> np.ndarray:
  """[S, K] a quantity of one normaliser's models."""
  return result.arrays[name][result.numbers["models"].index(normalizer)]


def models_in_words(result: Result) -> str:
  """The models of a result, as a claim starts with them."""
  layers = result.numbers["layers"]
  count = {1: "one layer", 2: "two layers", 3: "three layers"}
  words = count.get(layers, f"{layers} layers")
  return f"In Bigram-Backcopy models of {words},"


def in_words(normalizer: str) -> str:
  """Its name in a sentence.

  >>> in_words("relu"), in_words("normalized_sigmoid")
  ('ReLU', 'normalized sigmoid')
  """
  return {"relu": "ReLU"}.get(normalizer, normalizer.replace("_", " "))


def paper_on(normalizer: str) -> str:
  """What the paper reports of a normaliser other than softmax."""
  return (
    "with ReLU, all of it vanishes" if normalizer == "relu" else "not tried"
  )


def learnt_as_much(result: Result, normalizer: str) -> Effect:
  """That another normaliser's models are no worse than those of softmax."""
  other, plain = (
    through_training(result, "excess", name)[:, -1]
    for name in (normalizer, "softmax")
  )
  return no_worse(other, plain, f"{in_words(normalizer)} attention", "softmax")


def dormant_claim(result: Result) -> Claim:
  """That dormant queries of softmax models attend to BOS."""
  first = through_training(result, "dormant_first")[:, -1]
  uniform = result.numbers["uniform_first"]
  return Claim(
    "dormant_queries_attend_to_bos",
    f"{models_in_words(result)} dormant queries, which have nothing to copy, "
    "attend to BOS more than uniform attention does.",
    SOURCE,
    "curves, no number",
    f"{mean(first)} of their attention is on BOS, uniform attention "
    f"{uniform:.3f}",
    seed_effect(
      first - uniform,
      "attention of dormant queries on BOS, less uniform attention,",
      SHARE,
      Expect.MORE,
    ),
  )


def value_claim(result: Result) -> Claim:
  """That the value of BOS is small in softmax models."""
  ratio = through_training(result, "value_ratio")[:, -1]
  return Claim(
    "bos_value_is_small",
    f"{models_in_words(result)} the value vector of BOS has a smaller norm "
    "than those of other tokens.",
    SOURCE,
    "curves, no number",
    f"smaller than the others' by {mean(1 - ratio)} of their norm",
    seed_effect(
      np.log(ratio),
      "the norm of BOS's value over that of the other tokens' values",
      LOG_RATIO,
      Expect.LESS,
    ),
  )


def schedule(result: Result) -> bytes:
  """The six quantities of the task through training."""
  panels = {
    "dormant_first": "Dormant queries: attention on BOS",
    "active_previous": "Triggers: attention on the previous token",
    "excess": "Loss above the lowest possible, nats",
    "value_ratio": "Value norm of BOS over the others'",
    "sink_logit": "Score of BOS above the others'",
    "residual_peak": "Residual norm of BOS over the others'",
  }
  return history.schedule(
    result,
    panels,
    rows=2,
    height=5.6,
    uniform="dormant_first",
    scales={"excess": {"value": "log"}},
  )
