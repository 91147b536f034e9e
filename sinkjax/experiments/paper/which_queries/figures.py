"""Figures and sections of the experiment `which_queries`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.paper.which_queries.experiment import Hidden, Kind
from sinkjax.experiments.shared.interval_plots import (
  band,
  ends_in,
  ends_over,
  rows_of_bars,
)
from sinkjax.experiments.shared.layer_plots import Line, add_lines
from sinkjax.experiments.shared.text_batches import by_template
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

TITLE = "Which queries attend to the sink"
COLOURS = dict(zip(Kind, (FIRST, REST, INK, MUTED), strict=True))


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"kinds.png": _kinds(result), "lengths.png": _lengths(result)}


def _kinds(result: Result) -> bytes:
  rows = [x for x in result.records("kinds.csv") if x["kind"] in set(Kind)]
  rows = [row for row in rows if row["over_others"] is not None]
  names = ends_columns("over_others")
  with drawing(8, 3.2) as figure:
    left, right = figure.subplots(1, 2)
    labels = [row["kind"] for row in rows]
    rows_of_bars(left, labels, 100 * (ends_in(rows, names) - 1))
    left.set_xlabel("against others at equal positions, %")
    left.set_title("attention on the first token")
    lines = {
      str(kind): Line(result.arrays[f"by layer, {kind}"], color)
      for kind, color in COLOURS.items()
    }
    add_lines(right, lines)
    right.set_ylim(0, None)
    legend_above(right, "over even attention")
    return png(figure)


def _lengths(result: Result) -> bytes:
  """The running mean of the change, in the order of the text."""
  plain = result.arrays[f"nats, {Hidden.NOTHING}"].astype(float)
  units = {"templates": result.numbers["long_templates"]}
  with drawing(6.4, 3.2) as figure:
    ax = figure.add_subplot()
    for hidden, color in ((Hidden.FIRST, FIRST), (Hidden.NEXT, REST)):
      change = result.arrays[f"nats, {hidden}"] - plain
      at = np.arange(1, change.shape[1] + 1)
      running = np.cumsum(change, axis=1) / at
      by_unit = np.stack([by_template(x, units) for x in running.T])
      band(ax, at + 1, ends_over(by_unit), color=color, label=str(hidden))
    ax.axhline(0, color=MUTED, lw=1)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="tokens of the text", ylabel="nats a token")
    ax.grid(True, axis="y")
    legend_above(ax, "loss added by hiding, up to each length")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {result.config.tokens} tokens. A "
      "query is copyable if its token and the one before it occurred together "
      "earlier, and surprising if its token is among the "
      f"{100 * result.config.share:.0f} % of its text that the model expected "
      "least.",
      figure=drawn["kinds.png"],
      caption="Left: mean over texts with its 95 % interval. Right: by layer, "
      "over all queries of a kind.",
      table=html.Table(*result.tables["kinds.csv"]),
    ),
    html.Section(
      "The loss with the first token hidden from the start",
      body=f"{numbers['long_texts']} texts of {max(numbers['lengths'])} "
      "tokens, position 0 hidden at every layer from all others; as a control, "
      "position 1.",
      figure=drawn["lengths.png"],
      caption="Mean change of the loss of a text's tokens up to each length, "
      "with its 95 % interval over texts.",
      table=html.Table(*result.tables["lengths.csv"]),
    ),
  ]
