"""Figures that several experiments draw: lines by layer, and lines of single
texts with their mean.

Axes: C conditions, L layers, P texts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.report.figures import drawing, legend_above, png


class Line(NamedTuple):
  """A value of every layer.

  Attributes:
    values: [L].
    color: of the line and its band.
    band: [2, L] the lower and the upper end of an interval, or `None`.
    style: of the line.
  """

  values: np.ndarray
  color: str
  band: np.ndarray | None = None
  style: str = "-"


def with_interval(ends: np.ndarray, color: str, scale: float = 1.0) -> Line:
  """A line of [L, 3]: mean, lower end, upper end."""
  mean, *band = scale * np.asarray(ends).T
  return Line(mean, color, np.stack(band))


def add_lines(ax: Any, lines: Mapping[str, Line]) -> None:
  """Draws lines by layer, by their labels."""
  for label, (values, color, band, style) in lines.items():
    x = np.arange(len(values))
    ax.plot(x, values, color=color, label=label, lw=1.8, ls=style)
    if band is not None:
      ax.fill_between(x, *band, color=color, alpha=0.18, lw=0)
  ax.set(xlabel="layer", xlim=(0, len(values) - 1))
  ax.grid(True, axis="y")


def layer_figure(
  lines: Mapping[str, Line], title: str, ylabel: str, high: float | None = None
) -> bytes:
  """A figure of lines by layer, on an axis from zero.

  Args:
    lines: by label.
    title: of the figure.
    ylabel: what is drawn, with its unit.
    high: the upper end of the axis; `None` for what the values need.
  """
  with drawing(6.4, 3.4) as figure:
    ax = figure.add_subplot()
    add_lines(ax, lines)
    ax.set_ylabel(ylabel)
    ax.set_ylim(0, high)
    legend_above(ax, title)
    return png(figure)


def layer_table(
  names: Sequence[str], by_layer: np.ndarray
) -> tuple[list[str], list[list[Any]]]:
  """(header, rows) of [C, L, 3]: mean and interval by layer and condition."""
  header = ["layer"]
  for name in names:
    header += [name, f"{name}, low", f"{name}, high"]
  rows = [
    [layer, *map(float, by_layer[:, layer].ravel())]
    for layer in range(by_layer.shape[1])
  ]
  return header, rows


def add_texts(
  ax: Any,
  x: np.ndarray,
  values: np.ndarray,
  mean: np.ndarray,
  *,
  color: str,
  label: str,
  style: str = "-",
) -> None:
  """Draws [P, N] as thin lines and their mean [N] as a thick one."""
  ax.plot(x, np.transpose(values), color=color, lw=0.6, alpha=0.35)
  ax.plot(x, mean, color=color, lw=2, label=label, ls=style)
  ax.grid(True, axis="y")
