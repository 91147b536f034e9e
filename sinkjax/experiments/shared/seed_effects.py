"""Effects of models that were trained alike: one paired value a training seed.

A worse model has weaker sinks, smaller activations and predictions that change
less, whatever made it worse. Wherever a claim says that one of two models has
less of something, that model must be no worse: `no_worse` is that condition.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.effects import (
  NATS,
  Effect,
  Expect,
  Unit,
  effect,
)

SEED = "training seed"
"""What is independent: parameters and order of the data are drawn by it."""


def seed_effect(
  values: np.ndarray, what: str, unit: Unit, expect: Expect, **more: Any
) -> Effect:
  """An `effect` of values [S], one a seed."""
  return effect(values, what, unit, expect, per=SEED, **more)


def no_worse(
  loss: np.ndarray, other: np.ndarray, name: str, than: str
) -> Effect:
  """That a model's loss [S] is above another's by less than the margin."""
  what = f"the loss of {name}, less that of {than},"
  return seed_effect(loss - other, what, NATS, Expect.NOT_MORE)


class Trend(NamedTuple):
  """A quantity over the sizes of models, by seed.

  Attributes:
    slope: [S] for each doubling of the size.
    doublings: between the smallest and the largest size of one group.
  """

  slope: np.ndarray
  doublings: float

  @property
  def change(self) -> np.ndarray:
    """[S] between these two sizes, along the fitted line."""
    return self.slope * self.doublings


def trend(
  values: np.ndarray,
  sizes: Sequence[float] | np.ndarray,
  groups: Sequence[Any] | None = None,
) -> Trend:
  """The least-squares slope of values [S, N] over log2 of sizes [N].

  Args:
    values: by seed and model.
    sizes: of the models.
    groups: of the models; each has an intercept of its own, and all share the
      slope. One group if `None`.

  Raises:
    ValueError: where no group has two sizes.

  >>> trend(np.array([[1.0, 1.5, 2.0]]), [1, 2, 4]).slope.tolist()
  [0.5]
  """
  x, y = np.log2(np.asarray(sizes, float)), np.array(values, float)
  of = np.asarray([0] * len(x) if groups is None else list(groups))
  doublings = 0.0
  for group in np.unique(of):
    at = of == group
    doublings = max(doublings, float(np.ptp(x[at])))
    # Centred by group, the slope does not depend on the intercepts.
    x[at] -= x[at].mean()
    y[:, at] -= y[:, at].mean(axis=1, keepdims=True)
  if not doublings:
    raise ValueError("a trend needs two sizes in one group")
  return Trend(y @ x / (x @ x), doublings)
