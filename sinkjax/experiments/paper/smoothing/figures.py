"""Figures and sections of the experiment `smoothing`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.layer_plots import Line, add_texts, layer_figure
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  REST,
  color_bar,
  drawing,
  heat_map,
  legend_above,
  png,
  ticks,
)

TITLE = "Attention without its sink"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays, late = result.arrays, result.numbers["late"]
  evenness = arrays["evenness_by_layer"]
  lines = {
    "unchanged": Line(evenness[-1], REST),
    # Dashed: it nearly covers the line above.
    "first token removed": Line(
      arrays["evenness_removed_by_layer"], INK, style="--"
    ),
    f"hidden from layer {late} on": Line(evenness[late], FIRST),
  }
  return {
    "where.png": _where(100 * arrays["rates"].mean(axis=1), late),
    "cost.png": _cost(arrays, late),
    "evenness.png": layer_figure(
      lines, "mean of heads and texts", "normalized entropy", high=1
    ),
  }


def _where(percent: np.ndarray, late: int) -> bytes:
  """Sink rate by key and by the layer from which position 0 is hidden."""
  with drawing(7.2, 3.4) as figure:
    ax = figure.add_subplot()
    image = heat_map(ax, percent.T, vmin=0, vmax=percent.max())
    shown = ticks(len(percent) - 1)
    names = [*map(str, shown), "never"]
    ax.set_xticks([*shown, len(percent) - 1], names)
    ax.axvline(late - 0.5, color=FIRST, lw=1.5)
    ax.set(xlabel="position 0 hidden from this layer on", ylabel="position")
    ax.set_title("share of heads with a sink at each position")
    color_bar(image, ax, "heads, %")
    return png(figure)


def _cost(arrays: Mapping[str, np.ndarray], late: int) -> bytes:
  """Entropy and loss by the layer from which position 0 is hidden."""
  panels = (
    ("evenness", "normalized entropy of attention"),
    ("loss", "loss, nats a token"),
  )
  with drawing(8, 3.3) as figure:
    for ax, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
      *hidden, never = arrays[name]
      x, mean = np.arange(len(hidden)), np.mean(hidden, axis=1)
      add_texts(
        ax, x, np.transpose(hidden), mean, color=REST, label="position 0 hidden"
      )
      ax.axhline(never.mean(), color=INK, lw=1, ls="--", label="unchanged")
      ax.axvline(late, color=FIRST, lw=1)
      ax.set_xlabel("position 0 hidden from this layer on")
      legend_above(ax, title)
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. A head has "
        "a sink at a position that receives more than "
        f"{numbers['eps']:g} of the attention of the queries that see it. "
        "Hiding position 0 from layer 0 on only moves the sink; hiding it "
        "from a later layer on removes the sink. The line marks the layer from "
        "which hiding leaves the fewest sinks at any position."
      ),
      figure=drawn["where.png"],
      caption="Sink rate by position, for every layer of hiding.",
      table=html.Table(*result.tables["layers.csv"]),
    ),
    html.Section(
      "Entropy and loss without the sink",
      figure=drawn["cost.png"],
      caption=(
        "Left: entropy of attention rows over its maximum, mean of all layers "
        "and heads. Right: loss. Thin lines are texts, the thick line is their "
        "mean; the vertical line marks the same layer as above."
      ),
    ),
    html.Section(
      "Entropy by layer",
      figure=drawn["evenness.png"],
      caption=(
        "The same text unchanged, without its first token, and with position 0 "
        "hidden late."
      ),
    ),
  ]
