"""Figures and sections of the experiment `inactive_heads`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.applications.inactive_heads.claims import BEST, FIRST
from sinkjax.experiments.applications.inactive_heads.experiment import (
  GRADED,
  OUTPUTS,
  RANDOM,
  WHOLE,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.interval_plots import band, ends_over
from sinkjax.experiments.shared.text_batches import by_template
from sinkjax.inference.inactive_heads import SCORES, overlap
from sinkjax.inference.prune import lowest
from sinkjax.report import figures, html
from sinkjax.report.figures import INK, MUTED, REST, drawing, legend_above, png

TITLE = "Which heads are inactive, by twelve scores"
COLOURS = {BEST: figures.FIRST, FIRST: REST, "beside_sink": INK, RANDOM: MUTED}
"""Orders that are drawn; the others are in the table."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"removal.png": _removal(result), "overlap.png": _overlap(result)}


def _removal(result: Result) -> bytes:
  shares = 100 * np.array(result.config.shares)
  with drawing(8, 3.2) as figure:
    for ax, output in zip(figure.subplots(1, 2), OUTPUTS, strict=True):
      for name, color in COLOURS.items():
        loss = result.arrays[f"loss, {name}, {output}"]
        units = [by_template(x, result.numbers) for x in loss]
        ends = 100 * ends_over(np.stack(units))
        label = name.replace("_", " ")
        band(ax, shares, ends, color=color, label=label)
      ax.axhline(1, color=MUTED, lw=1, ls=":")
      ax.set_yscale("symlog", linthresh=1)
      ax.set(xlabel="heads removed, %", ylabel="loss, % more")
      ax.grid(True, axis="y")
      if output == OUTPUTS[0]:
        legend_above(ax, f"output set to {output}")
      else:
        ax.set_title(f"output set to its {output}")
    return png(figure)


def overlaps(result: Result) -> np.ndarray:
  """[12, 12] heads that two scores pick, over those that either does."""
  picked = []
  for name, one in SCORES.items():
    score = result.arrays[f"score, {name}"]
    order = -score if one.inactive == "high" else score
    picked.append(lowest(order, round(result.config.share * order.size)))
  return np.array([[overlap(a, b) for b in picked] for a in picked])


def _overlap(result: Result) -> bytes:
  values = np.nan_to_num(overlaps(result))
  names = [name.replace("_", " ") for name in SCORES]
  with drawing(6.4, 5) as figure:
    ax = figure.add_subplot()
    image = figures.heat_map(ax, values, vmin=0, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
    ax.set_yticks(range(len(names)), names)
    figures.color_bar(image, ax, "heads of both over heads of either")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  found = [
    html.Section(
      TITLE,
      body=f"Heads are ranked on {numbers['texts_that_rank']} texts of "
      f"{result.config.tokens} tokens, the loss is measured on "
      f"{numbers['texts']} others. Thresholds are those at which a score picks "
      f"{100 * result.config.share:.0f} % of heads; the last columns are the "
      "share of heads at which the loss has risen by one per cent, and the "
      "share of all heads that a score picks in a text and attention on the "
      "first token does not.",
      figure=drawn["removal.png"],
      caption="Mean over texts with its 95 % interval; dotted: one per cent.",
      table=html.Table(*result.tables["scores.csv"]),
    ),
    html.Section(
      "Do the scores pick the same heads?",
      figure=drawn["overlap.png"],
      caption=f"At {100 * result.config.share:.0f} % of heads; by chance "
      f"{result.config.share / (2 - result.config.share):.2f}.",
    ),
  ]
  if "chance" in result.arrays:
    found.append(_choice(result))
  return found


def _choice(result: Result) -> html.Section:
  rows = []
  for name in (WHOLE, *GRADED, RANDOM):
    right = result.arrays[f"answered, {name}"].astype(float)
    rows.append([name.replace("_", " "), *ends_of(100 * right)])
  chance = 100 * result.arrays["chance"].mean()
  counts = result.numbers["items"]
  return html.Section(
    "Multiple choice with the same heads set to zero",
    body=f"{sum(counts.values())} items of {len(counts)} tasks; chance is "
    f"{chance:.1f} %.",
    table=html.Table(["heads chosen by", *ends_columns("right_percent")], rows),
  )
