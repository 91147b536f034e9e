"""Figures of models whose tokens do not all take every layer."""

from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep_figures import COLORS, Panel, legend
from sinkjax.experiments.shared.controlled import Row, by_variant
from sinkjax.experiments.training.adaptive_depth.experiment import work
from sinkjax.report import html
from sinkjax.report.figures import INK, drawing, png


def _layers(row: Row, numbers: Any) -> Any:
  rows = {one["variant"]: one for one in numbers["controls"]}
  return work(rows[row["variant"]])


INSIDE = (
  Panel("Layers that a token takes", _layers),
  Panel("First value's norm over others'", "value_ratio"),
  Panel("Largest activation over median", "massive_ratio"),
)

PARTS = 6
"""Groups of positions behind the first token, each twice as long as the last:
what changes with position changes most where texts begin."""


def groups(length: int) -> list[tuple[int, int]]:
  """Positions [from, to) of the first token and of the groups behind it.

  >>> groups(9)
  [(0, 1), (1, 2), (2, 4), (4, 9)]
  """
  ends = [length]
  while len(ends) < PARTS and ends[-1] > 2:
    ends.append(ends[-1] // 2)
  edges = sorted({0, 1, *ends})
  return list(zip(edges, edges[1:], strict=False))


def draw_depth(result: Result) -> bytes:
  """Layers by depth and by position, and attention of those that stop."""
  rows = by_variant(result)
  with drawing(11.4, 3.9) as figure:
    by_layer, by_place, rest = figure.subplots(1, 3)
    for i, (name, row) in enumerate(rows.items()):
      taken = np.asarray(row["taken"], float).mean(axis=0)  # [L, T]
      label = {"color": COLORS[i % len(COLORS)], "label": name}
      by_layer.plot(
        np.arange(len(taken)), taken[:, 1:].mean(axis=1), "o-", ms=4, **label
      )
      parts = groups(taken.shape[1])
      place = [taken[:, a:b].sum(axis=0).mean() for a, b in parts]
      by_place.plot(np.arange(len(parts)), place, "o-", ms=4, **label)
      _stops(rest, i, row, label["color"])
    by_layer.set(xlabel="layer", title="Share of tokens that take it")
    by_layer.set_xticks(np.arange(_depth(result)))
    by_layer.set_ylim(-0.05, 1.05)
    by_place.set_xticks(np.arange(len(parts)), [_place(p) for p in parts])
    by_place.tick_params(axis="x", labelrotation=30)
    by_place.set(xlabel="position in the text", title="Layers taken")
    by_place.set_ylim(bottom=0)
    rest.set_title("Attention on the first token\nof who stops (o) or goes (x)")
    rest.set_xticks(np.arange(len(rows)), list(rows))
    rest.set_xlim(-0.5, len(rows) - 0.5)
    rest.set_ylim(bottom=0)
    for ax in (by_layer, by_place, rest):
      ax.grid(axis="y")
    legend(figure, by_layer, columns=4)
    return png(figure)


def _stops(ax: Any, x: float, row: Any, color: str) -> None:
  """Both groups of each seed; the mean of all rows where nobody stops."""
  if None in row["stops"]:
    ax.plot([x] * len(row["first_share"]), row["first_share"], "_", color=INK)
    return
  ax.plot([x - 0.1] * len(row["stops"]), row["stops"], "o", color=color, ms=6)
  ax.plot([x + 0.1] * len(row["goes"]), row["goes"], "x", color=color, ms=6)


def _place(part: tuple[int, int]) -> str:
  first, end = part
  return f"{first}" if end == first + 1 else f"{first}-{end - 1}"


def _depth(result: Result) -> int:
  rows = by_variant(result).values()
  return max(np.asarray(row["taken"]).shape[1] for row in rows)


def tokens_caption(result: Result) -> str:
  """Of `draw_depth`."""
  seeds = len(result.numbers["seeds"])
  return (
    f"Lines are means over the seeds ({seeds}), marks of the third panel "
    f"single seeds; {result.config.starts} held-out texts of "
    f"{result.config.length} tokens. The first panel leaves out the first "
    "token. In the third a circle "
    "is the mean over tokens that take a layer and not the next, a cross over "
    "those that take both, in layers with some of each; a dash is the mean of "
    "all tokens of a model in which nobody stops."
  )


def depth_table(result: Result) -> html.Table:
  """What `draw_depth` shows, a line for each seed."""
  header = ["variant", "seed", "layers, first token", "layers, others"]
  header += ["attention on the first token", "of who stops", "of who goes on"]
  header += ["nats, few layers", "nats, many layers"]
  keys = ("first_share", "stops", "goes", "nats_few", "nats_many")
  lines = []
  for row in by_variant(result).values():
    for i, seed in enumerate(row["seeds"]):
      taken = np.asarray(row["taken"][i], float).sum(axis=0)
      line = [row["variant"], seed, float(taken[0]), float(taken[1:].mean())]
      line += ["" if row[key][i] is None else row[key][i] for key in keys]
      lines.append(line)
  return html.Table(header, lines)
