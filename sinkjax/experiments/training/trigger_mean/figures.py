"""The figures of `trigger_mean`, and its part of the report."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Result
from sinkjax.report import html
from sinkjax.report.figures import FIRST, color_bar, drawing, heat_map, png

TITLE = "A task that softmax cannot solve without a sink"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": _schedule(result), "maps.png": _maps(result)}


def _schedule(result: Result) -> bytes:
  """The four quantities of the task through training."""
  panels = {
    "rest_first": "Dormant queries: attention on the first token",
    "rest_sum": "Dormant queries: sum of their weights",
    "loss": "Loss, sum of squares of a row",
    "value_ratio": "First value's norm over the others'",
  }
  return history.schedule(
    result,
    panels,
    rows=2,
    height=6.2,
    uniform="rest_first",
    scales={
      "loss": {"value": "symlog", "linthresh": 1e-4},
      "rest_sum": {"value": "symlog", "linthresh": 1e-2},
    },
  )


def _maps(result: Result) -> bytes:
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


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      TITLE,
      body=(
        "Each row has a first token, tokens with random vectors, and a "
        "trigger. One attention layer without positions must write the mean of "
        "the tokens before the trigger at the trigger, and zero at any other "
        "token, whose queries are dormant. Attention is the share of the "
        "query's total; where that total is 0, as with ReLU, the share says "
        "nothing."
      ),
      figure=drawn["schedule.png"],
      caption=history.caption(result),
      table=history.final_table(result),
    ),
    html.Section(
      "Attention after training",
      body="Queries are rows, the trigger's in colour.",
      figure=drawn["maps.png"],
      caption="Attention of the first seed's models on a held-out row.",
    ),
  ]
