"""Figures and sections of the experiment `streaming_heads`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.streaming_heads.experiment import (
  ALL,
  FULL,
  Order,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.shared.interval_plots import (
  ends_in,
  error_bars,
  rows_of_bars,
)
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

TITLE = "Heads that need all of a text"

COLOURS = dict(zip(Order, (FIRST, REST, INK, MUTED), strict=True))


def draw(result: Result) -> dict[str, bytes]:
  """One figure of answers, of gates beside the sink, and of caches."""
  rows = {row["closed"]: row for row in result.records("closed.csv")}
  shares = result.config.shares
  cached = "memory.csv" in result.tables
  with drawing(12 if cached else 8, 3.4) as figure:
    left, right, *last = figure.subplots(1, 3 if cached else 2)
    for order, color in COLOURS.items():
      names = [FULL, *(f"{order}, {x:g}" for x in shares), ALL]
      ends = ends_in([rows[name] for name in names], ends_columns("found"))
      look = {"color": color, "label": str(order), "fmt": "o-"}
      error_bars(left, 100 * np.array([0, *shares, 1]), 100 * ends, **look)
    left.set_xlabel("% of KV heads closed")
    left.set_title("needles found, %")
    left.set_ylim(0, None)
    left.grid(axis="y")
    right.scatter(
      result.arrays["sink"].mean(axis=0).ravel(),
      result.arrays["gate"].ravel(),
      s=12,
      color=FIRST,
    )
    right.set_xlabel("attention on position 0")
    right.set_title("gate of each KV head")
    right.grid(axis="y")
    for ax in last:
      _caches(ax, result)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=4, frameon=False)
    return {"heads.png": png(figure)}


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  first, last = numbers["objective"]
  made = [
    html.Section(
      TITLE,
      body=f"Gates of {numbers['heads']} KV heads, learned in {config.steps} "
      f"steps on {config.training} haystacks of {config.tokens} tokens; the "
      f"objective was {first:.3f} at first and {last:.3f} at the end, and "
      f"{100 * numbers['full']:.0f} % of the gates stay above 0.5. Below, "
      f"{config.measured} other haystacks.",
      figure=drawn["heads.png"],
      caption="Left, and last where there are caches: with the 95 % interval "
      "over haystacks. Gates: beside the mean over haystacks.",
      table=html.Table(*result.tables["closed.csv"]),
    )
  ]
  if "memory.csv" in result.tables:
    made.append(_memory(result))
  return made


def _caches(ax: Any, result: Result) -> None:
  """What is found from each cache."""
  rows = result.records("memory.csv")
  ends = ends_in(rows, ends_columns("found"))
  rows_of_bars(ax, [row["cache"] for row in rows], 100 * ends)
  ax.set_title("needles found from caches of one size, %")


def _memory(result: Result) -> html.Section:
  """Caches of one size."""
  sizes, config = result.numbers["memory"], result.config
  return html.Section(
    "Caches of one size",
    body=f"{sizes['full']} of {result.numbers['heads']} KV heads, those of the "
    f"gates above 0.5 or as many at random, keep up to {sizes['capacity']} "
    f"tokens, and the others {config.sinks} first and {config.window} last. "
    f"Beside them, {sizes['each']} tokens in every head: the slots of a chunk "
    f"of {sizes['chunk']} tokens are counted in the caches by head, and not in "
    "their rivals, whose bytes are thus more. Nats are those over the "
    "unchanged model's.",
    table=html.Table(*result.tables["memory.csv"]),
  )
