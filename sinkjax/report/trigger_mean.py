"""Figures and sections of the experiment `trigger_mean`."""

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  color_bar,
  drawing,
  heat_map,
  png,
)
from sinkjax.report.text_sweep import COLORS


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": _schedule(result), "maps.png": _maps(result)}


def _schedule(result) -> bytes:
  """What emerges when: a panel a quantity, a line a model, seeds as a band."""
  arrays, numbers = result.arrays, result.numbers
  panels = {
    "rest_first": "queries with nothing to do: attention on the first token",
    "rest_sum": "and what they give in all",
    "loss": "loss, sum of squares of a row",
    "value_ratio": "the first value's norm over the others'",
  }
  with drawing(9.6, 6.2) as figure:
    for ax, (name, title) in zip(
      figure.subplots(2, 2).flat, panels.items(), strict=True
    ):
      for i, model in enumerate(numbers["models"]):
        values, color = arrays[name][i], COLORS[i % len(COLORS)]
        ax.plot(arrays["steps"], values.mean(axis=0), color=color, lw=1.6,
                label=model.replace("_", " "))  # fmt: skip
        ax.fill_between(arrays["steps"], values.min(axis=0), values.max(axis=0),
                        color=color, alpha=0.15, linewidth=0)  # fmt: skip
      if name == "rest_first":
        ax.axhline(numbers["uniform_first"], color=MUTED, lw=0.9, ls=":")
      if name in ("loss", "rest_sum"):
        ax.set_yscale("symlog", linthresh=1e-4 if name == "loss" else 1e-2)
        ax.set_ylim(bottom=0)
      ax.set_title(title)
      ax.set_xlabel("step")
      ax.grid(axis="y")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside upper left", ncols=6,
      frameon=False, fontsize=8.5,
    )  # fmt: skip
    return png(figure)


def _maps(result) -> bytes:
  """Attention of the first seed's models on one row; the trigger is marked."""
  numbers, maps = result.numbers, result.arrays["maps"]
  trigger, length = numbers["trigger"], maps.shape[-1]
  labels = ["first", *map(str, range(1, length))]
  labels[trigger] = "trigger"
  columns = min(len(maps), 3)
  rows = -(-len(maps) // columns)
  with drawing(3.4 * columns + 0.6, 3.4 * rows) as figure:
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(maps) :]:
      ax.set_visible(False)
    shown = axes.flat[: len(maps)]
    for ax, model, shares in zip(shown, numbers["models"], maps, strict=True):
      seen = np.tri(length, dtype=bool)
      image = heat_map(ax, np.where(seen, shares, np.nan), vmin=0, vmax=1)
      ax.set_xticks(range(length), labels, fontsize=5.5, rotation=90)
      ax.set_yticks(range(length), labels, fontsize=5.5)
      ax.get_yticklabels()[trigger].set_color(FIRST)
      ax.set_title(model.replace("_", " "))
    color_bar(image, axes, "share of the query's attention")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header = ["model", *next(iter(numbers["last"].values()))]
  rows = [
    [name, *(float(np.mean(v)) for v in values.values())]
    for name, values in numbers["last"].items()
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Each row has a first token, tokens that point anywhere, and a "
        "trigger. One attention layer without positions must write the mean "
        "of the tokens before the trigger at the trigger, and nothing at any "
        "other token. Attention is the share of what a query gives in all; "
        "where that sum is 0, as with ReLU, the share says nothing."
      ),
      figure=drawn["schedule.png"],
      caption=(
        f"Mean over the seeds ({len(numbers['seeds'])}), band from least to "
        "greatest. Dotted: even attention."
      ),
      table=html.Table(header, rows),
    ),
    html.Section(
      "Who looks where",
      body="Queries are rows, the trigger's in colour.",
      figure=drawn["maps.png"],
      caption="Attention of the first seed's models on a held-out row.",
    ),
  ]
