"""The figure of `noise_training` and its section."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep_figures import Chart
from sinkjax.experiments.training.noise_training.experiment import (
  LABELS,
  OWN,
  REGULARISED,
)
from sinkjax.report import html
from sinkjax.report.figures import FIRST, REST, drawing, png

PANELS = {
  "noise_kl": "Noise on every token",
  "swap_kl": "A swapped token",
  "attack_first_kl": "An attack on the first token",
  "attack_kl": "An attack on a token other than the first",
}


def _points(result: Result) -> bytes:
  """KL divergence over attention on the first token, a point a variant."""
  rows = result.numbers["sturdiness"]
  with drawing(10.4, 6.4) as figure:
    for ax, (name, title) in zip(
      figure.subplots(2, 2).flat, PANELS.items(), strict=True
    ):
      for row in rows:
        _point(ax, row, name)
      ax.set(title=title, yscale="log")
      ax.margins(x=0.14, y=0.12)
      ax.set_xlabel("attention on the first token")
      ax.set_ylabel("KL divergence, nats a token")
      ax.grid()
    _legend(figure, ax, {row["experiment"] for row in rows})
    return png(figure)


def _point(ax: Any, row: Mapping[str, Any], name: str) -> None:
  """A variant's seeds, small, and their geometric mean, large."""
  color, up = (FIRST, -9) if row["experiment"] == OWN else (REST, 4)
  x, y = np.array(row["first_mass"]), np.array(row[name])
  ax.plot(x, y, "o", color=color, ms=3, alpha=0.5, mew=0)
  x, y = x.mean(), np.exp(np.log(y).mean())
  ax.plot(x, y, "o", color=color, ms=6)
  ax.annotate(
    row["variant"].replace("target_", "").replace("_", " "),
    (x, y),
    (5, up),
    textcoords="offset points",
    fontsize=7.5,
    color=color,
  )


def _legend(figure: Any, ax: Any, there: set[str]) -> None:
  for name, color, label in (
    (OWN, FIRST, "trained here"),
    (REGULARISED, REST, "of sink_regulariser, by target"),
  ):
    if name in there:
      ax.plot([], [], "o", color=color, label=label)
  figure.legend(
    *ax.get_legend_handles_labels(),
    loc="outside upper left",
    ncols=2,
    frameon=False,
  )


def _table(result: Result) -> html.Table:
  """Means over seeds."""
  rows: Sequence[Mapping[str, Any]] = result.numbers["sturdiness"]
  names = [key for key in rows[0] if key not in LABELS]
  return html.Table(
    ["experiment", "variant", *names],
    [
      [
        row["experiment"],
        row["variant"],
        *(float(np.mean(row[name])) for name in names),
      ]
      for row in rows
    ],
  )


def _body(result: Result) -> str:
  numbers = result.numbers
  return (
    f"Every trained model meets the same changes on {numbers['tests']} "
    f"held-out texts of {numbers['tokens']} tokens, read as in training; the "
    "first half is changed, the second half is measured. Noise and attacks "
    f"have {numbers['share']:g} of the norm of a token's embedding; noise is "
    "on every token but the first, an attack with "
    f"{numbers['gradients']} gradients on one token. Predictions of a worse "
    "model change less: compare models of equal loss."
  )


CHARTS = (
  Chart(
    "sturdiness.png",
    _points,
    _body,
    "Small points are single seeds, large points the means of a variant "
    "(geometric for the divergence, which has a logarithmic axis).",
    _table,
  ),
)
