"""Figures and sections of the experiment `hidden_prefix`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.applications.hidden_prefix.experiment import Condition
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.shared.interval_plots import ends_in, rows_of_bars
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, png

TITLE = "A prefix that takes the largest activations off the text"


def draw(result: Result) -> dict[str, bytes]:
  """One figure: the search, ranges and the cost of rounding."""
  rows = result.records("prefixes.csv")
  labels = [row["before the text"] for row in rows]
  with drawing(8.6, 3) as figure:
    left, middle, right = figure.subplots(1, 3)
    for i, (_, _, taken) in enumerate(result.numbers["steps"]):
      scores = np.sort(result.arrays[f"search {i}"])
      color = FIRST if taken else REST
      label = f"token {i + 1}{'' if taken else ', not taken'}"
      left.plot(np.arange(1, len(scores) + 1), scores, color=color, alpha=0.8,
                lw=1.6 - 0.3 * i, label=label)  # fmt: skip
    left.axhline(rows[0]["log_range"], color=REST, lw=1, ls=":")
    left.set(xlabel="candidates, best first", title="mean log of largest input")
    left.legend(frameon=False, fontsize=7)
    for ax, name, title in (
      (middle, "log_range", "mean log of largest input"),
      (right, "cost_of_bits", f"nats added by {result.config.bits} bits"),
    ):
      ends = ends_in(rows, ends_columns(name))
      rows_of_bars(ax, labels, ends)
      ax.set_title(title)
    right.set_yticklabels([])
    return {"prefix.png": png(figure)}


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  ids = numbers["prefix"][Condition.FOUND]
  return [
    html.Section(
      TITLE,
      body=f"{config.candidates} candidates at each place, searched on other "
      f"texts; measured on {numbers['texts']} texts of {config.tokens} tokens. "
      f"Found: {ids}, {numbers['prefix_text']!r}.",
      figure=drawn["prefix.png"],
      caption="Left: the score of every candidate, on the texts of the search; "
      "dotted: no prefix, on the texts that are measured. Others: mean over "
      "texts with its 95 % interval.",
      table=html.Table(*result.tables["prefixes.csv"]),
    )
  ]
