"""Figures and sections of the experiment `collapse`."""

import numpy as np

from sinkjax.experiments.shared.sink_removal import CONDITIONS
from sinkjax.metrics.collapse import COLLAPSE_MEASURES
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, REST, drawing, legend_above, png

COLORS = (REST, FIRST)


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays = result.arrays
  layers = np.arange(arrays["by_layer"].shape[1])
  return {
    "layers.png": _measures(arrays["by_layer"], layers, "layer"),
    "lengths.png": _measures(arrays["by_length"], arrays["lengths"], "tokens"),
    "digits.png": _digits(arrays),
  }


def _measures(values: np.ndarray, x: np.ndarray, label: str) -> bytes:
  """`values` [2, N, P, measures]."""
  with drawing(8, 5.4) as figure:
    for i, (ax, name) in enumerate(
      zip(figure.subplots(2, 2).ravel(), COLLAPSE_MEASURES, strict=True)
    ):
      for one, title, color in zip(values, CONDITIONS, COLORS, strict=True):
        found = one[..., i]
        low, high = np.quantile(found, [0.1, 0.9], axis=1)
        ax.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
        ax.plot(x, found.mean(axis=1), color=color, lw=1.8, label=title)
      ax.grid(axis="y")
      ax.set_xlabel(label)
      legend_above(ax, name)
    return png(figure)


def _digits(arrays) -> bytes:
  series = {
    "with the sink": ("gap", "count", REST),
    "sink hidden": ("gap_hidden", "count", FIRST),
    "with commas": ("gap_commas", "count_commas", INK),
  }
  with drawing(7, 3.6) as figure:
    ax = figure.add_subplot()
    for label, (name, count, color) in series.items():
      gap, x = arrays[name], arrays[count]
      ax.plot(x, gap.T, color=color, lw=0.5, alpha=0.25)
      ax.plot(x, gap.mean(axis=0), color=color, lw=2, label=label)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="digits", ylabel="largest change of an entry")
    ax.grid(axis="y")
    legend_above(ax, "what one more digit changes (log scale)")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  rows = [
    [name, *("never" if n is None else n for n in found)]
    for name, found in numbers["indistinct_from"].items()
  ]
  header = ["rounded to", *map(str, range(10))]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens; position 0, "
        "whose vector is a case apart, is left out. Rank residual: distance "
        "from equal rows over the norm. Effective rank over its maximum. "
        "Smallest gap: between neighbours, over their norm."
      ),
      figure=drawn["layers.png"],
      caption="By layer; bands hold eight texts of ten.",
    ),
    html.Section(
      "By length",
      figure=drawn["lengths.png"],
      caption="The first tokens of the same texts, after the last layer.",
    ),
    html.Section(
      "Repeated digits",
      figure=drawn["digits.png"],
      caption=(
        "The vector after the final norm, at a repeated digit and at the one "
        "before it: largest difference of an entry. Thin lines are digits, "
        "thick ones their mean. The table says from which count on each "
        "digit's vectors are equal when rounded."
      ),
      table=html.Table(header, rows),
    ),
  ]
