"""Figures and sections of the experiment `massive`."""

import numpy as np

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

COLORS = (REST, FIRST, INK, MUTED)


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "layers.png": _layers(result.arrays),
    "sinks.png": _sinks(
      result.arrays["sink_rate_by_layer"], list(result.numbers["conditions"])
    ),
  }


def _layers(arrays) -> bytes:
  series = {
    "largest at position 0": (arrays["largest"], FIRST),
    "largest elsewhere": (arrays["elsewhere"], REST),
  }
  with drawing(8, 3.4) as figure:
    left, right = figure.subplots(1, 2)
    for label, (values, color) in series.items():
      left.plot(values.mean(axis=1), color=color, lw=2, label=label)
      left.fill_between(
        range(len(values)),
        values.min(axis=1),
        values.max(axis=1),
        color=color,
        alpha=0.18,
        lw=0,
      )
    left.set_yscale("log")
    legend_above(left, "|x| after each layer (log scale)")
    for name, label, color in (
      ("by_mlp", "MLP", FIRST),
      ("by_attention", "attention", REST),
    ):
      values = arrays[name]
      total = values.sum(axis=1) if values.shape[1] else np.zeros(len(values))
      right.plot(total, color=color, lw=2, label=label)
    legend_above(right, "|added| to those dimensions of position 0")
    for ax in (left, right):
      ax.set_xlabel("layer")
      ax.grid(axis="y")
    return png(figure)


def _sinks(rates: np.ndarray, names) -> bytes:
  with drawing(6.4, 3.4) as figure:
    ax = figure.add_subplot()
    for values, name, color in zip(rates, names, COLORS, strict=True):
      look = {"ls": "--"} if name == "set to their mean" else {}
      ax.plot(100 * values, color=color, label=name, lw=1.8, **look)
    ax.set(xlabel="layer", ylabel="%", ylim=(0, 102))
    ax.grid(axis="y")
    legend_above(ax, "heads with a sink, by layer")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["edits.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. Massive: "
        "above 100, and above 1000 times the layer's median, at position 0, "
        "in more than half of the texts."
      ),
      figure=drawn["layers.png"],
      caption=(
        "Left: mean over texts, bands from least to most. Right: what MLP and "
        "attention add to the massive dimensions."
      ),
    ),
    html.Section(
      "Which edit takes the sink away",
      figure=drawn["sinks.png"],
      caption=(
        "The massive dimensions of position 0, set once, after the layer that "
        "makes them; and as many of the next largest as a control."
      ),
      table=html.Table(header, rows),
    ),
  ]
