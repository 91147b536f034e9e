"""All effects of a page at a glance, on one scale.

Effects have different units, but each has the margin below which it would not
matter. Divided by that, and turned so that right is as the claim says, all fit
one axis: within -1 and 1 nothing matters. The axis is linear there and
logarithmic beyond, as some effects are a hundred margins.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sinkjax.experiments.harness.effects import Effect, Expect
from sinkjax.experiments.harness.protocol import Judged, Verdict
from sinkjax.report.figures import FIRST, INK, MUTED, REST, RULE, drawing, png

COLORS: Mapping[Verdict, str] = {
  Verdict.SUPPORTED: REST,
  Verdict.CONTRADICTED: FIRST,
  Verdict.NO_EFFECT: INK,
  Verdict.INCONCLUSIVE: "#a3abb4",
  Verdict.NOT_TESTABLE: RULE,
}
"""Vermilion and blue are apart for every eye; what decides nothing is grey."""

ROW, GAP, LEAST = 0.115, 0.14, 1.6
"""Inches: a claim's row, the space above an experiment, the lowest figure."""


class InMargins(NamedTuple):
  """An effect in units of its margin; above 0 is as the claim says."""

  value: float
  low: float
  high: float


def in_margins(effect: Effect) -> InMargins:
  """The effect on the common scale."""
  # "No more than" is claimed of the side that is left.
  turned = effect.expect in (Expect.LESS, Expect.NOT_MORE)
  factor = (-1 if turned else 1) / effect.margin
  value, *ends = (factor * x for x in effect.mean[:3])
  return InMargins(value, *sorted(ends))


def place(x: float) -> float:
  """Linear within the margin, logarithmic beyond, the slope without a break.

  >>> [round(place(x), 2) for x in (-1, 0, 0.5, 1, math.e)]
  [-1.0, 0.0, 0.5, 1.0, 2.0]
  """
  size = abs(x)
  return math.copysign(size if size <= 1 else 1 + math.log(size), x)


def draw(claims: Sequence[tuple[str, Judged]]) -> bytes | None:
  """The figure of all claims with an effect; `None` where there is none.

  Args:
    claims: (experiment, claim), in the order of the page.
  """
  shown: dict[str, list[Judged]] = {}
  for name, claim in claims:
    if isinstance(claim.effect, Effect):
      shown.setdefault(name, []).append(claim)
  if not shown:
    return None
  columns = _columns(shown)
  most = max(map(_height, columns))
  with drawing(9.2, max(LEAST, most) + 0.75) as figure:
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    reach = max(
      abs(place(x))
      for group in shown.values()
      for claim in group
      for x in in_margins(claim.effect)
    )
    for ax, column in zip(axes, columns, strict=True):
      _column(ax, column, most, 1.05 * max(reach, 2))
    figure.legend(
      handles=[_mark(v) for v in Verdict if v in _verdicts(shown)],
      loc="outside upper left",
      ncols=5,
      frameon=False,
      fontsize=8,
    )
    return png(figure)


def _verdicts(shown: Mapping[str, Sequence[Judged]]) -> set[Verdict]:
  return {claim.verdict for group in shown.values() for claim in group}


def _height(column: Mapping[str, Sequence[Judged]]) -> float:
  return sum(GAP + ROW * len(group) for group in column.values())


def _columns(shown: dict[str, list[Judged]]) -> list[dict[str, list[Judged]]]:
  """Experiments in two columns of about one height; one if there are few."""
  if len(shown) < 4:
    return [shown]
  left: dict[str, list[Judged]] = {}
  right = dict(shown)
  while _height(left) < _height(right):
    name = next(iter(right))
    left[name] = right.pop(name)
  return [left, right]


def _mark(verdict: Verdict) -> Any:
  from matplotlib.lines import Line2D

  color = COLORS[verdict]
  return Line2D([], [], color=color, marker="o", ms=4, label=str(verdict))


def _column(
  ax: Any, column: Mapping[str, Sequence[Judged]], most: float, reach: float
) -> None:
  """Experiments from the top; inches run down."""
  at, names = 0.0, []
  ax.axvspan(-1, 1, color=RULE, alpha=0.5, lw=0)
  ax.axvline(0, color=MUTED, lw=0.7)
  for name, group in column.items():
    at += GAP
    names.append((at + ROW * (len(group) - 1) / 2, name))
    for claim in group:
      value, low, high = map(place, in_margins(claim.effect))
      color = COLORS[claim.verdict]
      ax.plot([low, high], [at, at], color=color, lw=1.1)
      ax.plot([value], [at], "o", color=color, ms=2.6)
      at += ROW
  ax.set_yticks(*zip(*names, strict=True), fontsize=7.5)
  ax.tick_params(axis="y", length=0)
  ax.set_ylim(most + ROW, 0)
  ax.set_xlim(-reach, reach)
  marks = [x for x in (-100, -10, -1, 0, 1, 10, 100) if abs(place(x)) <= reach]
  ax.set_xticks([place(x) for x in marks], [f"{x:g}" for x in marks])
  ax.set_xlabel("effect in margins; right: as the claim says", fontsize=8)
  ax.spines["left"].set_visible(False)
