"""Figures and sections of the experiment `pruning`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.pruning.config import (
  OUTPUTS,
  Ranking,
  Skip,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.shared.interval_plots import (
  band,
  ends_in,
  ends_over,
  rows_of_bars,
)
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  color_bar,
  drawing,
  heat_map,
  png,
)

TITLE = "Dormant heads removed"
RANKINGS = {
  Ranking.NONSINK: ("read from non-sink tokens", FIRST, "-"),
  Ranking.NONSINK_NORM: ("the same, not divided", FIRST, ":"),
  Ranking.OFF_SINK: ("attention off the sink", FIRST, "--"),
  Ranking.OUTPUT: ("output over the residual", INK, "-"),
  Ranking.OUTPUT_NORM: ("output norm", INK, ":"),
  Ranking.DORMANT: ("output norm over layer mean", REST, "-"),
  Ranking.WEIGHTS: ("norm of weights", MUTED, "--"),
  Ranking.RANDOM: ("random", MUTED, "-"),
}
SKIPS = {
  Skip.SINK_TERM: ("sink's weight kept", FIRST, "-"),
  Skip.SINK_VALUE: ("sink's weight set to 1", REST, "-"),
  Skip.PREDICTED: ("predicted, set to 1", INK, "-"),
  Skip.RANDOM: ("random, weight kept", MUTED, "--"),
  Skip.RANDOM_VALUE: ("random, set to 1", MUTED, ":"),
}
UNITS = {
  Ranking.NONSINK: "over the layer's mean value norm",
  Ranking.OUTPUT: "over the residual's norm",
  Ranking.DORMANT: "over the layer's mean",
}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "removal.png": _removal(result.arrays),
    "queries.png": _queries(result.arrays),
    "heads.png": _heads(result.arrays),
    "time.png": _time(result),
  }


def _loss_axis(ax: Any) -> None:
  """Linear up to one per cent, then by decades."""
  # The curves cross zero at few heads and span two decades at many.
  ax.set_yscale("symlog", linthresh=1, linscale=1)
  ax.axhline(1, color=MUTED, ls=":", lw=1)
  ax.yaxis.set_major_formatter("{x:g}")
  ax.grid(axis="y")


def _legend_beside(figure: Any, ax: Any) -> None:
  figure.legend(
    *ax.get_legend_handles_labels(),
    loc="outside right upper",
    frameon=False,
    fontsize=8,
  )


def _removal(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Loss over the share of heads removed, by ranking."""
  with drawing(10, 3.8) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, output in zip(axes, OUTPUTS, strict=True):
      for name, (label, color, style) in RANKINGS.items():
        ends = ends_over(100 * arrays[f"loss, {name}, {output}"])
        look = {"color": color, "ls": style, "label": label, "lw": 1.8}
        band(ax, 100 * arrays["shares"], ends, **look)
      _loss_axis(ax)
      ax.set(xlabel="heads removed, %", title=f"output set to {output}")
    axes[0].set_ylabel("loss increase, %")
    _legend_beside(figure, axes[0])
    return png(figure)


def _queries(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Loss over the share of (head, query) pairs skipped."""
  with drawing(7.6, 3.8) as figure:
    ax = figure.add_subplot()
    for kind, (label, color, style) in SKIPS.items():
      x = 100 * arrays[f"skipped, {kind}"].mean(axis=1)
      ends = ends_over(100 * arrays[f"loss, {kind}"])
      look = {"color": color, "ls": style, "label": label, "lw": 1.8}
      band(ax, x, ends, marker="o", ms=4, **look)
    _loss_axis(ax)
    ax.set(xlabel="(head, query) pairs skipped, %", ylabel="loss increase, %")
    _legend_beside(figure, ax)
    return png(figure)


def _heads(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Three scores of every head."""
  with drawing(9.6, 4.2) as figure:
    for ax, name in zip(figure.subplots(1, 3), UNITS, strict=True):
      image = heat_map(ax, arrays[f"score, {name}"], vmin=0)
      ax.set(title=RANKINGS[name][0], xlabel="head", ylabel="layer")
      color_bar(image, ax, UNITS[name])
    return png(figure)


def _time(result: Result) -> bytes:
  """Time saved by every model with fewer heads."""
  rows = [x for x in result.records("time.csv") if x["saved"] is not None]
  labels = [f"{x['model']} ({100 * x['heads_left']:.0f} % left)" for x in rows]
  ends = 100 * ends_in(rows, ends_columns("saved"))
  with drawing(7, 0.5 * len(rows) + 1.2) as figure:
    ax = figure.add_subplot()
    rows_of_bars(ax, labels, ends)
    ax.set_xlabel("time saved, %")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name: str) -> html.Table:
    return html.Table(*result.tables[name])

  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts_that_rank']} texts rank the {numbers['heads']} "
        f"heads; the loss is measured on {numbers['texts']} others of "
        f"{numbers['tokens']} tokens. The whole model has "
        f"{numbers['loss']['value']:.3f} nats a token."
      ),
      figure=drawn["removal.png"],
      caption=(
        "Loss increase with the lowest-ranked heads removed. Bands: 95 % "
        "intervals over texts; dotted line: +1 %. Undivided norms rank layers "
        "with a small residual stream lowest, whatever their heads do."
      ),
      table=table("removal.csv"),
    ),
    html.Section(
      "Heads skipped at dormant queries",
      body=(
        "A head is skipped at queries whose weight on the first token exceeds "
        "a threshold: all other weights are set to zero, and the first token's "
        "is kept or set to 1. Predicted: the first key's score alone decides. "
        "Random: as many pairs as where the weight is kept, and as many as "
        "predicted."
      ),
      figure=drawn["queries.png"],
      caption=(
        "Loss increase; a dot for each threshold. Bands: 95 % intervals over "
        "texts."
      ),
      table=table("queries.csv"),
    ),
    html.Section(
      "Time",
      body=(
        "Forward passes of models built without these heads, in interleaved "
        "rounds. Models of equal layers are compared with the whole model; "
        "unrolled ones, whose layers are each as small as they can be, with "
        "the whole model unrolled."
      ),
      figure=drawn["time.png"],
      caption="Time saved, 95 % intervals over rounds.",
      table=table("time.csv"),
    ),
    html.Section(
      "How much each head does",
      figure=drawn["heads.png"],
      caption="Three scores of every head; dormant heads are light.",
      table=table("heads.csv"),
    ),
  ]
