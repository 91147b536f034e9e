"""Figures and sections of the experiment `answers`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.answers.experiment import FEWEST, NEEDLES, Score
from sinkjax.experiments.shared.interval_plots import ends_in, error_bars
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

TITLE = "Attention on the sink, and right answers"

LOOKS = {
  Score.SINK: (FIRST, "D"),
  Score.BEYOND: (INK, "s"),
  Score.LENGTH: (REST, "o"),
  Score.SURPRISAL: (MUTED, "v"),
}
"""Colour and marker of each score; the last token's stands in the table."""


def draw(result: Result) -> dict[str, bytes]:
  """Areas by task and score; nothing where no task counts."""
  rows = result.records("auroc.csv")
  if not rows:
    return {}
  names = list(dict.fromkeys(row["questions"] for row in rows))
  with drawing(7.6, 0.6 * len(names) + 1.4) as figure:
    ax = figure.add_subplot()
    for i, (score, (color, marker)) in enumerate(LOOKS.items()):
      some = [row for row in rows if row["score"] == score]
      at = [names.index(row["questions"]) for row in some]
      error_bars(
        ax,
        np.array(at) + 0.18 * (i - (len(LOOKS) - 1) / 2),
        ends_in(some, ("auroc", "low", "high")),
        across=True,
        color=color,
        fmt=marker,
        label=_short(score),
      )
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.axvline(0.5, color=MUTED, lw=1)
    ax.set_xlabel("AUROC of right answers")
    ax.grid(axis="x")
    figure.legend(
      loc="outside upper left", ncols=2, frameon=False, fontsize=8.5
    )
    return {"auroc.png": png(figure)}


def _short(score: Score) -> str:
  return {
    Score.BEYOND: "the same, for its length and surprisal",
    Score.LENGTH: "short question; of needles, short distance",
  }.get(score, str(score))


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  left = sorted(set(numbers["items"]) - set(numbers["tasks"]))
  few = (
    f" Tasks with fewer than {FEWEST} right or wrong answers are left out: "
    f"{', '.join(left)}."
    if left
    else ""
  )
  return [
    html.Section(
      TITLE,
      body=f"{sum(numbers['items'].values())} multiple-choice items, and "
      f"{numbers['haystacks']} haystacks of {result.config.needles} {NEEDLES}. "
      "Each score has the sign by which it should be higher at right "
      f"answers; chance is 0.5.{few}",
      figure=drawn.get("auroc.png"),
      caption="Area under the ROC curve with its 95 % interval, over the items "
      "of a task by DeLong's method, or over haystacks.",
      table=html.Table(*result.tables["auroc.csv"]),
    )
  ]
