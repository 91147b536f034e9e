"""Figures and sections of the experiment `jacobian`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.layer_plots import (
  add_texts,
  layer_figure,
  with_interval,
)
from sinkjax.experiments.shared.sink_removal import Condition
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, legend_above, png
from sinkjax.report.sensitivity.figures import norm_maps

TITLE = "How much tokens depend on each other"
COLORS = {Condition.SINK: REST, Condition.HIDDEN: FIRST}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays = result.arrays
  norms = arrays["norms"][:, :, -1]
  # Entries above the diagonal are 0 and have no logarithm: they count as 1 for
  # the mean and become 0 again.
  mean = np.exp(np.log(np.where(norms > 0, norms, 1)).mean(axis=0))
  mean = np.where(norms[0] > 0, mean, 0)
  positions = [str(t) for t in range(mean.shape[-1])]
  maps = dict(zip(Condition, mean, strict=True))
  by_layer = {
    name: with_interval(ends, COLORS[name], scale=100)
    for name, ends in zip(Condition, arrays["mixing_by_layer"], strict=True)
  }
  return {
    "map.png": norm_maps(maps, positions, "Frobenius norm (log scale)"),
    "layers.png": layer_figure(
      by_layer,
      "after every layer; bands: 95 % over texts",
      "total mixing, %",
      high=100,
    ),
    "distance.png": _distances(arrays),
  }


def _distances(arrays: Mapping[str, np.ndarray]) -> bytes:
  panels = (("exact", "distance"), ("estimated", "distance_long"))
  with drawing(8, 3.4) as figure:
    for ax, (title, name) in zip(figure.subplots(1, 2), panels, strict=True):
      for i, (label, color) in enumerate(COLORS.items()):
        values = arrays[name][:, i]
        with np.errstate(divide="ignore"):  # a zero makes the mean zero
          mean = np.exp(np.log(values).mean(axis=0))
        x = np.arange(len(mean))
        add_texts(ax, x, values, mean, color=color, label=label)
      ax.set_yscale("log")
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter("")
      ax.set(xlabel="tokens back", ylabel="norm over that to itself")
      legend_above(ax, f"{title}: the last token (log scale)")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=(
        f"Exact Jacobians of {numbers['texts']} texts of {numbers['tokens']} "
        "tokens, from the embedding to the residual stream after the last "
        "layer, of the unchanged model and with position 0 hidden from layer "
        f"{numbers['from_layer']} on."
      ),
      figure=drawn["map.png"],
      caption="Geometric mean of the norms over texts, by position.",
    ),
    html.Section(
      "Mixing by layer",
      figure=drawn["layers.png"],
      caption=(
        "Total mixing: the share of the squared norms that is between "
        "different tokens, of the map from the embedding to the residual "
        "stream after each layer."
      ),
      table=html.Table(*result.tables["layers.csv"]),
    ),
    html.Section(
      "Sensitivity by distance",
      figure=drawn["distance.png"],
      caption=(
        f"Left: exact, T={numbers['tokens']}. Right: estimated from "
        f"{numbers['samples']} directions a token, T={numbers['long_tokens']}. "
        "Thin lines are texts, thick ones their geometric mean."
      ),
    ),
  ]
