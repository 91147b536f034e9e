"""Figures of sweeps of models that control their mixing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep_figures import (
  COLORS,
  Chart,
  Panel,
  legend,
)
from sinkjax.experiments.shared.controlled import by_variant, rates, table_of
from sinkjax.report import html
from sinkjax.report.figures import INK, drawing, png

INSIDE = (
  Panel("Largest activation over median", "massive_ratio"),
  Panel("Kurtosis of activations", "kurtosis"),
  Panel("First value's norm over others'", "value_ratio"),
  Panel("Effective rank of the final states", "effective_rank"),
)
"""What sinks go with, of sweeps over recipes."""

Heads = Callable[[Result, str], slice | None]
"""Which heads of a variant a figure shows; `None` for no line."""


def rates_chart(title: str, body: str, heads: Heads) -> Chart:
  """Rates by layer and by text length, and exact mixing.

  Args:
    title: of the section.
    body: text above the figure.
    heads: which are shown.
  """

  def draw(result: Result) -> bytes:
    return _draw(result, heads)

  return Chart("rates.png", draw, body, _caption, _table, title)


def _draw(result: Result, heads: Heads) -> bytes:
  rows, lengths = by_variant(result), result.numbers["lengths"]
  own = _trained(result)
  shown = {name: heads(result, name) for name in rows}
  with drawing(11.4, 3.9) as figure:
    by_layer, by_length, mixing = figure.subplots(1, 3)
    for i, (name, row) in enumerate(rows.items()):
      color, style = COLORS[i % len(COLORS)], ("-", "--")[i // len(COLORS) % 2]
      label = {"color": color, "label": name.replace("_", " ")}
      _dots(mixing, i, row["mixing_rest"], color)
      if shown[name] is None:
        mixing.plot([], [], style, **label)
        continue
      of = rates(row)[..., shown[name]].mean(axis=(0, 3))
      depth = np.arange(of.shape[1])
      by_layer.plot(depth, of[own], f"o{style}", ms=4, **label)
      by_length.plot(lengths, of.mean(axis=1), f"o{style}", ms=4, **label)
      mixing.plot([], [], style, **label)
    by_layer.set(xlabel="layer", title=f"Rate on {lengths[own]} tokens")
    by_layer.set_xticks(np.arange(_layers(result)))
    by_length.set_xscale("log", base=2)
    by_length.set_xticks(lengths, [f"{n}" for n in lengths])
    by_length.set(xlabel="tokens of a text", title="Mean rate over layers")
    mixing.set_title("Share of the squared Jacobian\nbetween tokens")
    mixing.set_xticks([])
    for ax in (by_layer, by_length, mixing):
      ax.grid(axis="y")
    legend(figure, mixing, columns=5)
    return png(figure)


def _dots(ax: Any, x: float, values: Sequence[float], color: str) -> None:
  """The mean as a bar, a tick for each seed."""
  ax.bar(x, np.mean(values), color=color, width=0.7)
  if len(values) > 1:
    ax.plot(np.full(len(values), x), values, "_", color=INK, ms=7)


def _layers(result: Result) -> int:
  return rates(next(iter(by_variant(result).values()))).shape[2]


def _trained(result: Result) -> int:
  """Which of the lengths is next to the trained one."""
  away = np.abs(np.array(result.numbers["lengths"]) - result.config.length)
  return int(away.argmin())


def _caption(result: Result) -> str:
  seeds = len(result.numbers["seeds"])
  return (
    f"Means over the seeds ({seeds}) and over heads. The third panel is of "
    f"{result.config.map_texts} texts of {result.config.map_tokens} tokens, "
    "without the first token as source or target."
  )


def _table(result: Result) -> html.Table:
  header, lines = table_of(
    result.numbers["controls"], result.numbers["lengths"]
  )
  return html.Table(header, lines)
