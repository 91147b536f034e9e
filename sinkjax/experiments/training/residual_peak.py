"""With three layers, does the residual norm of BOS peak?

    python -m launch.reproduce --experiment=residual_peak --scale=cpu --out=DIR

The Bigram-Backcopy task of `bigram_backcopy` in three layers, where the
residual of BOS grows relative to the other tokens' as well (Guo et al., arXiv
2410.13835).

The cpu scale (6 runs) took 42 minutes on two CPU cores. Expected verdicts: all
inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes
more.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Claim, Experiment, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.shared import backcopy
from sinkjax.experiments.shared.backcopy_training import BackcopyConfig
from sinkjax.experiments.shared.seed_effects import seed_effect
from sinkjax.report import html

TITLE = "The residual norm of BOS in three layers"


@dataclasses.dataclass(frozen=True)
class Config(BackcopyConfig):
  """As of `bigram_backcopy`: deeper, narrower, longer, at a constant rate."""

  normalizers: tuple[str, ...] = ("softmax", "relu")
  layers: int = 3
  steps: int = 3000
  d_model: int = 64
  peak: float = 3e-3
  schedule: str = "constant"
  b2: float = 0.99
  every: int = 200


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "normalizers": ("softmax",), "steps": 1500},
  "cpu": {},
  **backcopy.LARGE_SCALES,
}
"""Fields of `Config` by --scale."""


def claims(result: Result) -> list[Claim]:
  """The residual of BOS with softmax, its sink and value, and other models."""
  # One seed has no interval, and softmax is what others are compared with.
  if not backcopy.is_tested(result):
    return []
  peak = backcopy.through_training(result, "residual_peak")
  models = backcopy.models_in_words(result)
  # Each run is compared with its own start, so that differences between the
  # initial parameters of seeds cancel.
  growth = peak[:, -1] - peak[:, 0]
  found = [
    Claim(
      "bos_residual_grows",
      f"{models} the residual norm of BOS grows through training, relative to "
      "that of the other tokens.",
      backcopy.SOURCE,
      "curves, no number",
      f"by {mean(growth, '.2f')} times the other tokens' norm, from "
      f"{peak[:, 0].mean():.2f} times at the start",
      seed_effect(
        np.log(peak[:, -1] / peak[:, 0]),
        "the relative residual norm of BOS at the end over that at the start",
        LOG_RATIO,
        Expect.MORE,
      ),
      "in the layer where the norm of BOS is greatest relative to the mean of "
      "the other tokens'",
    ),
    backcopy.dormant_claim(result),
    backcopy.value_claim(result),
  ]
  for normalizer in backcopy.others(result):
    other = backcopy.through_training(result, "residual_peak", normalizer)[
      :, -1
    ]
    less = peak[:, -1] - other
    name = backcopy.in_words(normalizer)
    found.append(
      Claim(
        f"smaller_residual_{normalizer}",
        f"{models} the residual norm of BOS, relative to that of the other "
        f"tokens, is smaller with {name} attention than with softmax.",
        backcopy.SOURCE,
        backcopy.paper_on(normalizer),
        f"smaller by {mean(less, '.2f')} times the other tokens' norm; "
        f"{other.mean():.2f} times on average",
        seed_effect(
          np.log(other / peak[:, -1]),
          f"the relative residual norm of BOS with {name} attention over that "
          "with softmax",
          LOG_RATIO,
          Expect.LESS,
        ),
        # Pairs of one seed see the same data, which takes that variation out.
        "models are compared seed by seed at the end of training",
        (backcopy.learnt_as_much(result, normalizer),),
      )
    )
  return found


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": backcopy.schedule(result)}


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      TITLE,
      body=(
        "The Bigram-Backcopy task as in the experiment bigram_backcopy, with "
        f"{result.numbers['layers']} layers. The residual norm is that of the "
        "layer where BOS's is greatest relative to the mean of the other "
        "tokens'."
      ),
      figure=drawn["schedule.png"],
      caption=history.caption(result),
      table=history.final_table(result),
    )
  ]


EXPERIMENT = Experiment(
  TITLE,
  Config,
  backcopy.measure,
  claims,
  draw,
  sections,
  scales=SCALES,
  plan=backcopy.plan,
)
