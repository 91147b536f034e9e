"""Figures and sections of the experiment `bound`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.analysis.over_squashing import FORMS
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.layer_plots import add_texts
from sinkjax.experiments.shared.sink_removal import Condition
from sinkjax.report import html
from sinkjax.report.figures import INK, MUTED, drawing, png
from sinkjax.report.sensitivity.bounds import COLORS

TITLE = "Over-squashing bounds beside the exact Jacobian"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"bounds.png": _bounds(result.arrays)}


def _bounds(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The last token's bounds and exact norms, by source token."""
  lines = [
    *(
      (f"log10_bound_{name}", f"bound: {name}", color, "-")
      for name, color in COLORS.items()
    ),
    ("log10_norms_held", "exact, pattern held", MUTED, "--"),
    ("log10_norms", "exact", INK, "-"),
  ]
  x = np.arange(arrays["log10_norms"].shape[-1])
  with drawing(8.6, 4.2) as figure:
    axes = figure.subplots(1, 2, sharey=True)
    for i, (ax, title) in enumerate(zip(axes, Condition, strict=True)):
      for name, label, color, style in lines:
        values = arrays[name][:, i, -1]
        mean = values.mean(axis=0)
        add_texts(ax, x, values, mean, color=color, label=label, style=style)
      ax.set_title(title)
      ax.set_xlabel("changed token (source)")
      ax.set_xticks(x)
    axes[0].set_ylabel("log10 of the last token's norm")
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=5,
      frameon=False,
      fontsize=8.5,
    )
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header = [
    "form",
    "bound",
    "Jacobian of",
    "violations",
    "pairs",
    "decades above the exact norm",
    "decades higher without the sink",
  ]
  rows = [
    [
      name,
      form.label,
      "the pattern held" if form.frozen else "the model",
      numbers["violations"][name],
      numbers["pairs"],
      numbers["median_decades"][name]["value"],
      numbers["rise_without_sink"][name]["value"],
    ]
    for name, form in FORMS.items()
  ]
  return [
    html.Section(
      TITLE,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens; spectral "
        "norms of the map from the embedding to the residual stream after the "
        "last layer. Gains are measured on the model's own derivatives. The "
        "naive form leaves the residual stream out of its constant, so it need "
        "not hold."
      ),
      figure=drawn["bounds.png"],
      caption="Thin lines are texts, thick ones their mean.",
      table=html.Table(header, rows),
    )
  ]
