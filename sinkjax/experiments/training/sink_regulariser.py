"""Sinks by decree: a loss term that draws every head's sink to a target.

What comes by itself need not be what is best. Each head's attention on the
first token is drawn to a given mass, see `train.loss.SinkTarget`; beside what
comes of the loss stands what comes of entropy, mixing and spread.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sinkjax.experiments.harness import sweep as text_sweep
from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean
from sinkjax.experiments.harness.sweep import (
  GPU,
  TOKENS_5B,
  Sweep,
  TextConfig,
  text_run,
)
from sinkjax.report import html
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "sink_regulariser", "Sinks by decree"
SOURCE = "sections 1 and 3, the argument turned into a test"


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: no target, and every target, with every seed.

  Attributes:
    targets: attention on the first token that every head is drawn to.
    weight: of that in the loss, nats at a distance of 1.
  """

  targets: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9)
  weight: float = 10.0


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"targets": (0.0, 0.6), "seeds": (0,), "steps": 500},
  "cpu": {},
  "gpu": GPU | {"length": 256, "batch": 64, "steps": 1000},
  "paper": text_sweep.PAPER | {"steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The runs "free" and "target_MASS".

  Raises:
    ValueError: for a target outside [0, 1].
  """
  if not all(0 <= target <= 1 for target in config.targets):
    raise ValueError(f"targets must be in [0, 1], got {config.targets}")
  runs = {"free": text_run(config)}
  for target in config.targets:
    runs[f"target_{target:g}"] = text_run(
      config, sink_target=target, sink_weight=config.weight
    )
  return runs


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  return text_sweep.plan(variants(config), config.seeds)


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains what is left of the sweep, and says what came of it.

  Args:
    config: the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jobs.run_jobs` and `variants`.

  Cost: a run of the cpu scale takes 2.5 minutes on two cores.
  """
  sweep = text_sweep.run_sweep(
    config, variants(config), folder=folder, progress=progress
  )
  return text_sweep.sweep_result(
    NAME, TITLE, sweep, claims(config, sweep), targets=list(config.targets)
  )


def claims(config: Config, sweep: Sweep) -> list[Claim]:
  """What the targets do, seed by seed."""
  if len(sweep.seeds) < 2 or not config.targets:
    return []
  free = sweep.trained("free")
  reached = {
    target: sweep.trained(f"target_{target:g}") for target in config.targets
  }
  low, high = min(config.targets), max(config.targets)

  def told(key, form=".3f"):
    return "; ".join(
      f"{target:g}: {np.mean(found[key]):{form}}"
      for target, found in reached.items()
    )

  found = [
    compare(
      "A loss term moves sinks to where it is told.",
      SOURCE,
      "not tried",
      reached[high]["first_mass"] - reached[low]["first_mass"],
      f"attention on the first token by target {told('first_mass')}; "
      f"{mean(free['first_mass'])} without",
    )
  ]
  costs = {t: one["loss"] - free["loss"] for t, one in reached.items()}
  for target in (low, high):
    found.append(
      compare(
        f"Drawn to {target:g}, the model is worse than with the sinks that "
        "come by themselves.",
        SOURCE,
        "sinks are of use" if target == low else "not tried",
        costs[target],
        f"{mean(costs[target])} nats above {np.mean(free['loss']):.3f}",
      )
    )
  even = reached[low]["entropy_share"] - reached[high]["entropy_share"]
  found.append(
    compare(
      "With less of a sink, attention is more even.",
      SOURCE,
      "removing BOS smooths attention (figure 3)",
      even,
      f"entropy over its maximum by target {told('entropy_share')}; "
      f"{mean(free['entropy_share'])} without",
    )
  )
  return found


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  panels = [
    *sweep_figures.standard_panels(result.numbers),
    ("evenness of rows", lambda row: row["entropy_share"]),
    ("first value's norm over others'", lambda row: row["value_ratio"]),
    ("largest over median", lambda row: row["massive_ratio"]),
  ]
  rows = sweep_figures.as_trained(result.numbers)
  names = ("first_mass", "sink_rate", "loss")
  return {
    "rows.png": sweep_figures.bars(
      result,
      panels,
      label=lambda row: row["variant"].replace("_", " "),
      rows=list(rows.values()),
    ),
    "curves.png": sweep_figures.curves(result, names=names),
  }


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  panels = [
    ("evenness of rows", lambda row: row["entropy_share"]),
    ("value ratio", lambda row: row["value_ratio"]),
    ("effective rank", lambda row: row["effective_rank"]),
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Every head's attention on the first token, its mean over the rows of "
        "a window, is drawn to the target by a squared distance in the loss. "
        "The loss that is shown has no part of that. A target of 0 is less "
        "than attention can give: the first rows have no choice."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({len(result.numbers['seeds'])}), bars their "
        f"mean. Dotted: even attention, {result.numbers['uniform_mass']:.3f}."
      ),
      table=sweep_figures.table(result, panels),
    ),
    sweep_figures.training_section(result, drawn),
  ]
