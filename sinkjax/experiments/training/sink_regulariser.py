"""Can a term in the loss set how strong the sinks are, and at what cost?

    python -m launch.reproduce --experiment=sink_regulariser --scale=cpu \\
      --out=DIR

The sinks that training makes need not be the best ones. Here the mean attention
of each head on the first token is pulled towards a target, see
`train.loss.SinkTarget`, and loss, entropy, value norms and massive activations
are compared with those of a model trained without a target.

The cpu scale (15 runs) took 86 minutes on two CPU cores. Expected verdicts:
all inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes
more.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import COSINE, NATS, SHARE, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  TOKENS_5B,
  TextConfig,
  text_run,
)
from sinkjax.experiments.harness.sweep_figures import STANDARD, Chart, Panel
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.train.run_config import TrainConfig

TITLE = "Sinks set by a term in the loss"
SOURCE = "sections 1 and 3, the argument turned into a test"

NEAR = 0.1
"""Attention by which a sink may miss its target: a third of the distance of
neighbouring targets, so that each model is clearly nearest to its own."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: no target, and every target, with every seed.

  Attributes:
    targets: attention on the first token towards which every head is pulled.
    weight: of that term in the loss, nats at a distance of 1.
  """

  targets: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9)
  weight: float = 10.0


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"targets": (0.0, 0.6), "seeds": (0,), "steps": 500},
  "cpu": {},
  "gpu": GPU_SCALE | {"length": 256, "batch": 64, "steps": 1000},
  "paper": PAPER_SCALE | {"steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The runs "free" and "target_MASS".

  Raises:
    ValueError: for a target outside [0, 1].
  """
  if not all(0 <= target <= 1 for target in config.targets):
    raise ValueError(f"targets must be in [0, 1], got {config.targets}")
  # This is the base run of other sweeps of the same scale, whose model is then
  # taken over instead of trained again.
  runs = {"free": text_run(config)}
  for target in config.targets:
    runs[_name(target)] = text_run(
      config, sink_target=target, sink_weight=config.weight
    )
  return runs


def _name(target: float) -> str:
  return f"target_{target:g}"


def claims(trained: Trained, result: Result) -> list[Claim]:
  """How near the targets are reached, and at what cost, seed by seed."""
  targets = result.config.targets
  if not targets:
    return []
  free = trained.as_trained("free")
  found = {target: trained.as_trained(_name(target)) for target in targets}
  low, high = min(targets), max(targets)

  def by_target(key: str) -> str:
    return "; ".join(
      f"{target:g}: {np.mean(one[key]):.3f}" for target, one in found.items()
    )

  missed = [abs(one["first_mass"] - target) for target, one in found.items()]
  made = [
    Claim(
      "loss_term_sets_sink",
      "A term in the loss sets how much attention the first token gets.",
      SOURCE,
      "not tried",
      f"attention on the first token by target {by_target('first_mass')}; "
      f"{mean(free['first_mass'])} without a target; furthest from its target "
      f"by {mean(np.max(missed, axis=0))}",
      seed_effect(
        np.max(missed, axis=0),
        "the greatest distance of attention on the first token from its target",
        SHARE,
        Expect.NOT_MORE,
        margin=NEAR,
      ),
      f"the sink counts as set where it is within {NEAR} of every target",
    ),
    *(
      _cost(target, found[target]["loss"], free["loss"], low)
      # With a single target, the lowest is the highest, and a claim must not
      # appear twice.
      for target in dict.fromkeys((low, high))
    ),
  ]
  if low < high:
    made.append(_more_uniform(found[low], found[high], by_target, free))
  return made


def _more_uniform(
  weak: Mapping[str, np.ndarray],
  strong: Mapping[str, np.ndarray],
  by_target: Callable[[str], str],
  free: Mapping[str, np.ndarray],
) -> Claim:
  """That the lowest target has the highest entropy."""
  return Claim(
    "weaker_sink_more_uniform",
    "Attention is more uniform in models that are trained to have weaker "
    "sinks.",
    SOURCE,
    "removing BOS smooths attention (figure 3)",
    f"entropy over its maximum by target {by_target('entropy_share')}; "
    f"{mean(free['entropy_share'])} without a target",
    seed_effect(
      weak["entropy_share"] - strong["entropy_share"],
      "the entropy of attention over its maximum at the lowest target, less "
      "that at the highest,",
      COSINE,
      Expect.MORE,
    ),
    "attention of an untrained model is nearly uniform, so the model of the "
    "lowest target must have learnt as much",
    (
      no_worse(
        weak["loss"], strong["loss"], "the lowest target", "the highest"
      ),
    ),
  )


def _cost(
  target: float, loss: np.ndarray, free: np.ndarray, lowest: float
) -> Claim:
  """That a target makes the loss [S] higher."""
  return Claim(
    # Names of claims are words of letters, digits and underscores.
    f"{_name(target).replace('.', '_')}_raises_loss",
    f"Training every head towards {target:g} attention on the first token "
    "raises the loss.",
    SOURCE,
    "sinks are of use" if target == lowest else "not tried",
    f"loss {mean(loss - free)} nats above {np.mean(free):.3f}",
    seed_effect(
      loss - free,
      f"the loss with the target {target:g}, less that without one,",
      NATS,
      Expect.MORE,
    ),
    # It would otherwise count as a cost.
    "the term of the sink is not part of this loss",
  )


PANELS = (
  *STANDARD,
  Panel("Entropy of rows over its maximum", "entropy_share"),
  Panel("First value's norm over others'", "value_ratio"),
  Panel("Largest activation over median", "massive_ratio"),
)
COLUMNS = (
  Panel("entropy over its maximum", "entropy_share"),
  Panel("norm of the first value over others'", "value_ratio"),
  Panel("effective rank", "effective_rank"),
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
      functools.partial(sweep_figures.bars, panels=PANELS),
      "Each head's attention on the first token, averaged over the rows of a "
      "window, is pulled towards the target by a squared distance in the "
      "loss. The loss shown here is without that term. A target of 0 cannot "
      "be reached: the first query of a causal model can only attend to the "
      "first token.",
      sweep_figures.bar_caption,
      functools.partial(sweep_figures.table, columns=COLUMNS),
    )
  ],
  numbers=lambda config, trained: {"targets": list(config.targets)},
).experiment()
