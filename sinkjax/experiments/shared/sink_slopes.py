"""What goes with the sink, over trained models that differ in it.

The slope of a quantity over the attention on the first token, by seed, with and
without the models that have learnt less than the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.effects import Effect, Expect, Unit
from sinkjax.experiments.harness.stats import mean, slopes
from sinkjax.experiments.shared.seed_effects import seed_effect

WORSE = 0.25
"""Nats above the lowest loss from which a model counts as a worse one, which
may mix or change little because it has learnt little. At cpu scale, variants
that train well are at most 0.2 nats above the lowest loss, all others at least
0.6."""

Row = Mapping[str, Any]
"""A variant: "first_mass", "loss" and "seeds", and other numbers by seed."""


class SinkSlope(NamedTuple):
  """A quantity over the sinks of the models that are no worse.

  Attributes:
    effect: its change from the strongest sink to the weakest, along the fitted
      line; `None` where no two models are left.
    provided: the same over all models, where some are worse.
    untested: why there is no effect.
    slope: [S] over all models, for each unit of attention.
    without: the slope without worse models, in words that follow the other's.
  """

  effect: Effect | None
  provided: tuple[Effect, ...]
  untested: str
  slope: np.ndarray
  without: str


def sink_slope(
  rows: Sequence[Row], key: str, what: str, unit: Unit, expect: Expect
) -> SinkSlope:
  """The change of `key` with weaker sinks.

  Args:
    rows: variants that have the number.
    key: of the number.
    what: it in words.
    unit: of the number.
    expect: of its change from the strongest sink to the weakest.
  """

  def change(some: Sequence[Row], of: str) -> Effect:
    masses = [float(np.mean(row["first_mass"])) for row in some]
    return seed_effect(
      -slopes(some, key) * (max(masses) - min(masses)),
      f"the change of {what} from the strongest sink to the weakest, {of}",
      unit,
      expect,
    )

  every = slopes(rows, key)
  losses = [float(np.mean(row["loss"])) for row in rows]
  sound = [
    row
    for row, loss in zip(rows, losses, strict=True)
    if loss <= min(losses) + WORSE
  ]
  all_models = f"of {len(rows)} variants"
  if len(sound) == len(rows):
    return SinkSlope(change(rows, all_models), (), "", every, "")
  names = ", ".join(row["variant"] for row in rows if row not in sound)
  found = slopes(sound, key)
  if len(found) < 2:
    reason = f"too few without {names}, worse models"
    return SinkSlope(None, (), reason, every, f"; {reason}")
  return SinkSlope(
    change(sound, f"of the {len(sound)} variants that are no worse,"),
    # A slope that changes with worse models is one that few models make.
    (change(rows, f"{all_models}, worse ones too,"),),
    "",
    every,
    f"; {mean(found, '+.3f')} without {names}, worse models",
  )
