"""Figures and sections of the experiment `quantisation_audit`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.applications.quantisation_audit.experiment import (
  NOTHING,
  STEPS,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.shared.interval_plots import ends_in, error_bars
from sinkjax.experiments.shared.layer_plots import Line, add_lines
from sinkjax.inference.quantize_audit import BROKEN
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  legend_above,
  png,
)

TITLE = "What rounding costs, tensor by tensor"

COLOURS = dict(zip(STEPS, (FIRST, REST), strict=True))


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name; no attribution where all is broken."""
  drawn = {"rows.png": _rows(result)}
  if not all(result.numbers["broken"].values()):
    drawn["left_out.png"] = _left_out(result)
  return drawn


def _left_out(result: Result) -> bytes:
  rows = [
    row
    for row in result.records("left_out.csv")
    if row["given_back"] is not None and row["left out"] != NOTHING
  ]
  names = list(dict.fromkeys(row["left out"] for row in rows))
  with drawing(6.8, 0.26 * len(names) + 1.2) as figure:
    ax = figure.add_subplot()
    for i, (per, color) in enumerate(COLOURS.items()):
      some = [row for row in rows if row["step of a"] == per]
      if not some:
        continue
      error_bars(
        ax,
        np.array([names.index(x["left out"]) for x in some]) + 0.2 * i - 0.1,
        ends_in(some, ends_columns("given_back")),
        across=True,
        color=color,
        label=f"a step a {per}",
      )
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.axvline(0, color=MUTED, lw=1)
    ax.set_xlabel("loss given back, nats")
    ax.grid(axis="x")
    legend_above(ax, "left out of rounding")
    return png(figure)


def _rows(result: Result) -> bytes:
  sites = result.numbers["inputs"]
  with drawing(8, 3.2) as figure:
    left, right = figure.subplots(1, 2)
    for ax, what in ((left, "dispersion"), (right, f"underflow, {STEPS[0]}")):
      lines = {
        site: Line(result.arrays[f"{what}, {site}"].mean(axis=1), color)
        for site, color in zip(sites, (FIRST, REST, INK, MUTED), strict=True)
      }
      add_lines(ax, lines)
    left.set_yscale("log")
    left.set_title("largest token's range over the median one's")
    right.set_ylim(0, None)
    right.set_title("share that becomes 0 with a step a tensor")
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=4, frameon=False)
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  broken = [per for per, x in result.numbers["broken"].items() if x]
  note = (
    f" With a step a {' and a step a '.join(broken)} the perplexity is above "
    f"{BROKEN:g} times the reference's, and nothing is attributed."
    if broken
    else ""
  )
  return [
    html.Section(
      TITLE,
      body=f"{result.numbers['texts']} texts of {result.config.tokens} tokens; "
      f"all weights and inputs of projections at {result.config.bits} bits, "
      "but for one tensor of all layers, or one token, which is left as it is."
      f"{note}",
      figure=drawn.get("left_out.png"),
      caption="Loss that leaving a tensor out gives back, with its 95 % "
      "interval over texts.",
      table=html.Table(*result.tables["left_out.csv"]),
    ),
    html.Section(
      "Rows of tensors",
      body="Rows are tokens of an input, and output channels of a kernel.",
      figure=drawn["rows.png"],
      caption="By layer, mean over texts.",
      table=html.Table(*result.tables["tensors.csv"]),
    ),
  ]
