"""Figures and sections of the experiment `adds_or_rescales`."""

from collections.abc import Mapping

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.paper.adds_or_rescales.experiment import (
  MOST,
  Part,
  What,
)
from sinkjax.experiments.shared.interval_plots import ends_in, rows_of_bars
from sinkjax.experiments.shared.layer_plots import Line, add_lines
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, legend_above, png

TITLE = "What the sink adds, and what it takes"


def draw(result: Result) -> dict[str, bytes]:
  """One figure of norms by layer and of losses."""
  rows = result.records("parts.csv")
  ends = ends_columns("change")
  with drawing(8.4, 3.4) as figure:
    left, middle, right = figure.subplots(1, 3)
    lines = {
      "takes": Line(result.arrays["takes by layer"], FIRST),
      "adds": Line(result.arrays["adds by layer"], REST),
    }
    add_lines(left, lines)
    left.set_ylim(0, None)
    legend_above(left, "norm, sum over heads")
    for ax, of, title in (
      (middle, (What.SINK,), "the sink"),
      (right, (What.LARGE, What.OTHERS), "dimensions"),
    ):
      shown = [
        row for row in rows if row["of"] in of and row["left"] != Part.BOTH
      ]
      labels = [
        f"next, {row['left']}" if row["of"] == What.OTHERS else row["left"]
        for row in shown
      ]
      rows_of_bars(ax, labels, ends_in(shown, ends))
      ax.set_xlabel("loss, nats more")
      ax.set_title(title)
    return {"parts.png": png(figure)}


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  layers = sum(map(bool, result.numbers["large"]))
  return [
    html.Section(
      TITLE,
      body=f"{result.numbers['texts']} texts of {result.config.tokens} tokens. "
      "A row renormalised without the sink gives r; with the sink's weight p "
      "and value v the head's output is r + p v - p r. Content is p v, size is "
      "p r. Of a norm's input, content is what later layers read of some "
      "dimensions, size what these count in the norm. Dimensions are those "
      f"above {result.config.ratio:g} times the median on {100 * MOST:.0f} % "
      f"of the tokens after the first, found in {layers} layers.",
      figure=drawn["parts.png"],
      caption="Left: mean over texts and queries. Others: change of the loss "
      "with its 95 % interval over texts; next: as many of the next largest "
      "dimensions.",
      table=html.Table(*result.tables["parts.csv"]),
    )
  ]
