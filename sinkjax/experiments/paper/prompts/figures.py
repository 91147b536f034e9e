"""Figures and sections of the experiment `prompts`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.shared.interval_plots import band, error_bars
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, REST, drawing, legend_above, png

TITLE = "Sinks over many prompts"
COLORS = (REST, FIRST, INK)
"""Of the thresholds, in their order."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers = result.numbers
  drawn = {
    "domains.png": _rows(numbers["by_domain"]),
    "conditions.png": _rows(numbers["by_condition"]),
  }
  if numbers["by_length"]:
    drawn["lengths.png"] = _lengths(numbers["by_length"])
  return drawn


def _by_threshold(
  means: Mapping[str, Mapping[str, Any]],
) -> list[tuple[str, str, np.ndarray]]:
  """(label, colour, [3, n] means and their ends in percent) by threshold."""
  thresholds = list(next(iter(means.values())))
  return [
    (
      f"eps {eps}",
      color,
      100 * np.array([Mean.read(one[eps])[:3] for one in means.values()]).T,
    )
    for eps, color in zip(thresholds, COLORS, strict=False)
  ]


def _rows(means: Mapping[str, Any]) -> bytes:
  """A row for each name, a point with its interval for each threshold."""
  y = np.arange(len(means))
  with drawing(7, 0.36 * len(means) + 1.5) as figure:
    ax = figure.add_subplot()
    for i, (label, color, ends) in enumerate(_by_threshold(means)):
      at = y + 0.16 * (i - 1)
      error_bars(ax, at, ends, across=True, color=color, label=label)
    ax.set_yticks(y, list(means), parse_math=False)
    ax.set(xlim=(-2, 102), xlabel="heads with a sink, %")
    ax.set_ylim(len(means) - 0.5, -0.5)
    ax.grid(axis="x")
    legend_above(ax, "sink rate; 95 % intervals over prompts")
    return png(figure)


def _lengths(means: Mapping[str, Any]) -> bytes:
  """The sink rate of the same texts by their length."""
  sizes = [int(name.removeprefix("T=")) for name in means]
  with drawing(5.6, 3.3) as figure:
    ax = figure.add_subplot()
    for label, color, ends in _by_threshold(means):
      band(ax, sizes, ends, color=color, label=label, marker="o", ms=4)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set(xlabel="tokens", ylabel="heads with a sink, %", ylim=(0, 102))
    ax.grid(axis="y")
    legend_above(ax, "the same texts, cut to a length")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  sources = ", ".join(
    f"{name} {one['version']} ({one['licence']})"
    for name, one in numbers["packages"].items()
  )
  made = [
    html.Section(
      TITLE,
      body=(
        f"{numbers['prompts']} prompts of {numbers['tokens']} tokens, from "
        f"{sources}, and Python's own library. prompts.csv has the origin and "
        "the hash of each; the texts are not kept."
      ),
      figure=drawn["domains.png"],
      caption="Sink rate by domain.",
      table=html.Table(*result.tables["domains.csv"]),
    ),
    html.Section(
      "The first token and the other tokens",
      figure=drawn["conditions.png"],
      caption=(
        "Natural text; natural text with a special token put first; random "
        "tokens; one random token repeated."
      ),
      table=html.Table(*result.tables["conditions.csv"]),
    ),
  ]
  if numbers["by_length"]:
    made.append(
      html.Section(
        "Sink rate by length",
        figure=drawn["lengths.png"],
        caption="Texts that have the greatest length, cut to every length.",
        table=html.Table(*result.tables["lengths.csv"]),
      )
    )
  return made
