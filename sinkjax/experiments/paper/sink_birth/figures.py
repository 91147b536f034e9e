"""Figures and sections of the experiment `sink_birth`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.sink_birth.experiment import QUANTITIES
from sinkjax.experiments.shared.interval_plots import band, ends_over
from sinkjax.experiments.shared.text_batches import by_template
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, png

TITLE = "The birth of a sink"

PANELS = {
  "rate": "heads with a sink, %",
  "value": "first token's values, over others'",
  "massive": "largest activation, over the median",
  "entropy": "entropy of rows, over its maximum",
  "loss": "loss, nats",
}
"""Titles, by quantity."""


def draw(result: Result) -> dict[str, bytes]:
  """One figure of all quantities against the steps."""
  arrays, numbers = result.arrays, result.numbers
  with drawing(8.8, 4.8) as figure:
    axes = figure.subplots(2, 3).ravel()
    for ax, name in zip(axes, QUANTITIES, strict=False):
      scale = 100 if name == "rate" else 1
      # One model alone stands at the end of its training, wherever that is.
      steps = numbers["steps"] or [_last_step(result)]
      ends = ends_over(
        np.stack([by_template(x, numbers) for x in scale * arrays[name]])
      )
      band(ax, steps, ends, color=FIRST, marker="o", ms=3, label="checkpoints")
      if "history, steps" in arrays:
        at = arrays[
          "history, loss steps" if name == "loss" else "history, steps"
        ]
        curve = scale * arrays[f"history, {name}"]
        ax.plot(at, curve, color=REST, lw=1.4, label="the run's own record")
      ax.set_xscale("symlog", linthresh=1)
      ax.set_xlim(left=0)
      if name == "massive":
        ax.set_yscale("log")
      elif name != "loss":
        ax.set_ylim(bottom=0)
      ax.set_title(PANELS[name])
      ax.set_xlabel("step")
      ax.grid(True, axis="y")
    axes[-1].axis("off")
    axes[-1].legend(
      *axes[0].get_legend_handles_labels(), loc="center", frameon=False
    )
    return {"birth.png": png(figure)}


def _last_step(result: Result) -> float:
  history = result.arrays.get("history, steps")
  return 1.0 if history is None else float(history[-1])


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  body = (
    f"{numbers['texts']} texts of {config.tokens} tokens by "
    f"{len(numbers['names'])} model{'s' * (len(numbers['names']) > 1)}. A head "
    f"has a sink where its mean attention on the first token is above "
    f"{config.eps:g}; values are the median over layers and heads, activations "
    "the greatest of all layers."
  )
  if config.history:
    body += (
      " The run's own record is of other texts, those of its probe, and its "
      "loss is that of its held-out text."
    )
  if not numbers["steps"]:
    body += (
      " No other checkpoints were given, so the model stands alone, at the end "
      "of its training."
    )
  return [
    html.Section(
      TITLE,
      body=body,
      figure=drawn["birth.png"],
      caption="Means over texts with their 95 % intervals, against the step.",
      table=html.Table(*result.tables["checkpoints.csv"]),
    )
  ]
