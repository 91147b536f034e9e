"""Figures and sections of the experiment `graded_sink`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.graded_sink.experiment import KEYS, MAPPED
from sinkjax.experiments.shared.interval_plots import (
  band,
  ends_over,
  error_bars,
)
from sinkjax.experiments.shared.text_batches import by_template
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  legend_above,
  png,
)

TITLE = "How much attention on the first token is the best"
COLORS = (FIRST, REST)
SHOWN = 8
"""Heads in the table: those of the largest derivatives."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"curves.png": _curves(result), "heads.png": _heads(result)}


def _axis(ax: Any, factors: np.ndarray) -> np.ndarray:
  """Places of the factors on an axis of log g, 0 to the left of the others."""
  positive = factors[factors > 0]
  at = np.log2(np.where(factors > 0, factors, positive.min() / 4))
  ax.set_xticks(at, [f"{x:g}" for x in factors], fontsize=7)
  ax.axvline(0, color=MUTED, lw=0.6)
  ax.set_xlabel("g")
  ax.grid(True, axis="y")
  return at


def _curves(result: Result) -> bytes:
  factors = np.array(result.config.factors, float)
  one = factors.tolist().index(1.0)
  units, arrays = result.numbers, result.arrays
  labels = {
    "sink": "first token",
    "control": f"position {units['control_position']}",
  }

  def over(name: str, k: int) -> np.ndarray:
    return np.stack([by_template(x, units) for x in arrays[name][k]])

  with drawing(8.4, 5.2) as figure:
    (loss, right), (entropy, mixing) = figure.subplots(2, 2)
    for k, key in enumerate(KEYS):
      look = {"color": COLORS[k], "label": labels[key], "marker": "o", "ms": 3}
      nats = over("loss", k)
      band(loss, _axis(loss, factors), ends_over(nats - nats[one]), **look)
      for ax, name, scale in ((right, "right", 100), (entropy, "entropy", 1)):
        band(ax, _axis(ax, factors), ends_over(scale * over(name, k)), **look)
      logs = np.log(arrays["mixing"][k] / arrays["mixing"][k][MAPPED.index(1)])
      at = np.log2(MAPPED) + 0.06 * k
      error_bars(mixing, at, np.exp(ends_over(logs)), color=COLORS[k], fmt="o-")
    mixing.set_xticks(np.log2(MAPPED), [f"{x:g}" for x in MAPPED])
    mixing.axhline(1, color=INK, lw=0.6)
    mixing.grid(True, axis="y")
    loss.axhline(0, color=INK, lw=0.6)
    # The far ends, of several nats, would hide what happens near 1.
    near = (factors >= 0.25) & (factors <= 4)
    seen = np.concatenate(
      [
        ends_over(over("loss", k) - over("loss", k)[one])[:, near].ravel()
        for k in range(len(KEYS))
      ]
    )
    room = 0.1 * max(np.ptp(seen), 1e-3)
    loss.set_ylim(seen.min() - room, seen.max() + room)
    loss.set_ylabel("loss, nats more")
    right.set_ylabel("next token right, %")
    entropy.set_ylabel("entropy of rows, nats")
    mixing.set(xlabel="g", ylabel="exact mixing, over g = 1")
    legend_above(loss, "attention multiplied by g on the")
    return png(figure)


def _heads(result: Result) -> bytes:
  of_layers = result.arrays["slopes"].sum(axis=2).T
  ends = ends_over(
    np.stack([by_template(x, result.numbers) for x in of_layers])
  )
  rows = result.records("heads.csv")
  alpha, mean = ([row[name] for row in rows] for name in ("attention", "slope"))
  with drawing(6.8, 3.2) as figure:
    by_layer, by_alpha = figure.subplots(1, 2)
    band(by_layer, range(len(of_layers)), ends, color=FIRST)
    by_layer.axhline(0, color=INK, lw=0.6)
    by_layer.set(xlabel="layer", ylabel="derivative by log g, nats")
    by_alpha.scatter(alpha, mean, s=9, color=FIRST, alpha=0.6, lw=0)
    by_alpha.axhline(0, color=INK, lw=0.6)
    by_alpha.set(xlabel="attention on the first token")
    by_alpha.set_title("one dot a head")
    by_layer.set_title("heads of a layer together")
    for ax in (by_layer, by_alpha):
      ax.grid(True, axis="y")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  header, rows = result.tables["heads.csv"]
  checks = "; ".join(
    f"layer {x['layer']}, head {x['head']}: {x['derivative']:+.5f} and "
    f"{x['finite']:+.5f}"
    for x in numbers["checked"]
  )
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens. In all layers "
      "and heads the attention of later tokens on one position is multiplied "
      "by g, and rows are normalised; g = 0 hides the position, g = 1 changes "
      f"nothing. Mixing is that of {numbers['map_texts']} texts of "
      f"{config.map_tokens} tokens by exact Jacobians, without the rows and "
      "columns of both positions.",
      figure=drawn["curves.png"],
      caption="Means over texts with their 95 % intervals. The axis of the "
      "loss shows the range of g from 0.25 to 4; the table has the rest.",
      table=html.Table(*result.tables["curves.csv"]),
    ),
    html.Section(
      "Which heads would gain by more or less",
      body="Exact derivatives of the loss by log g of each head at g = 1; "
      "below zero, more attention on the first token would lower the loss. "
      f"Derivatives and finite steps of the largest: {checks}.",
      figure=drawn["heads.png"],
      caption="Left: with the 95 % interval over texts.",
      table=html.Table(header, rows[:SHOWN]),
    ),
  ]
