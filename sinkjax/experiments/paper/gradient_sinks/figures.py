"""Figures and sections of the experiment `gradient_sinks`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.gradient_sinks.experiment import MEASURED
from sinkjax.experiments.shared.interval_plots import band
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  REST,
  drawing,
  legend_above,
  limits,
  line_band,
  png,
)

TITLE = "The loss's gradient at the first token"
LINES = {
  "attn_in": ("at what the attention reads", FIRST),
  "attn_through": ("back through its norm", REST),
  "attn_factor": ("the norm's factor", INK),
}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"layers.png": _layers(result), "tokens.png": _tokens(result)}


def _layers(result: Result) -> bytes:
  with drawing(6.8, 3.6) as figure:
    ax = figure.add_subplot()
    for name, ends in zip(
      MEASURED[1:], np.exp(result.arrays["by_layer"]), strict=True
    ):
      label, color = LINES[name]
      band(ax, range(len(ends)), ends.T, color=color, label=label)
    ax.axhline(1, color=INK, lw=0.6)
    limits(ax, np.exp(result.arrays["by_layer"]), log=True)
    ax.set(xlabel="layer", ylabel="first token over the rest")
    ax.grid(True, axis="y")
    legend_above(ax, "ratio of norms (log scale); bands: 95 % over texts")
    return png(figure)


def _tokens(result: Result) -> bytes:
  with drawing(6.8, 3.6) as figure:
    ax = figure.add_subplot()
    for name, (label, color) in list(LINES.items())[:2]:
      # Of each layer by itself: layers differ by more than tokens do.
      norms = result.arrays[name][..., :-1]
      logs = np.log(norms / np.median(norms, axis=-1, keepdims=True))
      values = np.exp(logs.mean(axis=1)).T
      line_band(ax, values, color=color, label=label)
    ax.set(xlabel="position", ylabel="norm over the median token's")
    limits(ax, values, log=True)
    ax.relim()
    ax.autoscale(axis="y")
    legend_above(ax, "by position, all layers (log scale); bands: all texts")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=(
        f"The gradient of the mean loss of {numbers['texts']} texts of "
        f"{numbers['tokens']} tokens, at every layer: at what the attention "
        "reads, and what of it comes back through the norm before it. The "
        "norm's own factor is one over the root mean square of its input."
      ),
      figure=drawn["layers.png"],
      caption=(
        "Norm at the first token over the geometric mean of the others. The "
        "table has natural logarithms."
      ),
      table=html.Table(*result.tables["layers.csv"]),
    ),
    html.Section(
      "By position",
      figure=drawn["tokens.png"],
      caption="Geometric mean over layers of the norm over the median token's.",
    ),
  ]
