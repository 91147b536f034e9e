"""What a run could show: the smallest effect of each claim, before it is made.

From how much an effect varied between units in the recorded results, and from
how many claims share an experiment's chance of a wrong decision. The spreads
are in `spreads.json`, which docs/generate.py writes.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sinkjax.experiments.harness.effects import DECADES, LOG_RATIO, Effect
from sinkjax.experiments.harness.protocol import (
  ALPHA,
  POWER,
  Judged,
  smallest_effect,
)

FILE = pathlib.Path(__file__).with_name("spreads.json")

UNITS = (5, 8, 12, 16, 24, 48)
"""Numbers of units that a plan compares."""

LOGARITHMS = {LOG_RATIO.scale: math.e, DECADES.scale: 10.0}
"""Values that are logarithms are shown as factors."""


def spreads(
  runs: Mapping[str, Sequence[Sequence[Judged]]],
) -> dict[str, dict[str, dict[str, Any]]]:
  """{experiment: {claim: spread, unit, per, n}} of recorded claims.

  Args:
    runs: {experiment: the claims of each of its runs}. Of several runs the
      largest spread counts: a plan should not promise too much.
  """
  found: dict[str, dict[str, dict[str, Any]]] = {}
  for name, of in runs.items():
    for claim in (claim for claims in of for claim in claims):
      if not isinstance(claim.effect, Effect):
        continue
      one = _spread(claim.effect)
      if one["spread"] > 0:
        known = found.setdefault(name, {})
        old = known.get(claim.id)
        if old is None or old["spread"] < one["spread"]:
          known[claim.id] = one
  return found


def _spread(effect: Effect) -> dict[str, Any]:
  spread = effect.mean.error * math.sqrt(effect.n)
  return {
    # Three digits: a spread over a dozen units is known to a fifth of itself.
    "spread": float(f"{spread:.3g}"),
    "unit": effect.unit.scale,
    "per": effect.per,
    "n": effect.n,
  }


@functools.cache
def _recorded() -> dict[str, dict[str, dict[str, Any]]]:
  return json.loads(FILE.read_text("utf-8"))


def plan(name: str, units: int | None = None) -> list[str]:
  """Lines for --dry_run: what each claim of an experiment could show.

  Args:
    name: of the experiment.
    units: that the run will have, where the config says so; else the numbers
      of the recorded runs are shown beside others.
  """
  known = _recorded().get(name, {})
  if not known:
    return []
  family = len(known)
  counts = UNITS if units is None else tuple(sorted({units, *UNITS}))
  width = max(map(len, known))
  lines = [
    f"smallest effect that is found with a power of {100 * POWER:.0f} %, by "
    f"units of replication, at {100 * ALPHA:g} % over {family} claims "
    "(paired t test, Holm; from the spreads of recorded runs):",
    f"  {'':{width}}" + "".join(f"{f'n={n}':>9}" for n in counts),
  ]
  for id, one in known.items():
    cells = "".join(f"{_cell(one, n, family):>9}" for n in counts)
    lines.append(f"  {id:{width}}{cells}  {_unit(one)}")
  if units is not None:
    lines.append(f"this run: n={units}")
  return lines


def _cell(one: Mapping[str, Any], n: int, family: int) -> str:
  least = smallest_effect(one["spread"], n, family)
  base = LOGARITHMS.get(one["unit"])
  if math.isinf(least):
    return "-"
  return f"{least:.3g}" if base is None else f"{base**least:.3g}"


def _unit(one: Mapping[str, Any]) -> str:
  unit = "times" if one["unit"] in LOGARITHMS else one["unit"]
  return f"{unit}, per {one['per']}"
