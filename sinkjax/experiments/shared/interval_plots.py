"""Means and their 95 % intervals, drawn alike in every figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.stats import student
from sinkjax.report.figures import FIRST, MUTED


def ends_in(
  rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> np.ndarray:
  """[3, n] value, low and high of rows, from the columns of these names."""
  return np.array([[row[name] for row in rows] for name in columns], float)


def ends_over(values: np.ndarray) -> np.ndarray:
  """[3, n] mean, low and high over the last axis of [n, P], Student's t."""
  mean, half = student(values)
  return np.stack([mean, mean - half, mean + half])


def error_bars(
  ax: Any,
  at: Sequence[float] | np.ndarray,
  ends: np.ndarray,
  *,
  across: bool = False,
  **look: Any,
) -> None:
  """Points with their intervals.

  Args:
    ax: where.
    at: [n] of each point, on x.
    ends: [3, n] value, low and high, on y.
    across: exchange x and y.
    **look: of `Axes.errorbar`, in place of small dots.
  """
  value, low, high = ends
  # A value from a file may lie beyond its own rounded interval.
  gaps = np.maximum([value - low, high - value], 0)
  look = {"fmt": "o", "ms": 4, "lw": 1.2} | look
  if across:
    ax.errorbar(value, at, xerr=gaps, **look)
  else:
    ax.errorbar(at, value, yerr=gaps, **look)


def band(
  ax: Any,
  x: Sequence[float] | np.ndarray,
  ends: np.ndarray,
  *,
  color: str,
  **look: Any,
) -> None:
  """A line through values with a band between `ends` [3, n] low and high."""
  value, low, high = ends
  ax.plot(x, value, color=color, **{"lw": 1.6, **look})
  ax.fill_between(x, low, high, color=color, alpha=0.12, lw=0)


def rows_of_bars(ax: Any, labels: Sequence[str], ends: np.ndarray) -> None:
  """A labelled row for each interval, the first on top, and a line at 0."""
  error_bars(ax, range(len(labels)), ends, across=True, color=FIRST, ms=5)
  ax.set_yticks(range(len(labels)), labels, parse_math=False)
  ax.set_ylim(len(labels) - 0.5, -0.5)
  ax.axvline(0, color=MUTED, lw=1)
  ax.grid(axis="x")
