"""Slopes of what theory ties to sinks, over the sinks of trained models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  Claim,
  Result,
)
from sinkjax.experiments.harness.stats import decided, mean, slopes

WORSE = 0.25
"""Nats above the lowest loss of its experiment from which a model counts as a
worse one, which may mix little because it has learnt little. At cpu scale,
variants that train well are at most 0.2 nats above the lowest loss, all others
at least 0.6."""

SET = "sink_regulariser"
"""The experiment in which nothing but the sink was set: if a model is worse
there, its sink is the reason."""

Row = Mapping[str, Any]
"""A variant in one form: an entry of `numbers["rows"]`."""


class Quantity(NamedTuple):
  """What theory ties to sinks.

  Attributes:
    key: of a row.
    sign: of its slope over the sink, according to the theory.
    id: of the claim, before the experiment's name.
    words: what weaker sinks go with.
    unit: of the slope.
  """

  key: str
  sign: int
  id: str
  words: str
  unit: str


QUANTITIES = (
  Quantity(
    "mixing_rest",
    -1,
    "weaker_sinks_more_mixing",
    "mix tokens more",
    "share of the squared Jacobian",
  ),
  Quantity(
    "bound_paper",
    -1,
    "weaker_sinks_larger_bound",
    "have a larger over-squashing bound",
    "decades of the paper's bound",
  ),
  Quantity(
    "spread",
    -1,
    "weaker_sinks_more_spread",
    "let a change spread further",
    "relative change",
  ),
  Quantity(
    "rank",
    1,
    "weaker_sinks_nearer_collapse",
    "are closer to rank collapse",
    "of the greatest effective rank",
  ),
)


def as_trained(rows: Sequence[Row]) -> list[Row]:
  """For each variant the row that reads texts as in training: its first."""
  kept: dict[tuple[str, str], Row] = {}
  for row in rows:
    kept.setdefault((row["experiment"], row["variant"]), row)
  return list(kept.values())


def claims(result: Result) -> list[Claim]:
  """Over the models of each experiment, read as in training."""
  rows = as_trained(result.numbers["rows"])
  found = []
  for experiment in dict.fromkeys(row["experiment"] for row in rows):
    some = [row for row in rows if row["experiment"] == experiment]
    for quantity in QUANTITIES:
      if len(slopes(some, quantity.key)) > 1:
        found.append(_slope_claim(some, quantity, experiment))
  return found + _bound_claim(rows)


def _slope_claim(
  rows: Sequence[Row], quantity: Quantity, experiment: str
) -> Claim:
  """That a quantity falls or grows with the sink, as the theory has it."""
  values = slopes(rows, quantity.key)
  known = [row for row in rows if None not in row[quantity.key]]
  masses = [float(np.mean(row["first_mass"])) for row in known]
  verdict, without_worse, why = _decided(known, quantity)
  return Claim(
    id=f"{quantity.id}_{experiment}",
    claim=f"Among the models of {experiment}, those with weaker sinks "
    f"{quantity.words}.",
    source="theorem 3.2, section 3",
    paper="no number; the argument of the paper",
    ours=f"{mean(values, '+.3f')} {quantity.unit} for each unit of attention "
    f"on the first token, over {len(known)} variants with {min(masses):.3f} to "
    f"{max(masses):.3f}{without_worse}",
    verdict=verdict,
    why=f"95 % interval over {len(values)} seeds; {why}",
  )


def _decided(rows: Sequence[Row], quantity: Quantity) -> tuple[str, str, str]:
  """(verdict over rows of one experiment, slope without worse models, why).

  A slope that changes without the models that are more than `WORSE` nats worse
  decides nothing, except where the sink is what was set.
  """
  losses = [float(np.mean(row["loss"])) for row in rows]
  verdict = decided(quantity.sign * slopes(rows, quantity.key))
  if rows[0]["experiment"] == SET:
    cost = f"{max(losses) - min(losses):.2f}"
    return verdict, "", f"the sink was set, at a cost of up to {cost} nats"
  sound = [
    row
    for row, loss in zip(rows, losses, strict=True)
    if loss <= min(losses) + WORSE
  ]
  why = "variants differ in more than the sink"
  if len(sound) == len(rows):
    return verdict, "", why
  names = ", ".join(row["variant"] for row in rows if row not in sound)
  values = slopes(sound, quantity.key)
  if len(values) < 2:
    return UNDECIDED, f"; too few without {names}, worse models", why
  if decided(quantity.sign * values) != verdict:
    verdict = UNDECIDED
  return verdict, f"; {mean(values, '+.3f')} without {names}, worse models", why


def _bound_claim(rows: Sequence[Row]) -> list[Claim]:
  """That no pair of tokens exceeds the bound, if it covers any model."""
  covered = [row for row in rows if None not in row["violated"]]
  if not covered:
    return []
  over = sum(sum(row["violated"]) for row in covered)
  loose = np.mean([row["loose"] for row in covered])
  return [
    Claim(
      id="full_bound_holds",
      claim="The over-squashing bound with the derivative of the softmax holds "
      "in every trained model that it covers.",
      source="theorem 3.2",
      paper="a theorem",
      ours=f"{over:.0f} pairs of tokens exceed it, in {len(covered)} of "
      f"{len(rows)} variants; on average it is {loose:.1f} decades above the "
      "exact norm",
      verdict=DISAGREES if over else AGREES,
      why="one text, every pair and seed",
    )
  ]
