"""Figures and sections of the experiment `compression_valley`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.compression_valley.experiment import Edit
from sinkjax.experiments.shared.interval_plots import band, ends_over
from sinkjax.experiments.shared.large_dimensions import LARGE
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

TITLE = "The valley of entropy and the sink"

LOOKS = {
  Edit.NONE: (INK, "-", "as it is"),
  Edit.DIMS: (FIRST, "-", "largest dims"),
  Edit.OTHERS: (FIRST, ":", "next dims"),
  Edit.MLP: (REST, "-", "MLP"),
  Edit.NEIGHBOUR: (REST, ":", "MLP, control"),
}
"""Colour, style and label by what is taken away."""


def _over(result: Result, values: np.ndarray) -> np.ndarray:
  """[3, n] mean and interval over texts of [n, P]."""
  return ends_over(
    np.stack([by_template(x, result.numbers) for x in values.astype(float)])
  )


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"layers.png": _layers(result), "edits.png": _edits(result)}


def _shade(ax: Any, result: Result) -> None:
  """The states of the first token's life."""
  numbers = result.numbers
  ax.axvspan(
    numbers["rise"] + 0.5, numbers["fall"] + 0.5, color=MUTED, alpha=0.12, lw=0
  )
  ax.set_xlabel("after layer (0: embedding)")
  ax.locator_params(axis="x", integer=True)
  ax.grid(True, axis="y")


def _layers(result: Result) -> bytes:
  """The unchanged model: entropies, norm and sinks."""
  arrays = result.arrays
  states = np.arange(arrays["entropy"].shape[1])
  with drawing(8.4, 3.2) as figure:
    left, middle, right = figure.subplots(1, 3)
    for name, color, style, label in (
      ("entropy", FIRST, "-", "all"),
      ("entropy of the rest", REST, "-", "without the first"),
      ("bound", INK, ":", "bound"),
    ):
      ends = _over(result, arrays[name][0])
      band(left, states, ends, color=color, ls=style, label=label)
    left.set_ylim(0, 1.02)
    legend_above(left, "entropy over its maximum")
    band(middle, states, np.exp(_over(result, arrays["norm"][0])), color=FIRST)
    middle.set_yscale("log")
    middle.axhline(1, color=INK, lw=0.6)
    middle.set_title("first token's norm, over the median")
    rates = 100 * arrays["sink rate"][0]
    band(right, states[1:], _over(result, rates), color=FIRST)
    right.set_ylim(0, 102)
    right.set_title("heads with a sink, %")
    for ax in (left, middle, right):
      _shade(ax, result)
    return png(figure)


def _edits(result: Result) -> bytes:
  arrays = result.arrays
  states = np.arange(arrays["entropy"].shape[1])
  with drawing(8.4, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for i, (color, style, label) in enumerate(LOOKS.values()):
      look = {"color": color, "ls": style, "label": label}
      band(left, states, _over(result, arrays["entropy"][i]), **look)
      rates = 100 * arrays["sink rate"][i]
      band(right, states[1:], _over(result, rates), **look)
    left.set_ylim(0, 1.02)
    right.set_ylim(0, 102)
    right.set_title("heads with a sink, %", pad=21)
    left.set_title("entropy over its maximum", pad=34)
    left.legend(
      loc="lower left",
      bbox_to_anchor=(-0.01, 1.0),
      ncols=3,
      frameon=False,
      fontsize=8,
      columnspacing=1.0,
      handlelength=1.6,
      borderaxespad=0.1,
    )
    for ax in (left, right):
      _shade(ax, result)
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  found = numbers["dimensions"]
  dims = ", ".join(map(str, found)) if found else "none"
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens. Entropy is "
      "that of the squared singular values of the tokens' states, over the "
      "logarithm of the largest rank: 0 for one direction, 1 for equal ones. "
      f"The first token's norm rises most in layer {numbers['rise']}; grey "
      "are the states up to its largest fall.",
      figure=drawn["layers.png"],
      caption="Means over texts with their 95 % intervals. The bound is what "
      "the part of the squares along the first token's state allows.",
      table=html.Table(*result.tables["layers.csv"]),
    ),
    html.Section(
      "What makes the valley",
      body=f"Taken away: the dimensions with {100 * LARGE:.0f} % or more of "
      f"the first token's squares (here {dims}) after layer {numbers['rise']} "
      "and all later ones, or as many of the next largest; what the MLP of "
      f"that layer writes to position 0, or to position "
      f"{numbers['control_position']}.",
      figure=drawn["edits.png"],
      caption="Entropy in the table: mean over the grey states.",
      table=html.Table(*result.tables["edits.csv"]),
    ),
  ]
