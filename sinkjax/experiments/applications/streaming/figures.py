"""Figures and sections of the experiment `streaming`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.applications.streaming.config import Curve
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.shared.interval_plots import (
  ends_in,
  error_bars,
  rows_of_bars,
)
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  legend_above,
  limits,
  png,
)

TITLE = "A long text at constant memory"
COLORS = (REST, FIRST, INK, MUTED)
LOOKS = {
  Curve.WINDOW: (MUTED, "-"),
  Curve.ONE: (REST, "--"),
  Curve.KEPT: (FIRST, "-"),
  Curve.DENSE: (INK, "-"),
}

Rows = Sequence[Mapping[str, Any]]


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "positions.png": _positions(result),
    "sinks.png": _sinks(result.numbers, result.records("sinks.csv")),
    "time.png": _time(result.records("time.csv")),
    "starts.png": _starts(result.records("starts.csv")),
  }


def _middle(rows: Rows) -> np.ndarray:
  """The middle of bins on a logarithmic axis."""
  return np.sqrt([row["from"] * row["to"] for row in rows])


def _positions(result: Result) -> bytes:
  """Loss over position, and around the end of the context."""
  numbers, rows = result.numbers, result.records("positions.csv")
  near = result.records("context.csv")
  with drawing(10.4, 3.8) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for name, (color, style) in LOOKS.items():
      mine = [row for row in rows if row["curve"] == name]
      look = {"color": color, "ls": style, "lw": 1.6}
      left.plot(_middle(mine), [x["loss"] for x in mine], label=name, **look)
      if near and name in near[0]:
        at = [(row["from"] + row["to"]) / 2 for row in near]
        right.plot(at, [row[name] - row[Curve.KEPT] for row in near], **look)
    anew = [row for row in rows if row["curve"] == Curve.RECOMPUTE]
    if anew:
      ends = ends_in(anew, ("loss", "low", "high"))
      look = {"color": REST, "label": Curve.RECOMPUTE}
      error_bars(left, _middle(anew), ends, **look)
    left.set_xscale("log")
    left.axvline(numbers["total"], color=MUTED, ls=":", lw=1)
    for ax in (left, right):
      ax.axvline(numbers["context"], color=INK, ls=":", lw=1)
      ax.set_xlabel("position, tokens")
      ax.xaxis.set_major_formatter("{x:,.0f}")
      ax.grid(axis="y")
    if near:
      right.set_xlim(near[0]["from"], near[-1]["to"])
    right.set_title(f"above {Curve.KEPT}, nats a token", pad=21)
    legend_above(left, "loss, nats a token")
    return png(figure)


def _sinks(numbers: Mapping[str, Any], rows: Rows) -> bytes:
  """Loss over first tokens kept, a line for each size of cache."""
  fewer = min(row["to"] for row in rows if row["total"] is not None)
  shared = [row for row in rows if row["to"] == fewer]  # that every cache saw
  totals = sorted({x["total"] for x in shared if x["total"] is not None})
  counts = sorted({x["first"] for x in shared if x["first"] is not None})
  with drawing(9.2, 3.8) as figure:
    left, right = figure.subplots(1, 2)
    for i, total in enumerate(totals):
      mine = [row for row in shared if row["total"] == total]
      look = {"color": COLORS[i % len(COLORS)], "ms": 4, "lw": 1.4}
      x = [counts.index(row["first"]) for row in mine]
      loss = [row["loss"] for row in mine]
      left.plot(x, loss, "o-", label=f"{total} tokens", **look)
      some = [x for x in mine if x["first"] and x["above_kept"] is not None]
      if some:
        x = np.array([counts.index(row["first"]) for row in some], float)
        # Categories on x: 1, 2, 4, 8 would crowd the left of a linear axis.
        x += 0.08 * (i - (len(totals) - 1) / 2)
        ends = ends_in(some, ("above_kept", "above_low", "above_high"))
        error_bars(right, x, 1000 * ends, **look)
    dense = [row for row in shared if row["total"] is None]
    if dense:
      look = {"color": INK, "ls": ":", "lw": 1}
      left.axhline(dense[0]["loss"], label=Curve.DENSE, **look)
    right.axhline(0, color=MUTED, lw=0.8)
    right.set_title(f"above {numbers['kept']} kept, millinats", pad=21)
    for ax in (left, right):
      ax.set_xticks(range(len(counts)), counts)
      ax.set_xlabel("first tokens kept")
      ax.grid(axis="y")
    right.set_xlim(0.5, len(counts) - 0.5)
    legend_above(left, "loss, nats a token")
    return png(figure)


def _time(rows: Rows) -> bytes:
  """Seconds a token, cached and recomputed, with their ratio."""
  totals = [row["total"] for row in rows]
  seconds = [
    ([1000 * row[name] for row in rows], color, label)
    for name, color, label in (
      ("recompute_seconds", REST, "window recomputed"),
      ("cached_seconds", FIRST, "first tokens and window kept"),
    )
  ]
  with drawing(8.6, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for y, color, label in seconds:
      left.plot(totals, y, "o-", color=color, ms=4, lw=1.6, label=label)
    limits(left, np.concatenate([y for y, _, _ in seconds]), log=True)
    legend_above(left, "milliseconds a token")
    ends = ends_in(rows, ends_columns("ratio"))
    error_bars(right, totals, ends, fmt="o-", color=INK, lw=1.6)
    right.set_ylim(bottom=0)
    right.set_title("time recomputed over time from the cache", pad=21)
    for ax in (left, right):
      ax.set_xscale("log", base=2)
      ax.set_xticks(totals, map(str, totals))
      ax.minorticks_off()
      ax.set_xlabel("tokens kept")
      ax.grid(axis="y")
    return png(figure)


def _starts(rows: Rows) -> bytes:
  """What other first tokens cost, with intervals over blocks."""
  with drawing(7, 0.5 * len(rows) + 1.1) as figure:
    ax = figure.add_subplot()
    labels = [row["first tokens"] for row in rows]
    rows_of_bars(ax, labels, ends_in(rows, ("difference", "low", "high")))
    ax.set_xlabel("loss above that with the text's own first tokens, nats")
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
        f"The text: {numbers['text']}, the first {numbers['tokens']:,} tokens. "
        f"Caches keep {numbers['total']} tokens in all, the first ones among "
        "them; positions are those in the cache. dense keeps everything, for "
        f"{numbers['dense']:,} tokens, at the text's positions. recompute is a "
        f"forward pass on the {numbers['total']} tokens before each of "
        f"{numbers['recomputed']} sampled tokens."
      ),
      figure=drawn["positions.png"],
      caption=(
        "Left: mean loss in bins of position. Right: differences around the "
        "end of the context, where the text's own variation cancels. Dotted: "
        "the size of the cache, and the context of training. recompute: the "
        "mean of first tokens and window in a bin, plus the difference at the "
        "recomputed tokens with its 95 % interval."
      ),
      table=table("positions.csv"),
    ),
    html.Section(
      "First tokens kept",
      body=(
        "The size of a cache includes the first tokens that it keeps. The "
        "figure is of the tokens that all caches saw, after the size of the "
        "largest; the table has all. The row without a size is dense."
      ),
      figure=drawn["sinks.png"],
      caption=(
        "Left: loss. Right: the difference at the same tokens, without the "
        "window alone, with its 95 % interval over blocks of "
        f"{numbers['block']} tokens. The table's intervals of the loss include "
        "the differences between stretches of text."
      ),
      table=table("sinks.csv"),
    ),
    html.Section(
      "Other first tokens",
      body=(
        f"{numbers['kept']} tokens put before the text and kept; and the end "
        "of the text as if it began there, against the stream of the whole "
        "text."
      ),
      figure=drawn["starts.png"],
      caption="95 % intervals of differences, over blocks.",
      table=table("starts.csv"),
    ),
    _time_section(result, drawn),
    html.Section("Around the end of the context", table=table("context.csv")),
  ]


def _time_section(result: Result, drawn: Mapping[str, bytes]) -> html.Section:
  numbers, size = result.numbers, result.numbers["bytes"]
  cached = size["cached"][numbers["totals"].index(numbers["total"])]
  return html.Section(
    "Time and memory",
    body=(
      "One token more, in interleaved rounds: one step with the cache, or a "
      "forward pass on as many tokens as the cache holds. With "
      f"{numbers['total']} tokens the cache takes {cached / 1e6:.3g} MB, "
      "whatever the length of the text, fed one token at a time; with "
      f"everything kept, {numbers['dense']:,} tokens take "
      f"{size['dense'] / 1e6:.3g} MB."
    ),
    figure=drawn["time.png"],
    caption=(
      "Medians of the times; 95 % intervals of the ratio over rounds. Working "
      "bytes are what the compiled step needs beside its arguments."
    ),
    table=html.Table(*result.tables["time.csv"]),
  )
