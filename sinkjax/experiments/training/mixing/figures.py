"""The figures of `mixing`, and its part of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep_figures import COLORS, FORMS, legend
from sinkjax.experiments.training.mixing.claims import (
  QUANTITIES,
  SET,
  as_trained,
)
from sinkjax.report import html
from sinkjax.report.figures import INK, color_bar, drawing, heat_map, png

TITLE = "Do models with weaker sinks mix more?"

TITLES = {
  "mixing_rest": "Mixing: share of the squared Jacobian\nbetween tokens",
  "bound_paper": "The paper's bound, decades",
  "spread": "Relative change of later tokens\nafter a swap",
  "rank": "Effective rank over its maximum",
}

MAPS = 8
"""Jacobian maps that are drawn, from the weakest sink to the strongest: as many
as two rows of a page hold."""

COLUMNS = (
  "loss",
  "first_mass",
  "mixing",
  "mixing_rest",
  "reach",
  "bound_paper",
  "bound_frozen",
  "bound_full",
  "loose",
  "cosine",
  "residual",
  "rank",
  "spread",
  "reached",
)
"""Keys of a row that the report's table shows."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"mixing.png": _points(result), "maps.png": _maps(result)}


def _points(result: Result) -> bytes:
  """Each variant's numbers over its sink, a color an experiment."""
  rows = result.numbers["rows"]
  experiments = list(dict.fromkeys(row["experiment"] for row in rows))
  colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(experiments)}
  with drawing(10.6, 7.0) as figure:
    panels = figure.subplots(2, 2).flat
    for ax, quantity in zip(panels, QUANTITIES, strict=True):
      for row in rows:
        if None not in row[quantity.key]:
          _point(ax, row, quantity.key, colors[row["experiment"]])
      ax.set_title(TITLES[quantity.key])
      ax.set_xlabel("attention on the first token")
      ax.grid()
    for name, color in colors.items():
      ax.plot([], [], "o", color=color, label=name.replace("_", " "))
    legend(figure, ax, columns=4)
    return png(figure)


def _point(ax: Any, row: Mapping[str, Any], key: str, color: str) -> None:
  """A variant in one form; targets of the sink are written beside it."""
  x, y = np.mean(row["first_mass"]), np.mean(row[key])
  with_front = row["form"] == "bos"
  ax.errorbar(
    x,
    y,
    xerr=np.std(row["first_mass"]),
    yerr=np.std(row[key]),
    fmt="o" if with_front else "s",
    color=color,
    ms=5,
    lw=0.8,
    mfc=color if with_front else "none",
  )
  if row["experiment"] == SET and with_front:
    ax.annotate(
      row["variant"].removeprefix("target_"),
      (x, y),
      (4, 4),
      textcoords="offset points",
      fontsize=7,
      color=INK,
    )


def _maps(result: Result) -> bytes:
  """Exact Jacobian maps, from the weakest sink to the strongest."""
  shown = _evenly(as_trained(result.numbers["rows"]))
  rows = -(-len(shown) // 4)
  with drawing(11.4, 2.9 * rows) as figure:
    axes = figure.subplots(rows, 4, squeeze=False)
    for ax in axes.flat[len(shown) :]:
      ax.set_visible(False)
    for ax, row in zip(axes.flat, shown, strict=False):
      name = "-".join((row["experiment"], row["variant"], row["form"]))
      norms = result.arrays[f"map_{name}"]
      own = norms / np.diag(norms)[:, None]
      seen = np.tri(len(own), dtype=bool)
      image = heat_map(ax, np.where(seen, own, np.nan), vmin=0, vmax=0.5)
      ax.set_title(
        f"{row['experiment'].replace('_', ' ')}:\n{row['variant']}, sink "
        f"{np.mean(row['first_mass']):.3f}",
        fontsize=8,
      )
    color_bar(image, axes, "norm over the token's own")
    return png(figure)


def _evenly(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """At most `MAPS` of the rows, evenly spaced in the order of their sinks."""
  rows = sorted(rows, key=lambda row: np.mean(row["first_mass"]))
  at = np.linspace(0, len(rows) - 1, min(MAPS, len(rows))).round().astype(int)
  return [rows[i] for i in dict.fromkeys(at)]


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      TITLE,
      body=_body(result),
      figure=drawn["mixing.png"],
      caption=(
        "Filled points: read with what training put in front; hollow points: "
        "text alone. Bars: standard deviation over seeds. Numbers beside "
        "points: the sink target of the regulariser."
      ),
      table=_table(result),
    ),
    html.Section(
      "Exact Jacobians, from the weakest sink to the strongest",
      body="Rows are targets, columns sources.",
      figure=drawn["maps.png"],
      caption="Mean norms over texts and seeds, each over its row's diagonal.",
    ),
  ]


def _body(result: Result) -> str:
  numbers = result.numbers
  return (
    "Every trained model of the named experiments, on "
    f"{numbers['texts']} held-out texts of {numbers['tokens']} tokens. Mixing "
    "is the share of the squared norms of the exact Jacobian, from embedding "
    "to the last layer's residual stream, that is between different tokens; "
    "mixing_rest leaves out the first token. Bounds are in decades, averaged "
    "over pairs of tokens of one text; loose is the number of decades by "
    "which the full bound exceeds the exact spectral norm; both are empty "
    "where the bounds do not cover the model. Cosine, residual and rank are of "
    "the last layer, without the first token. A change is relative, of the "
    "tokens after a replaced one; reached is the share of these with a change "
    f"above {numbers['threshold']:g}. Variants differ in more than the sink, "
    "except those of the sink regulariser."
  )


def _table(result: Result) -> html.Table:
  """Means over seeds; empty where a bound does not cover the model."""
  return html.Table(
    ["experiment", "variant", "input", *COLUMNS],
    [
      [
        row["experiment"],
        row["variant"],
        FORMS[row["form"]],
        *(
          "" if None in row[name] else float(np.mean(row[name]))
          for name in COLUMNS
        ),
      ]
      for row in result.numbers["rows"]
    ],
  )
