"""Figures and sections of the experiment `carriers`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.carriers.claims import sink_heads
from sinkjax.experiments.paper.carriers.experiment import PARTS
from sinkjax.experiments.shared.layer_plots import add_lines, with_interval
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  color_bar,
  drawing,
  heat_map,
  legend_above,
  png,
  ticks,
)

TITLE = "Which heads carry the map between tokens"
COLORS = dict(zip(PARTS, (INK, MUTED, FIRST, REST), strict=True))
LABELS = {
  "residual": "residual",
  "mlp": "MLP",
  "attention": "heads",
  "mlp_of_attention": "MLP of heads",
}
LISTED = 20
"""Heads in the report's table; the file has all."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "heads.png": _map(result),
    "shares.png": _shares(result),
    "scores.png": _scatter(result),
  }


def _sizes(result: Result) -> np.ndarray:
  """[C, L, H] root mean squares over texts."""
  return np.sqrt((result.arrays["head"] ** 2).mean(axis=0))


def _map(result: Result) -> bytes:
  sizes, sinks = _sizes(result)[:2], sink_heads(result)
  layers, heads = sinks.shape
  titles = "with the sink", "position 0 hidden"
  height = float(np.clip(1.2 + 0.16 * layers, 2.6, 8))
  with drawing(float(np.clip(2 + 0.5 * heads, 5, 11)), height) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, title, values in zip(axes, titles, sizes, strict=True):
      image = heat_map(ax, 100 * values, vmin=0, vmax=100 * sizes.max())
      row, column = np.nonzero(sinks)
      ax.scatter(column, row, s=7, c=FIRST, linewidths=0)
      ax.set(xticks=ticks(heads, 12), yticks=ticks(layers), xlabel="head")
      ax.tick_params(length=0)
      ax.set_title(title)
    axes[0].set_ylabel("layer")
    color_bar(image, axes, "norm, % of the whole map's")
    return png(figure)


def _shares(result: Result) -> bytes:
  with drawing(6.4, 3.4) as figure:
    ax = figure.add_subplot()
    lines = {
      LABELS[name]: with_interval(ends, COLORS[name], scale=100)
      for name, ends in zip(
        PARTS, result.arrays["shares_by_layer"], strict=True
      )
    }
    add_lines(ax, lines)
    ax.set_ylabel("share of the map, %")
    legend_above(ax, "each layer's parts, which sum to 100 %")
    return png(figure)


def _scatter(result: Result) -> bytes:
  sinks, sizes = sink_heads(result), _sizes(result)[0]
  alpha = result.arrays["alpha"].mean(axis=0)
  with drawing(5.2, 3.6) as figure:
    ax = figure.add_subplot()
    for label, chosen, color in (
      ("sink heads", sinks, FIRST),
      ("other heads", ~sinks, REST),
    ):
      ax.scatter(
        alpha[chosen], 100 * sizes[chosen], 14, color, alpha=0.6, lw=0,
        label=label,
      )  # fmt: skip
    ax.set(xlabel="sink score", ylabel="norm, % of the whole map's")
    ax.set(xlim=(0, 1), ylim=(0, None))
    ax.grid(True, axis="y")
    legend_above(ax, "one head a point, with the sink")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["heads.csv"]
  at = header.index("relative norm")
  largest = sorted(rows, key=lambda row: -row[at])[:LISTED]
  return [
    html.Section(
      TITLE,
      body=(
        f"The exact map from earlier tokens to the last of "
        f"{numbers['tokens']}, of {numbers['texts']} texts, split at every "
        "layer by who carries it there. Left the unchanged model, right with "
        f"position 0 hidden from layer {numbers['from_layer']} on."
      ),
      figure=drawn["heads.png"],
      caption=(
        "Norm of what passes through a head, its values, its scores and the "
        "MLP of what it writes together, over the norm of the whole map. "
        "Parts may cancel each other, so that norms do not add up. A dot marks "
        "a sink head."
      ),
    ),
    html.Section(
      "Shares by layer",
      figure=drawn["shares.png"],
      caption=(
        "Inner product of each part with the map, over the map's square; 95 % "
        "intervals over texts."
      ),
      table=html.Table(*result.tables["shares.csv"]),
    ),
    html.Section(
      "Sink score and what a head carries",
      figure=drawn["scores.png"],
      caption="The table lists the heads that carry most.",
      table=html.Table(header, largest),
    ),
  ]
