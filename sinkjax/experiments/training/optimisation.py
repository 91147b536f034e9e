"""What makes sinks form: learning rate, weight decay, batch, amount of data.

The ablations of Gu et al. (2025, arXiv 2410.10781, section 4): one knob at a
time is turned away from the same run, with the same tokens in all.
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
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png
from sinkjax.train.run_config import TrainConfig

NAME, TITLE = "optimisation", "What makes sinks form?"
KNOBS = ("learning rate", "weight decay", "batch", "data")

PAPER: dict[str, tuple[tuple[float, float], ...]] = {
  "learning rate": ((1e-4, 2.90), (2e-4, 11.21), (4e-4, 18.18), (8e-4, 32.23)),
  "weight decay": (
    (0, 15.20),
    (0.001, 15.39),
    (0.01, 15.23),
    (0.1, 18.18),
    (0.5, 41.08),
    (1, 37.71),
    (2, 6.13),
    (5, 0.01),
  ),
  "batch": ((0.25, 16.45), (0.5, 17.19), (1, 18.18), (2, 16.19)),
}
"""(value, % of heads above eps 0.3) of Gu et al., 20,000 steps at every
learning rate, batches as multiples of a million tokens. Of the amount of data
they have no table: under 1 % of heads at 50 to 100M tokens of 5B."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: the run as it is, and with one knob turned; all seeds.

  Attributes:
    peaks: other learning rates.
    decays: other weight decays.
    batches: other batches, as multiples; the steps are as many fewer.
    shares: of the training documents that are used.
  """

  peaks: tuple[float, ...] = (3e-4, 1e-3, 1e-2)
  decays: tuple[float, ...] = (0.0, 0.5, 2.0)
  batches: tuple[float, ...] = (0.5, 2.0)
  shares: tuple[float, ...] = (0.01, 0.1)


SCALES: dict[str, dict[str, Any]] = {
  "demo": {
    "peaks": (3e-4,),
    "decays": (),
    "batches": (),
    "shares": (0.01,),
    "seeds": (0,),
  },
  "cpu": {},
  "gpu": GPU
  | {"length": 256, "batch": 64, "steps": 1000, "peaks": (1e-4, 3e-4, 3e-3)},
  "paper": text_sweep.PAPER
  | {
    "steps": TOKENS_5B,
    "peaks": (1e-4, 2e-4, 8e-4),
    "decays": (0.0, 0.001, 0.01, 0.5, 1.0, 2.0, 5.0),
    "batches": (0.25, 0.5, 2.0),
  },
}
"""Fields of `Config` by --scale."""


def settings(config: Config) -> list[tuple[str, str, float]]:
  """(variant, knob, value) of every run; "base" has a row for each knob."""
  found = [
    ("base", knob, value)
    for knob, value in zip(
      KNOBS, (config.peak, config.weight_decay, 1.0, 1.0), strict=True
    )
  ]
  for knob, prefix, values in (
    (KNOBS[0], "rate", config.peaks),
    (KNOBS[1], "decay", config.decays),
    (KNOBS[2], "batch", config.batches),
    (KNOBS[3], "data", config.shares),
  ):
    found += [(f"{prefix}_{value:g}", knob, value) for value in values]
  return found


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each setting.

  Raises:
    ValueError: for a batch that is no whole number of windows.
  """
  runs = {}
  for name, knob, value in settings(config):
    optimizer: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    if knob == "learning rate":
      optimizer["peak"] = value
    elif knob == "weight decay":
      optimizer["weight_decay"] = value
    elif knob == "batch":
      batch = value * config.batch
      if batch < 1 or batch != int(batch):
        raise ValueError(
          f"batches: {value:g} times {config.batch} is no whole number"
        )
      fields["batch"] = int(batch)
      fields["steps"] = round(config.steps / value)
      optimizer["warmup"] = round(config.warmup / value)
      for key in ("eval_every", "save_every"):
        fields[key] = max(round(2 * config.every / value), 1)
      fields["probe_every"] = max(round(config.every / value), 1)
    else:
      fields["train_share"] = value
    runs[name] = text_run(config, optimizer=optimizer, **fields)
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
    NAME,
    TITLE,
    sweep,
    claims(config, sweep),
    settings=[list(one) for one in settings(config)],
  )


