"""Verdicts over seeds: a mean, its interval, and what they say."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sinkjax.experiments.result import AGREES, UNDECIDED, Claim, direction
from sinkjax.experiments.uncertainty import mean_over


def compare(
  claim: str,
  source: str,
  paper: str,
  values: Sequence[float] | np.ndarray,
  ours: str,
  *,
  against: float = 0.0,
) -> Claim:
  """A claim that holds where `values`, one a seed, are above a number.

  Raises:
    ValueError: for fewer than two seeds.
  """
  off = np.asarray(values, float) - against
  return Claim(
    claim, source, paper, ours, decided(off),
    f"95 % interval over {len(off)} seeds",
  )  # fmt: skip


def decided(values: Sequence[float] | np.ndarray) -> str:
  """The verdict on values, one a seed, that should be above zero."""
  interval = mean_over(values, range(len(values)))
  return direction(interval.low, interval.high)


def unless_worse(
  claim: Claim, cost: Sequence[float] | np.ndarray, why: str
) -> Claim:
  """A claim of a model, undecided if it holds for a worse model.

  Args:
    claim: of `compare`.
    cost: how much worse the model's loss is, in nats, one a seed.
    why: what else a worse model explains.
  """
  if claim.verdict != AGREES or mean_over(cost, range(len(cost))).low <= 0:
    return claim
  return dataclasses.replace(
    claim, verdict=UNDECIDED, why=f"{claim.why}; {why}"
  )


def mean(values: Sequence[float] | np.ndarray, form: str = ".3f") -> str:
  """'mean (low to high)' over seeds.

  >>> mean([1.0, 1.0, 1.0], ".1f")
  '1.0 (1.0 to 1.0)'
  """
  return mean_over(values, range(len(values))).text(form)
