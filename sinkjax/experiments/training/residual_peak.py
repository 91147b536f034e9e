"""A residual that peaks: Bigram-Backcopy in three layers.

In one layer a sink shows in attention and in a drained value. In three the
residual of BOS grows beside that of the other tokens as well (Guo et al., arXiv
2410.13835).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.shared.backcopy import (
  LARGE_SCALES,
  BackcopyConfig,
  claim,
  schedule,
  trained,
)
from sinkjax.report import html

NAME, TITLE = "residual_peak", "A residual that peaks"


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
  **LARGE_SCALES,
}
"""Fields of `Config` by --scale."""


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
    ValueError: as `jobs.run_jobs`.

  Cost: 0.2 s a step of the cpu scale on two cores.
  """
  return trained(NAME, TITLE, config, folder, progress, claims)


def claims(config: Config, arrays, uniform: float) -> list[Claim]:
  """The peak of softmax, its sink and drained value, and others' peaks."""
  if "softmax" not in config.normalizers or len(config.seeds) < 2:
    return []

  def of(name, normalizer="softmax"):
    return arrays[name][config.normalizers.index(normalizer)]

  paper, grown = "curves, no number", of("residual_peak")
  found = [
    claim(
      f"With {config.layers} layers the residual of BOS comes to have a peak.",
      paper,
      grown[:, -1] - grown[:, 0],
      0.0,
      " more times the other tokens' norm at the end than at the start, where "
      f"it is {grown[:, 0].mean():.2f}",
      form=".2f",
    ),
    claim(
      "With it dormant queries attend to BOS.",
      paper,
      of("dormant_first")[:, -1],
      uniform,
      f" of their attention, where even attention gives {uniform:.3f}",
    ),
    claim(
      "With it the value of BOS drains away.",
      paper,
      1 - of("value_ratio")[:, -1],
      0.0,
      " of its norm is missing, beside that of the other values",
    ),
  ]
  for normalizer in config.normalizers:
    if normalizer != "softmax":
      other = of("residual_peak", normalizer)[:, -1]
      found.append(
        claim(
          f"With {normalizer} attention there is no such peak.",
          "ReLU: all of it is gone" if normalizer == "relu" else "not tried",
          grown[:, -1] - other,
          0.0,
          " fewer times the other tokens' norm than with softmax; "
          f"{other.mean():.2f} in the mean",
          form=".2f",
        )
      )
  return found


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": schedule(result)}


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      result.title,
      body=(
        f"The same task, in {result.numbers['layers']} layers. The residual's "
        "norm is of the layer where that of BOS is greatest beside the mean of "
        "the other tokens'."
      ),
      figure=drawn["schedule.png"],
      caption=history.caption(result),
      table=history.ends(result),
    )
  ]
