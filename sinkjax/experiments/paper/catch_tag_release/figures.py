"""Figures and sections of the experiment `catch_tag_release`."""

from collections.abc import Mapping

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.paper.catch_tag_release.roles import START, Role
from sinkjax.experiments.shared.interval_plots import ends_in, rows_of_bars
from sinkjax.experiments.shared.layer_plots import Line, add_lines
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

TITLE = "What sinks write into the tokens that attend to them"

LOOKS = {
  Role.FIRST: (FIRST, "-"),
  Role.OTHER: (REST, "-"),
  Role.FOUND: (INK, "--"),
  Role.NEAR: (MUTED, "--"),
}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"shares.png": _shares(result), "losses.png": _losses(result)}


def _shares(result: Result) -> bytes:
  with drawing(8, 3.4) as figure:
    axes = figure.subplots(1, 2)
    for ax, what, title in zip(
      axes,
      ("attention", "stream"),
      ("attention outputs, % of variance", "residual stream, % of variance"),
      strict=True,
    ):
      lines = {
        str(role): Line(
          100 * result.arrays[f"{what} by layer, {role}"], color, style=style
        )
        for role, (color, style) in LOOKS.items()
        if f"{what} by layer, {role}" in result.arrays
      }
      add_lines(ax, lines)
      ax.set_ylim(0, None)
      ax.set_title(title)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=4, frameon=False)
    return png(figure)


def _losses(result: Result) -> bytes:
  rows = [x for x in result.records("losses.csv") if x["change"] is not None]
  names = ends_columns("change")
  with drawing(6.8, 3) as figure:
    ax = figure.add_subplot()
    rows_of_bars(ax, [row["without"] for row in rows], ends_in(rows, names))
    ax.set_xlabel("loss, nats more")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {result.config.tokens} tokens, of "
      f"which {len(numbers['found'])} have a sink behind position 0. A key's "
      "tag in a layer is its value through the output projection, weighted by "
      "the attention that later queries give it on average, summed over heads. "
      f"Queries are those from position {START} on, or behind the found sink.",
      figure=drawn["shares.png"],
      caption="Share of the variance between later tokens along a tag, mean "
      "over texts.",
      table=html.Table(*result.tables["shares.csv"]),
    ),
    html.Section(
      "The loss without a tag",
      body="Attention outputs of later tokens, at every layer, without their "
      "part along the tag, or moved by as much along a random direction.",
      figure=drawn["losses.png"],
      caption="Change of the loss with its 95 % interval over texts.",
      table=html.Table(*result.tables["losses.csv"]),
    ),
  ]
