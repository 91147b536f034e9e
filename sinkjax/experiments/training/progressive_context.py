"""Short contexts first: what it does to loss, sinks and time.

Training on windows that grow, with the same tokens a step and in all, against
windows of the last length throughout. If sinks need long contexts (Barbero et
al., section 4.1), they should come later, and be there in the end.
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
from sinkjax.train.run_config import Stage, TrainConfig

NAME, TITLE = "progressive_context", "Short contexts first"
SOURCE = "SkyLadder (2503.15450); sinks not measured there"


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: windows that grow, and windows that do not; all seeds.

  Attributes:
    contexts: lengths one after the other; the last is the fixed one's.
    shares: of the steps, for each of them.
    short: also train on the first length alone.
  """

  contexts: tuple[int, ...] = (64, 128, 256)
  shares: tuple[float, ...] = (0.3, 0.3, 0.4)
  short: bool = True


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "short": False},
  "cpu": {},
  "gpu": GPU
  | {"contexts": (128, 256, 512, 1024), "shares": (0.2, 0.2, 0.2, 0.4)},
  "paper": text_sweep.PAPER
  | {
    "contexts": (128, 256, 512, 1024, 2048),
    "shares": (0.15, 0.15, 0.15, 0.15, 0.4),
    "steps": TOKENS_5B,
  },
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The runs "fixed", "growing" and "short".

  Raises:
    ValueError: for shares that do not add up to 1, or are not as many.
  """
  contexts, shares = config.contexts, config.shares
  if len(contexts) != len(shares) or abs(sum(shares) - 1) > 1e-6:
    raise ValueError(
      f"shares must be {len(contexts)}, as contexts, and add up to 1, got "
      f"{shares}"
    )
  tokens, last = config.batch * config.length, contexts[-1]
  ends = np.round(np.cumsum(shares) * config.steps).astype(int)
  steps = np.diff(ends, prepend=0)
  stages = tuple(
    Stage(length, int(n)) for length, n in zip(contexts, steps, strict=True)
  )
  runs = {
    "fixed": text_run(config, packing={"length": last}, batch=tokens // last),
    "growing": text_run(
      config, packing={"length": last}, batch=tokens // last, stages=stages
    ),
  }
  if config.short:
    runs["short"] = text_run(
      config,
      model={"max_len": max(last, 64)},
      packing={"length": contexts[0]},
      batch=tokens // contexts[0],
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

  Cost: a run of the cpu scale takes 3 minutes on two cores.
  """
  sweep = text_sweep.run_sweep(
    config, variants(config), folder=folder, progress=progress
  )
  return text_sweep.sweep_result(
    NAME,
    TITLE,
    sweep,
    claims(config, sweep),
    contexts=list(config.contexts),
    shares=list(config.shares),
  )


def claims(config: Config, sweep: Sweep) -> list[Claim]:
  """Growing against fixed, seed by seed."""
  if len(sweep.seeds) < 2:
    return []
  fixed, growing = sweep.trained("fixed"), sweep.trained("growing")

  def formed(name):
    """[S] attention on the first token, mean over the run."""
    return sweep.probes[name]["first_mass"].mean(axis=1)

  early, late = formed("growing"), formed("fixed")
  saved = 1 - sweep.seconds["growing"] / sweep.seconds["fixed"]
  return [
    compare(
      "Windows that grow end at a lower loss than windows of the last length.",
      SOURCE,
      "up to 3.7 % better on benchmarks; no figure for the loss",
      fixed["loss"] - growing["loss"],
      f"loss {mean(fixed['loss'])} (fixed) and {mean(growing['loss'])} "
      f"(growing) on texts of {config.contexts[-1]} tokens",
    ),
    compare(
      "Sinks form later where windows are short first.",
      SOURCE,
      "not measured",
      late - early,
      "attention on the first token, mean over the run, "
      f"{mean(late)} (fixed) and {mean(early)} (growing)",
    ),
    compare(
      "And there is less of them in the end.",
      SOURCE,
      "not measured",
      fixed["first_mass"] - growing["first_mass"],
      f"attention on the first token {mean(fixed['first_mass'])} (fixed) and "
      f"{mean(growing['first_mass'])} (growing)",
    ),
    compare(
      "It takes less time.",
      SOURCE,
      "up to 22 % less",
      saved,
      f"{mean(100 * saved, '.0f')} % less for the steps alone",
    ),
  ]


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  rows = sweep_figures.as_trained(result.numbers)
  seconds = result.numbers["seconds"]
  panels = [
    *sweep_figures.standard_panels(result.numbers),
    ("seconds", lambda row: np.asarray(seconds[row["variant"]])),
  ]
  return {
    "rows.png": sweep_figures.bars(
      result, panels, label=lambda row: row["variant"], rows=list(rows.values())
    ),
    "curves.png": sweep_figures.curves(result, names=names),
  }


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  stages = ", ".join(
    f"{n} for {100 * share:.0f} %"
    for n, share in zip(numbers["contexts"], numbers["shares"], strict=True)
  )
  panels = [
    ("loss of 64 tokens", lambda row: row["near_loss"]),
    ("seconds", lambda row: numbers["seconds"][row["variant"]]),
  ]
  return [
    html.Section(
      result.title,
      body=(
        f"Growing: windows of {stages} of the steps. Fixed: of the last length "
        "throughout. Short: of the first. All have the same tokens a step and "
        "in all. The losses of the bars are on texts of each one's last length."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({len(numbers['seeds'])}), bars their mean. "
        f"Dotted: even attention, {numbers['uniform_mass']:.3f}."
      ),
      table=sweep_figures.table(result, panels),
    ),
    sweep_figures.training_section(
      result,
      drawn,
      "Sinks on texts of 64 tokens; the loss is on held-out windows of the "
      "length of the moment.",
    ),
  ]
