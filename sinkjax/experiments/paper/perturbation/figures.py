"""Figures and sections of the experiment `perturbation`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.perturbation.experiment import AROUND, Condition
from sinkjax.experiments.shared.layer_plots import layer_figure, with_interval
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  color_bar,
  drawing,
  heat_map,
  legend_above,
  png,
  ticks,
  token_labels,
)

TITLE = "How far a swapped word spreads"
COLORS = {
  Condition.SINK: REST,
  Condition.HIDDEN: FIRST,
  Condition.CONTROL: MUTED,
  Condition.NO_BOS: INK,
}
LEAST = 1e-3
"""The colour scale of relative changes starts here: what is less is rounding
and would take most of the scale."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays, names = result.arrays, result.numbers["conditions"]
  by_layer = {
    name: with_interval(ends, COLORS[name])
    for name, ends in zip(names, arrays["by_layer"], strict=True)
  }
  return {
    "map.png": _maps(arrays["aligned"], names),
    "swap.png": _swap(
      arrays["shown"], names, result.numbers["shown"]["tokens"]
    ),
    "layers.png": layer_figure(
      by_layer,
      "tokens after the swap; bands: 95 % over texts",
      "mean relative change",
    ),
    "swaps.png": _swaps(arrays),
  }


def _log_scale(values: np.ndarray) -> tuple[np.ndarray, Any]:
  """(values with gaps for zeros, the colours' scale)."""
  from matplotlib.colors import LogNorm

  shown = np.where(values > 0, values, np.nan)
  return shown, LogNorm(max(np.nanmin(shown), LEAST), np.nanmax(shown))


def _change_bar(image: Any, axes: Sequence[Any]) -> None:
  bar = color_bar(image, list(axes), "relative change (log scale)")
  bar.ax.yaxis.set_major_formatter("{x:g}")


def _swap(
  gaps: np.ndarray, names: Sequence[str], tokens: Sequence[str]
) -> bytes:
  """One swap as in the paper: layers by tokens, a row for each condition."""
  shown, norm = _log_scale(gaps)
  labels = token_labels(tokens)
  with drawing(9.2, 1.65 * len(names) + 1) as figure:
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for ax, name, values in zip(axes, names, shown, strict=True):
      image = heat_map(ax, values, norm=norm, origin="lower")
      ax.set_title(name)
      ax.set_ylabel("layer")
    axes[-1].set_xticks(
      range(len(labels)), labels, rotation=90, parse_math=False
    )
    _change_bar(image, axes)
    return png(figure)


def _maps(aligned: np.ndarray, names: Sequence[str]) -> bytes:
  """The mean over swaps, layers by distance from the swapped word."""
  shown, norm = _log_scale(aligned)
  before = AROUND[0]
  with drawing(3.1 * len(names) + 1.2, 3.8) as figure:
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for ax, name, values in zip(axes, names, shown, strict=True):
      image = heat_map(ax, values, norm=norm)
      ax.set_title(name)
      marks = list(range(0, values.shape[1] - before, 10))
      ax.set_xticks([before + x for x in marks], marks)
      ax.set_xlabel("tokens after the swap")
    axes[0].set_ylabel("layer")
    axes[0].set_yticks(ticks(aligned.shape[1]))
    _change_bar(image, axes)
    return png(figure)


def _swaps(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Every swap a dot, beside the others of its text."""
  text, rng = arrays["text"], np.random.default_rng(0)
  series = (
    (Condition.HIDDEN, arrays["log_ratio"], -0.15),
    (Condition.CONTROL, arrays["log_ratio_control"], 0.15),
  )
  with drawing(6.4, 3.3) as figure:
    ax = figure.add_subplot()
    for name, log, shift in series:
      x = text + 1 + shift + rng.uniform(-0.08, 0.08, len(text))
      ax.scatter(x, np.exp(log), s=13, lw=0, color=COLORS[name], label=name)
    ax.axhline(1, color=INK, lw=0.8)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set(xlabel="text", ylabel="change over that with the sink")
    ax.set_xticks(np.unique(text) + 1)
    ax.grid(axis="y")
    legend_above(ax, "every swap, at the last layer (log scale)")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['swaps']} swaps of one word in {numbers['texts']} texts are "
        "run unchanged and with one token hidden from layer "
        f"{numbers['from_layer']} on. {numbers['unusable_swaps']} other swaps "
        "change the number of tokens or come too early or too late in their "
        "text. The relative change is the norm of the difference over the norm "
        "of the residual stream."
      ),
      figure=drawn["map.png"],
      caption=(
        "Mean relative change after every layer, by position relative to the "
        "swapped word. Blank cells are exactly zero."
      ),
    ),
    html.Section(
      "One swap: {} for {}".format(*reversed(numbers["shown"]["words"])),
      figure=drawn["swap.png"],
      caption=(
        "As in figure 2 of the paper, which swaps greatest for best; the text "
        "is written for this project. Blank cells are exactly zero."
      ),
    ),
    html.Section(
      "Relative change by layer",
      figure=drawn["layers.png"],
      caption="Mean over all tokens after the swapped word.",
      table=html.Table(*result.tables["layers.csv"]),
    ),
    html.Section(
      "Every swap",
      figure=drawn["swaps.png"],
      caption=(
        "Relative change of later tokens with a token hidden, divided by the "
        "change with the sink. "
        f"In {100 * numbers['swaps_that_spread_further']:.0f} % of swaps the "
        "change is larger with the sink hidden."
      ),
    ),
  ]
