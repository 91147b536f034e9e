"""Figures and sections of the experiment `jacobian`."""

import numpy as np

from sinkjax.experiments.jacobian_maps import CONDITIONS
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, legend_above, png
from sinkjax.report.jacobian_figures import norm_maps

COLORS = dict(zip(CONDITIONS, (REST, FIRST), strict=True))


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  norms = result.arrays["norms"][:, :, -1]
  mean = np.exp(np.log(np.where(norms > 0, norms, 1)).mean(axis=0))
  mean = np.where(norms[0] > 0, mean, 0)
  positions = [str(t) for t in range(mean.shape[-1])]
  maps = dict(zip(CONDITIONS, mean, strict=True))
  return {
    "map.png": norm_maps(maps, positions, "Frobenius norm (log scale)"),
    "layers.png": _layers(result.arrays["mixing_by_layer"]),
    "distance.png": _distance(result.arrays),
  }


def _layers(by_layer: np.ndarray) -> bytes:
  with drawing(6.4, 3.4) as figure:
    ax, x = figure.add_subplot(), np.arange(by_layer.shape[1])
    for (name, color), values in zip(COLORS.items(), by_layer, strict=True):
      mean, low, high = 100 * values.T
      ax.plot(x, mean, color=color, label=name, lw=1.8)
      ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    ax.set(xlabel="layer", ylabel="%", ylim=(0, 100), xlim=(0, x[-1]))
    ax.grid(axis="y")
    legend_above(ax, "total mixing after every layer; bands are 95 %")
    return png(figure)


def _distance(arrays) -> bytes:
  panels = (("exact", "distance"), ("estimated", "distance_long"))
  with drawing(8, 3.4) as figure:
    for ax, (title, name) in zip(figure.subplots(1, 2), panels, strict=True):
      for i, (label, color) in enumerate(COLORS.items()):
        values = arrays[name][:, i]
        ax.plot(values.T, color=color, lw=0.6, alpha=0.35)
        with np.errstate(divide="ignore"):  # a zero makes the mean zero
          mean = np.exp(np.log(values).mean(axis=0))
        ax.plot(mean, color=color, lw=2, label=label)
      ax.set_yscale("log")
      ax.yaxis.set_major_formatter("{x:g}")
      ax.yaxis.set_minor_formatter("")
      ax.set_xlabel("tokens back")
      ax.grid(axis="y")
      legend_above(ax, f"{title}: the last token, relative to itself")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["layers.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"Exact Jacobians of {numbers['texts']} texts of {numbers['tokens']} "
        "tokens, from embed to the residual stream after the last layer, with "
        f"position 0 hidden from layer {numbers['from_layer']} on and without."
      ),
      figure=drawn["map.png"],
      caption="Geometric mean of the norms over texts, by position.",
    ),
    html.Section(
      "Mixing by layer",
      figure=drawn["layers.png"],
      caption=(
        "Share of the squared norms that is between different tokens, of the "
        "map from embed to the residual stream after each layer."
      ),
      table=html.Table(header, rows),
    ),
    html.Section(
      "How far back",
      figure=drawn["distance.png"],
      caption=(
        f"Left: exact, T={numbers['tokens']}. Right: estimated from "
        f"{numbers['samples']} directions a token, T={numbers['long_tokens']}. "
        "Thin lines are texts, thick ones their geometric mean."
      ),
    ),
  ]
