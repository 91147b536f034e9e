"""What small tasks measured on their way: a figure, its caption, the ends.

For results of `sinkjax.experiments.histories`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import MUTED, drawing, png
from sinkjax.report.text_sweep import COLORS


def schedule(
  result,
  panels: Mapping[str, str],
  *,
  rows: int,
  height: float,
  even: str,
  scales: Mapping[str, Mapping[str, Any]],
) -> bytes:
  """What emerges when: a panel a quantity, a line a model, seeds as a band.

  Args:
    result: whose arrays are [models, seeds, steps].
    panels: {name of an array: title}.
    rows: of panels.
    height: of the figure, in inches.
    even: the panel with a line at even attention.
    scales: {name: arguments of `set_yscale`} of those that are not linear; a
      symmetric logarithm starts at 0.
  """
  arrays, numbers = result.arrays, result.numbers
  with drawing(9.6, height) as figure:
    axes = figure.subplots(rows, len(panels) // rows).flat
    for ax, (name, title) in zip(axes, panels.items(), strict=True):
      for i, model in enumerate(numbers["models"]):
        values, color = arrays[name][i], COLORS[i % len(COLORS)]
        ax.plot(arrays["steps"], values.mean(axis=0), color=color, lw=1.6,
                label=model.replace("_", " "))  # fmt: skip
        ax.fill_between(arrays["steps"], values.min(axis=0), values.max(axis=0),
                        color=color, alpha=0.15, linewidth=0)  # fmt: skip
      if name == even:
        ax.axhline(numbers["uniform_first"], color=MUTED, lw=0.9, ls=":")
      if name in scales:
        ax.set_yscale(**scales[name])
        if scales[name]["value"] == "symlog":
          ax.set_ylim(bottom=0)
      ax.set_title(title)
      ax.set_xlabel("step")
      ax.grid(axis="y")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside upper left", ncols=6,
      frameon=False, fontsize=8.5,
    )  # fmt: skip
    return png(figure)


def caption(result) -> str:
  """Of `schedule`."""
  return (
    f"Mean over the seeds ({len(result.numbers['seeds'])}), band from least to "
    "greatest. Dotted: even attention."
  )


def ends(result) -> html.Table:
  """What was measured at the end, means over seeds."""
  last = result.numbers["last"]
  rows = [
    [name, *(float(np.mean(v)) for v in values.values())]
    for name, values in last.items()
  ]
  return html.Table(["model", *next(iter(last.values()))], rows)
