"""Figures and sections of the experiment `massive`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.massive.experiment import Edit
from sinkjax.experiments.shared.layer_plots import Line, add_lines, layer_figure
from sinkjax.metrics.norms import LEAST, LEAST_RATIO
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

TITLE = "Massive activations and the sink"
STYLES = {
  Edit.NONE: (REST, "-"),
  Edit.ZERO: (FIRST, "-"),
  Edit.MEAN: (INK, "--"),  # it covers the first
  Edit.OTHERS: (MUTED, "-"),
}
"""Colour and style of each edit, in the order of the recorded arrays."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  rates = dict(zip(Edit, result.arrays["sink_rate_by_layer"], strict=True))
  lines = {
    name: Line(100 * rates[name], color, style=style)
    for name, (color, style) in STYLES.items()
  }
  return {
    "layers.png": _layers(result.arrays),
    "sinks.png": layer_figure(
      lines, "by layer and edit", "heads with a sink, %", high=102
    ),
  }


def _spread(values: np.ndarray, color: str) -> Line:
  """Of [L, P]: the mean over texts, and from the least to the greatest."""
  band = np.stack([values.min(axis=1), values.max(axis=1)])
  return Line(values.mean(axis=1), color, band)


def _layers(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The largest activations, and what adds to them."""
  with drawing(8, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    sizes = {
      "position 0": _spread(arrays["largest"], FIRST),
      "other positions": _spread(arrays["elsewhere"], REST),
    }
    add_lines(left, sizes)
    # A massive activation is a thousand times the median or more: on a linear
    # axis the others would lie at zero.
    left.set_yscale("log")
    legend_above(left, "largest |x| after each layer (log scale)")
    added = {
      "MLP": Line(arrays["by_mlp"].sum(axis=1), FIRST),
      "attention": Line(arrays["by_attention"].sum(axis=1), REST),
    }
    add_lines(right, added)
    legend_above(right, "|update| of the massive dimensions")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. An "
        f"activation is massive if it is above {LEAST:g}, and above "
        f"{LEAST_RATIO:g} times the layer's median, at position 0, in more "
        "than half of the texts."
      ),
      figure=drawn["layers.png"],
      caption=(
        "Left: mean over texts, bands from the least to the greatest. Right: "
        "what MLP and attention add to the massive dimensions of position 0."
      ),
    ),
    html.Section(
      "Which edit removes the sink",
      figure=drawn["sinks.png"],
      caption=(
        "The massive dimensions of position 0 are set once, after the layer "
        "that makes them; as a control, as many of the next largest are."
      ),
      table=html.Table(*result.tables["edits.csv"]),
    ),
  ]
