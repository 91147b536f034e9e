"""Figures and sections of the experiment `collapse`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.collapse.experiment import DIGITS
from sinkjax.experiments.shared.layer_plots import add_texts
from sinkjax.experiments.shared.sink_removal import Condition
from sinkjax.metrics.collapse import COLLAPSE_MEASURES
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, REST, drawing, legend_above, png

TITLE = "Rank collapse and representational collapse"
COLORS = (REST, FIRST)


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays = result.arrays
  layers = np.arange(arrays["by_layer"].shape[1])
  return {
    "layers.png": _measures(arrays["by_layer"], layers, "layer"),
    "lengths.png": _measures(arrays["by_length"], arrays["lengths"], "tokens"),
    "digits.png": _digits(arrays),
  }


def _measures(values: np.ndarray, x: np.ndarray, label: str) -> bytes:
  """`values` [2, N, P, M]: a panel for each of M measures."""
  with drawing(8, 5.4) as figure:
    for i, (ax, name) in enumerate(
      zip(figure.subplots(2, 2).ravel(), COLLAPSE_MEASURES, strict=True)
    ):
      for one, title, color in zip(values, Condition, COLORS, strict=True):
        by_text = one[..., i]
        low, high = np.quantile(by_text, [0.1, 0.9], axis=1)
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        ax.plot(x, by_text.mean(axis=1), color=color, lw=1.8, label=title)
      ax.grid(axis="y")
      ax.set_xlabel(label)
      legend_above(ax, name)
    return png(figure)


def _digits(arrays: Mapping[str, np.ndarray]) -> bytes:
  lines = (
    (Condition.SINK, "gap", "count", REST),
    (Condition.HIDDEN, "gap_hidden", "count", FIRST),
    ("with the sink and commas", "gap_commas", "count_commas", INK),
  )
  with drawing(7, 3.6) as figure:
    ax = figure.add_subplot()
    for label, name, count, color in lines:
      gap, x = arrays[name], arrays[count]
      add_texts(ax, x, gap, gap.mean(axis=0), color=color, label=label)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="digits", ylabel="largest change of an entry")
    legend_above(ax, "change by one more digit (log scale)")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  rows = [
    [name, *("never" if n is None else n for n in counts)]
    for name, counts in numbers["indistinct_from"].items()
  ]
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens, with the "
        f"sink and with position 0 hidden from layer {numbers['from_layer']} "
        "on. Position 0 itself, whose vector is unlike the others, is left "
        "out. Rank residual: distance from equal rows over the norm. "
        "Effective rank: over its maximum. Smallest gap: between neighbours, "
        "over their norm."
      ),
      figure=drawn["layers.png"],
      caption="By layer. Bands span the 10th to the 90th percentile of texts.",
    ),
    html.Section(
      "Collapse by length",
      figure=drawn["lengths.png"],
      caption="The first tokens of the same texts, after the last layer.",
    ),
    html.Section(
      "Repeated digits",
      figure=drawn["digits.png"],
      caption=(
        "The vectors after the final norm at a repeated digit and at the one "
        "before it: the largest difference of an entry. Thin lines are digits, "
        "thick ones their mean. The table gives the count from which on each "
        "digit's vectors are equal when rounded."
      ),
      table=html.Table(["rounded to", *DIGITS], rows),
    ),
  ]
