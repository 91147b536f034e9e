"""Figures and sections of the experiment `physical_first`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.paper.physical_first.experiment import Case
from sinkjax.experiments.shared.interval_plots import ends_in, error_bars
from sinkjax.experiments.shared.key_rates import LAST
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

TITLE = "Who is the sink: the first token, index 0, or BOS"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"cases.png": _cases(result), "keys.png": _keys(result)}


def _cases(result: Result) -> bytes:
  rows = result.records("cases.csv")
  looks = (
    ("first", FIRST, "first token"),
    ("moved", REST, "index 0, or BOS"),
    ("elsewhere", MUTED, "others"),
  )
  with drawing(6.4, 3.4) as figure:
    ax = figure.add_subplot()
    for i, (name, color, label) in enumerate(looks):
      some = [row for row in rows if row[name] is not None]
      at = [rows.index(row) + 0.2 * (i - 1) for row in some]
      columns = ends_columns(name)
      ends = 100 * ends_in(some, columns)
      error_bars(ax, at, ends, across=True, color=color, label=label, ms=5)
    ax.set_yticks(range(len(rows)), [row["case"] for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(xlabel="heads with a sink there, %", xlim=(-2, 102))
    ax.grid(axis="x")
    legend_above(ax, "sink rate")
    return png(figure)


def _keys(result: Result) -> bytes:
  """Mean rates by key, in the order of the text."""
  cases = [Case(x) for x in result.numbers["cases"]]
  cases = [x for x in cases if x not in (Case.SHIFTED, Case.PERMUTED)]
  with drawing(8.4, 2.4) as figure:
    axes = np.atleast_1d(figure.subplots(1, len(cases), sharey=True))
    for ax, case in zip(axes, cases, strict=True):
      rates = 100 * result.arrays[f"rates, {case}"][:, :-LAST].mean(axis=0)
      ax.bar(range(len(rates)), rates, width=1.0, color=REST)
      moved = case in (Case.SWAPPED, Case.BOS_MOVED)
      if moved:
        ax.axvline(result.config.at, color=INK, lw=0.6, ls=":")
      ax.set_title(str(case), fontsize=8.5)
      ax.set_xlabel("key")
      ax.grid(True, axis="y")
    axes[0].set_ylabel("heads with a sink, %")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  start = "BOS" if numbers["bos_is_first"] else "a word of the text"
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens, of which the "
      f"first is {start}. The order of the tokens, and with it the causal "
      "mask, stays; position indices are shifted by "
      f"{config.shift}, exchanged between the first token and token "
      f"{config.at}, or permuted. BOS is put first or before token "
      f"{config.at} of a text without it.",
      figure=drawn["cases.png"],
      caption="Share of all heads whose mean attention on a key is above "
      f"{config.eps:g}; means over texts with their 95 % intervals. The last "
      f"{LAST} keys do not count.",
      table=html.Table(*result.tables["cases.csv"]),
    ),
    html.Section(
      "Sinks by key",
      figure=drawn["keys.png"],
      caption="Mean over texts; dotted: the token at index 0, or BOS.",
    ),
  ]
