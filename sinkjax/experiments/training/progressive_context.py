"""Do growing context windows change loss, sinks and training time?

    python -m launch.reproduce --experiment=progressive_context --scale=cpu \\
      --out=DIR

Training on windows that grow, as SkyLadder does (arXiv 2503.15450), against
training on windows of the last length throughout, with equal tokens in a step
and in total. If sinks need long contexts (Barbero et al., section 4.1), they
should form later and be there in the end.

The cpu scale (9 runs) took 113 minutes on two CPU cores. Expected verdicts: all
inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes
more.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  SHARE,
  Effect,
  Expect,
  Unit,
)
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  SHORTEST,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.sweep_figures import STANDARD, Chart, Panel
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.train.run_config import Stage, TrainConfig

TITLE = "Training on growing windows"
SOURCE = "SkyLadder (2503.15450); sinks not measured there"


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: growing windows and fixed windows, with every seed.

  Attributes:
    contexts: lengths one after the other; fixed windows have the last.
    shares: of the steps, for each length.
    short: also train on the first length throughout.
  """

  contexts: tuple[int, ...] = (64, 128, 256)
  shares: tuple[float, ...] = (0.3, 0.3, 0.4)
  short: bool = True


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "short": False},
  "cpu": {},
  "gpu": GPU_SCALE
  | {"contexts": (128, 256, 512, 1024), "shares": (0.2, 0.2, 0.2, 0.4)},
  "paper": PAPER_SCALE
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
  # Decimal shares add up to 1 but for rounding.
  if len(contexts) != len(shares) or abs(sum(shares) - 1) > 1e-6:
    raise ValueError(
      f"shares must be {len(contexts)}, one for each of contexts, and add up "
      f"to 1, got {shares}"
    )
  tokens, last = config.batch * config.length, contexts[-1]
  # The ends of stages are rounded, not their lengths, so that stages always add
  # up to all steps.
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
      # The config is that of the other models, which differ in training alone.
      model={"max_len": max(last, SHORTEST)},
      packing={"length": contexts[0]},
      batch=tokens // contexts[0],
    )
  return runs


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Growing windows against fixed ones, seed by seed."""
  fixed, growing = map(trained.as_trained, ("fixed", "growing"))
  # The mean over a run is lower, the later sinks form, and needs no threshold
  # of what a sink is.
  early, late = (
    trained.probes[name]["first_mass"].mean(axis=1)
    for name in ("growing", "fixed")
  )
  times = trained.seconds["growing"] / trained.seconds["fixed"]
  # Both have windows of the last length in the end, and so the same texts.
  losses = growing["loss"], fixed["loss"]
  sound = (no_worse(*losses, "growing windows", "fixed ones"),)

  def less(values: np.ndarray, what: str, unit: Unit) -> Effect:
    what = f"{what} with growing windows, less that with fixed ones"
    return seed_effect(values, what, unit, Expect.LESS)

  return [
    Claim(
      "growing_lower_loss",
      "Training on growing windows ends at a lower loss than training on "
      "windows of the final length.",
      SOURCE,
      "up to 3.7 % better on benchmarks; no figure for the loss",
      f"loss {mean(fixed['loss'])} (fixed) and {mean(growing['loss'])} "
      f"(growing) on texts of {result.config.contexts[-1]} tokens",
      less(losses[0] - losses[1], "the loss", NATS),
    ),
    Claim(
      "growing_later_sinks",
      "Sinks form later in training if windows start short.",
      SOURCE,
      "not measured",
      "attention on the first token, averaged over the run, "
      f"{mean(late)} (fixed) and {mean(early)} (growing)",
      less(early - late, "mean attention on the first token", SHARE),
      "attention is averaged over the measurements through training",
      sound,
    ),
    Claim(
      "growing_weaker_sinks",
      "Training on growing windows ends with weaker sinks.",
      SOURCE,
      "not measured",
      f"attention on the first token {mean(fixed['first_mass'])} (fixed) and "
      f"{mean(growing['first_mass'])} (growing)",
      less(
        growing["first_mass"] - fixed["first_mass"],
        "attention on the first token",
        SHARE,
      ),
      provided=sound,
    ),
    Claim(
      "growing_less_time",
      "Growing the window shortens training at equal tokens.",
      SOURCE,
      "up to 22 % less",
      f"{mean(100 * (1 - times), '.0f')} % less time for the steps alone",
      seed_effect(
        np.log(times),
        "the time of the steps with growing windows over that with fixed ones",
        LOG_RATIO,
        Expect.LESS,
      ),
      "the steps of a run times the median time of one, without compilation "
      "and measurements",
    ),
  ]


SECONDS = Panel(
  "Seconds for the steps",
  lambda row, numbers: numbers["seconds"][row["variant"]],
)


def _body(result: Result) -> str:
  stages = ", ".join(
    f"{length} for {100 * share:.0f} %"
    for length, share in zip(
      result.numbers["contexts"], result.numbers["shares"], strict=True
    )
  )
  return (
    f"Growing: windows of {stages} of the steps. Fixed: windows of the last "
    "length throughout. Short: windows of the first length throughout. All "
    "have equal tokens in a step and in total. The losses of the bars are on "
    "texts of each model's last window length."
  )


EXPERIMENT = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "rows.png",
      functools.partial(sweep_figures.bars, panels=(*STANDARD, SECONDS)),
      _body,
      sweep_figures.bar_caption,
      functools.partial(
        sweep_figures.table,
        columns=(Panel(f"loss on {SHORTEST} tokens", "near_loss"), SECONDS),
      ),
    )
  ],
  curves_body="Sinks are measured on texts of 64 tokens, the loss on held-out "
  "windows of the length that the stage of training has.",
  numbers=lambda config, trained: {
    "contexts": list(config.contexts),
    "shares": list(config.shares),
  },
).experiment()
