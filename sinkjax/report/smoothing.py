"""Figures and sections of the experiment `smoothing`."""

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  REST,
  color_bar,
  drawing,
  heat_map,
  legend_above,
  png,
  ticks,
)


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays, late = result.arrays, result.numbers["late"]
  return {
    "where.png": _where(100 * arrays["rates"].mean(axis=1), late),
    "cost.png": _cost(arrays, late),
    "evenness.png": _evenness(arrays, late),
  }


def _where(rates: np.ndarray, late: int) -> bytes:
  """Sink rate by key and by the layer from which position 0 is hidden."""
  with drawing(7.2, 3.4) as figure:
    ax = figure.add_subplot()
    image = heat_map(ax, rates.T, vmin=0, vmax=rates.max())
    shown = ticks(len(rates) - 1)
    names = [*map(str, shown), "never"]
    ax.set_xticks([*shown, len(rates) - 1], names)
    ax.axvline(late - 0.5, color=FIRST, lw=1.5)
    ax.set(xlabel="position 0 hidden from this layer on", ylabel="position")
    ax.set_title("share of heads whose sink is at a position")
    color_bar(image, ax, "%")
    return png(figure)


def _cost(arrays, late: int) -> bytes:
  with drawing(8, 3.3) as figure:
    for ax, name, title in zip(
      figure.subplots(1, 2), ("evenness", "loss"),
      ("evenness of attention", "loss, nats a token"), strict=True,
    ):  # fmt: skip
      values = arrays[name]
      x = np.arange(len(values) - 1)
      ax.plot(x, values[:-1], color=REST, lw=0.7, alpha=0.35)
      ax.plot(x, values[:-1].mean(axis=1), color=REST, lw=2, label="hidden")
      ax.axhline(values[-1].mean(), color=INK, lw=1, ls="--", label="never")
      ax.axvline(late, color=FIRST, lw=1)
      ax.set_xlabel("position 0 hidden from this layer on")
      ax.grid(axis="y")
      legend_above(ax, title)
    return png(figure)


def _evenness(arrays, late: int) -> bytes:
  series = {
    "as it is": (arrays["evenness_by_layer"][-1], REST),
    "first token removed": (arrays["evenness_removed_by_layer"], INK),
    f"hidden from layer {late} on": (arrays["evenness_by_layer"][late], FIRST),
  }
  with drawing(6.4, 3.4) as figure:
    ax = figure.add_subplot()
    for label, (values, color) in series.items():
      ax.plot(values, color=color, label=label, lw=1.8)
    ax.set(xlabel="layer", ylabel="entropy over its maximum", ylim=(0, 1))
    ax.grid(axis="y")
    legend_above(ax, "evenness of attention by layer, mean of heads and texts")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["layers.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. A head has "
        f"a sink at a position if it gets more than {numbers['eps']:g} of the "
        "attention of the queries that see it. Hiding position 0 from layer 0 "
        "on only moves the sink; hiding it later takes the sink away. The "
        "line marks the layer from which hiding leaves the fewest anywhere."
      ),
      figure=drawn["where.png"],
      caption="Sink rate by position; columns are conditions.",
      table=html.Table(header, rows),
    ),
    html.Section(
      "What it costs",
      figure=drawn["cost.png"],
      caption=(
        "Left: entropy of rows over its maximum, all layers and heads. Right: "
        "loss. Thin lines are texts, the thick one their mean."
      ),
    ),
    html.Section(
      "By layer",
      figure=drawn["evenness.png"],
      caption="Removing the first token is not hiding it late.",
    ),
  ]
