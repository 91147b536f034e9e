"""Figures and sections of the experiment `prompts`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, REST, drawing, legend_above, png

COLORS = (REST, FIRST, INK)


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers = result.numbers
  title = "share of heads with a sink"
  drawn = {
    "domains.png": _dots(numbers["by_domain"], title),
    "conditions.png": _dots(numbers["by_condition"], title),
  }
  if numbers["by_length"]:
    drawn["lengths.png"] = _lengths(numbers["by_length"])
  return drawn


def _dots(means: Mapping[str, Any], title: str) -> bytes:
  """A row for each name, a dot with its interval for each threshold."""
  y = np.arange(len(means))
  with drawing(7, 0.36 * len(means) + 1.5) as figure:
    ax = figure.add_subplot()
    thresholds = list(next(iter(means.values())))
    for i, (eps, color) in enumerate(zip(thresholds, COLORS, strict=False)):
      value, low, high = (
        100
        * np.array(
          [
            [one[eps][end] for end in ("value", "low", "high")]
            for one in means.values()
          ]
        ).T
      )
      ax.errorbar(
        value,
        y + 0.16 * (i - 1),
        fmt="o",
        color=color,
        ms=4.5,
        lw=1.3,
        xerr=np.maximum([value - low, high - value], 0),
        label=f"eps {eps}",
      )
    ax.set_yticks(y, list(means), parse_math=False)
    ax.set(xlim=(-2, 102), xlabel="%", ylim=(len(means) - 0.5, -0.5))
    ax.grid(axis="x")
    legend_above(ax, f"{title}; 95 % over prompts")
    return png(figure)


def _lengths(means: Mapping[str, Any]) -> bytes:
  sizes = [int(name.removeprefix("T=")) for name in means]
  with drawing(5.6, 3.3) as figure:
    ax = figure.add_subplot()
    thresholds = list(next(iter(means.values())))
    for eps, color in zip(thresholds, COLORS, strict=False):
      value, low, high = (
        100
        * np.array(
          [
            [one[eps][end] for end in ("value", "low", "high")]
            for one in means.values()
          ]
        ).T
      )
      ax.plot(sizes, value, "o-", color=color, lw=1.8, ms=4, label=f"eps {eps}")
      ax.fill_between(sizes, low, high, color=color, alpha=0.18, lw=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set(xlabel="tokens", ylabel="%", ylim=(0, 102))
    ax.grid(axis="y")
    legend_above(ax, "the same texts, cut to a length")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name):
    header, rows = result.tables[name]
    return html.Table(header, rows)

  sources = ", ".join(
    f"{name} {one['version']} ({one['licence']})"
    for name, one in numbers["packages"].items()
  )
  found = [
    html.Section(
      result.title,
      body=(
        f"{numbers['prompts']} prompts of {numbers['tokens']} tokens, from "
        f"{sources}, and Python's own library. prompts.csv names each with "
        "its hash; the texts are not kept."
      ),
      figure=drawn["domains.png"],
      caption="By domain.",
      table=table("domains.csv"),
    ),
    html.Section(
      "What stands first, and what the tokens are",
      figure=drawn["conditions.png"],
      caption=(
        "Natural text; with a special token put first; random tokens; one "
        "random token repeated."
      ),
      table=table("conditions.csv"),
    ),
  ]
  if "lengths.png" in drawn:
    found.append(
      html.Section(
        "By length",
        figure=drawn["lengths.png"],
        caption="Texts that have the greatest length, at every length.",
        table=table("lengths.csv"),
      )
    )
  return found