def claims(config: Config, sweep: Sweep) -> list[Claim]:
  """The ends of each knob, seed by seed."""
  if len(sweep.seeds) < 2:
    return []
  by_knob = {
    knob: sorted((v, n) for n, k, v in settings(config) if k == knob)
    for knob in KNOBS
  }
  found = []

  def claim(text, paper, more, less):
    a, b = sweep.trained(more), sweep.trained(less)
    found.append(
      compare(
        text,
        "Gu et al., section 4",
        paper,
        a["first_mass"] - b["first_mass"],
        f"attention on the first token {mean(a['first_mass'])} ({more}) and "
        f"{mean(b['first_mass'])} ({less}), loss {np.mean(a['loss']):.3f} and "
        f"{np.mean(b['loss']):.3f}",
      )
    )

  rates = [one for one in by_knob["learning rate"] if one[0] <= config.peak]
  if len(rates) > 1:
    claim(
      "A smaller learning rate makes less of a sink.",
      "2.90 % of heads at 1e-4, 18.18 % at 4e-4",
      rates[-1][1],
      rates[0][1],
    )
  decays = dict(by_knob["weight decay"])
  if 0.5 in decays and config.weight_decay != 0.5:
    claim(
      "More weight decay makes more of a sink.",
      "18.18 % of heads at 0.1, 41.08 % at 0.5",
      decays[0.5],
      "base",
    )
  if 2.0 in decays and 0.5 in decays:
    claim(
      "Too much of it makes less.",
      "41.08 % of heads at 0.5, 6.13 % at 2",
      decays[0.5],
      decays[2.0],
    )
  shares = by_knob["data"]
  if len(shares) > 1:
    claim(
      "Little data makes less of a sink.",
      "under 1 % of heads at 1 to 2 % of the data, 18.18 % with all",
      shares[-1][1],
      shares[0][1],
    )
  return found


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "knobs.png": _knobs(result),
    "curves.png": sweep_figures.curves(result),
  }


def _knobs(result) -> bytes:
  """By knob: attention on the first token, the paper's sinks, the loss."""
  numbers, rows = result.numbers, sweep_figures.as_trained(result.numbers)
  used = [k for k in KNOBS if sum(s[1] == k for s in numbers["settings"]) > 1]
  used = used or [KNOBS[0]]
  with drawing(2.9 * len(used) + 0.8, 7.2) as figure:
    axes = figure.subplots(3, len(used), sharey="row", squeeze=False)
    for column, knob in enumerate(used):
      points = sorted(
        (value, name) for name, k, value in numbers["settings"] if k == knob
      )
      labels = [f"{value:g}" for value, _ in points]
      for ax, key, color in zip(
        axes[::2, column], ("first_mass", "loss"), (FIRST, REST), strict=True
      ):
        values = [np.asarray(rows[name][key]) for _, name in points]
        at = np.arange(len(points))
        ax.plot(at, [x.mean() for x in values], "o-", color=color, ms=4)
        for i, seeds in enumerate(values):
          ax.plot(np.full(seeds.size, i), seeds, "_", color=INK, ms=7)
          if points[i][1] == "base":
            ax.axvline(i, color=MUTED, lw=0.8, ls=":")
        ax.set_xticks(at, labels)
        ax.grid(axis="y")
      axes[0, column].axhline(numbers["uniform_mass"], color=MUTED, lw=0.9)
      axes[0, column].set_title(knob)
      _paper(axes[1, column], PAPER.get(knob, ()))
    axes[0, 0].set_ylabel("attention on the first token")
    axes[1, 0].set_ylabel("Gu et al.: heads above 0.3, %")
    axes[2, 0].set_ylabel("held-out loss, nats")
    return png(figure)


def _paper(ax, points) -> None:
  """A knob's sinks in Gu et al., who turn it through values of their own."""
  at = np.arange(len(points))
  ax.plot(at, [rate for _, rate in points], "o--", color=MUTED, ms=4)
  ax.set_xticks(at, [f"{value:g}" for value, _ in points])
  ax.grid(axis="y")
  if not points:
    ax.text(
      0.5, 0.5, "no table", color=MUTED, ha="center", transform=ax.transAxes
    )


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      result.title,
      body=(
        "One knob at a time, away from the run at the dotted line; the tokens "
        "in all are the same. Batches are multiples of its batch, data the "
        "share of the training documents that is used. The middle row is of "
        "Gu et al., 60M parameters: compare the shapes of curves, not their "
        "heights."
      ),
      figure=drawn["knobs.png"],
      caption=(
        f"Points are means, dashes the seeds ({len(result.numbers['seeds'])}). "
        f"Grey line: even attention, {result.numbers['uniform_mass']:.3f}."
      ),
      table=sweep_figures.table(result, label="run"),
    ),
    sweep_figures.training_section(result, drawn),
  ]
