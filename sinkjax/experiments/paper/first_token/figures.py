"""Figures and sections of the experiment `first_token`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.first_token.experiment import Condition
from sinkjax.experiments.shared.interval_plots import ends_in, error_bars
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  heat_map,
  legend_above,
  png,
)

TITLE = "What the first token is worth on benchmarks"
LOOKS = {
  Condition.BOS: (INK, "s"),
  Condition.NO_BOS: (REST, "o"),
  Condition.AS_IS: (REST, "o"),
  Condition.HIDDEN: (FIRST, "D"),
  Condition.CONTROL: (MUTED, "v"),
}
"""Colour and marker of each condition; a model has one of the blue ones."""

DEPTHS = 8
"""Bins of the picture by depth: four needles in each."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = [name for name in LOOKS if name in result.numbers["tasks"]]
  drawn = {"tasks.png": _tasks(result.records("tasks.csv"), names)}
  if result.numbers["lengths"]:
    drawn["needles.png"] = _needles(result.records("needles.csv"), names)
    drawn["depth.png"] = _depth(result, names)
  return drawn


def _percent(
  rows: Sequence[Mapping[str, Any]], name: Condition, column: str
) -> np.ndarray:
  """[3, n] shares and their ends of one condition, in percent."""
  some = [row for row in rows if row["condition"] == name]
  return 100 * ends_in(some, (column, "low", "high"))


def _tasks(
  rows: Sequence[Mapping[str, Any]], names: Sequence[Condition]
) -> bytes:
  """A row for each task, a point for each condition, chance beside them."""
  chance = {row["task"]: 100 * row["chance"] for row in rows}
  at = np.arange(len(chance))
  with drawing(7.4, 0.62 * len(chance) + 1.5) as figure:
    ax = figure.add_subplot()
    for i, name in enumerate(names):
      color, marker = LOOKS[name]
      y = at + 0.17 * (i - (len(names) - 1) / 2)
      ends = _percent(rows, name, "accuracy")
      look = {"color": color, "fmt": marker, "label": name}
      error_bars(ax, y, ends, across=True, **look)
    for row, level in enumerate(chance.values()):
      ax.vlines(level, row - 0.4, row + 0.4, color=MUTED, ls=":", lw=1.5)
    labels = [task.replace("/", "\n") for task in chance]
    ax.set_yticks(at, labels, parse_math=False)
    ax.set(xlim=(0, 102), ylim=(len(chance) - 0.5, -0.5), xlabel="accuracy, %")
    ax.grid(axis="x")
    legend_above(ax, "95 % intervals over items; dotted: chance")
    return png(figure)


def _needles(
  rows: Sequence[Mapping[str, Any]], names: Sequence[Condition]
) -> bytes:
  """Needles found by the length of the text."""
  sizes = list(dict.fromkeys(row["tokens"] for row in rows))
  with drawing(6.2, 3.4) as figure:
    ax = figure.add_subplot()
    for name in names:
      color, marker = LOOKS[name]
      look = {"color": color, "fmt": f"{marker}-", "label": name}
      error_bars(ax, sizes, _percent(rows, name, "found"), **look)
    ax.axhline(100 * rows[0]["chance"], color=MUTED, ls=":", lw=1.5)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="tokens", ylabel="needles found, %", ylim=(0, 102))
    ax.grid(axis="y")
    legend_above(ax, "95 % intervals over needles; dotted: chance")
    return png(figure)


def _depth(result: Result, names: Sequence[Condition]) -> bytes:
  """Needles found by length and by where in the text they are."""
  sizes, arrays = result.numbers["lengths"], result.arrays
  with drawing(2.3 * len(names) + 0.6, 2.9) as figure:
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for ax, name in zip(axes, names, strict=True):
      shares = np.full((DEPTHS, len(sizes)), np.nan)
      for j, size in enumerate(sizes):
        depth = arrays[f"depth {size}"]
        bins = np.clip((DEPTHS * depth).astype(int), 0, DEPTHS - 1)
        for i in np.unique(bins):
          found = arrays[f"found {size}, {name}"][bins == i]
          shares[i, j] = 100 * found.mean()
      image = heat_map(
        ax, shares, vmin=0, vmax=100, extent=(-0.5, len(sizes) - 0.5, 100, 0)
      )
      ax.set_xticks(range(len(sizes)), [f"{n / 1024:.2g}k" for n in sizes])
      ax.set(xlabel="tokens", title=name)
    axes[0].set_ylabel("depth, %")
    figure.colorbar(image, ax=list(axes), label="needles found, %")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  made = [
    html.Section(
      TITLE,
      body=_about(numbers),
      figure=drawn["tasks.png"],
      caption="Accuracy by task.",
      table=html.Table(*result.tables["tasks.csv"], whole=True),
    )
  ]
  if numbers["lengths"]:
    left_out = ", ".join(map(str, numbers["left_out"]))
    made += [
      html.Section(
        "Needles in a haystack",
        body=(
          f"{numbers['needles']} sentences like “The password of Lisbon is "
          "copper.” stand in a long text, and each is asked for at its end. "
          "The answer is the most probable of the text's passwords."
          + (
            f" Longer than the model's context: {left_out}." if left_out else ""
          )
        ),
        figure=drawn["needles.png"],
        caption="Needles found by the length of the text.",
        table=html.Table(*result.tables["needles.csv"], whole=True),
      ),
      html.Section(
        "Needles by depth",
        figure=drawn["depth.png"],
        caption="Where in the text the sentence stands; 0 is its start.",
      ),
    ]
  return made


def _about(numbers: Mapping[str, Any]) -> str:
  # Files recorded before lack it; every item fitted the model's context.
  too_long = sum(numbers.get("items_too_long", {}).values())
  about = (
    f"{sum(numbers['items'].values())} items of {len(numbers['items'])} "
    "multiple-choice tasks of BIG-bench, without examples before them and "
    "without the choices listed; the answer is the ending of the greatest "
    "log-likelihood a byte. By its file, the model's own texts have the "
    f"condition “{numbers['own']}”. A token is hidden from layer "
    f"{numbers['from_layer']} on."
  )
  if too_long:
    about += f" Too long for the model's context: {too_long} more items."
  return about
