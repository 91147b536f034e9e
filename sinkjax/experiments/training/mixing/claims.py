"""Slopes of what theory ties to sinks, over the sinks of trained models."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  COSINE,
  DECADES,
  SHARE,
  Count,
  Expect,
  Unit,
)
from sinkjax.experiments.harness.stats import mean, slopes
from sinkjax.experiments.shared.sink_slopes import Row, sink_slope

SET = "sink_regulariser"
"""The experiment in which nothing but the sink was set."""

NOT_COVERED = {("attention_variants", "kv_bias", "bound_paper")}
"""(experiment, variant, key) of bounds that bound nothing, see
`analysis.over_squashing.uncovered`. Results recorded earlier have a number
there."""

CHANGE = Unit(
  "of a token's norm", "norm of a change over the token's", 0.02, "+.3f"
)
"""A change of 0.02 of a token's norm turns the token by one degree at most."""


class Quantity(NamedTuple):
  """What theory ties to sinks.

  Attributes:
    key: of a row.
    expect: of its change from the strongest sink to the weakest, according to
      the theory.
    id: of the claim, before the experiment's name.
    words: what weaker sinks go with.
    of_slope: the unit of the slope, in words.
    what: the quantity, in words.
    unit: of the quantity.
  """

  key: str
  expect: Expect
  id: str
  words: str
  of_slope: str
  what: str
  unit: Unit


QUANTITIES = (
  Quantity(
    "mixing_rest",
    Expect.MORE,
    "weaker_sinks_more_mixing",
    "mix tokens more",
    "share of the squared Jacobian",
    "the share of the squared Jacobian between tokens",
    SHARE,
  ),
  Quantity(
    "bound_paper",
    Expect.MORE,
    "weaker_sinks_larger_bound",
    "have a larger over-squashing bound",
    "decades of the paper's bound",
    "the paper's bound",
    DECADES,
  ),
  Quantity(
    "spread",
    Expect.MORE,
    "weaker_sinks_more_spread",
    "let a change spread further",
    "relative change",
    "the relative change of later tokens",
    CHANGE,
  ),
  Quantity(
    "rank",
    Expect.LESS,
    "weaker_sinks_nearer_collapse",
    "are closer to rank collapse",
    "of the greatest effective rank",
    "the effective rank over its maximum",
    COSINE,
  ),
)


def as_trained(rows: Sequence[Row]) -> list[Row]:
  """For each variant the row that reads texts as in training: its first."""
  kept: dict[tuple[str, str], Row] = {}
  for row in rows:
    # Two experiments may have variants of one name.
    kept.setdefault((row["experiment"], row["variant"]), row)
  return list(kept.values())


def claims(result: Result) -> list[Claim]:
  """Over the models of each experiment, read as in training."""
  rows = as_trained(result.numbers["rows"])
  found = []
  for experiment in dict.fromkeys(row["experiment"] for row in rows):
    some = [row for row in rows if row["experiment"] == experiment]
    for quantity in QUANTITIES:
      known = [row for row in some if _is_known(row, quantity.key)]
      # An interval needs two seeds.
      if len(slopes(known, quantity.key)) > 1:
        found.append(_slope_claim(known, quantity, experiment))
  return found + _bound_claim(rows, result.numbers["tokens"])


def _is_known(row: Row, key: str) -> bool:
  """Whether a row has a number that means something."""
  # Bounds are missing for models without a softmax or with gates.
  named = row["experiment"], row["variant"], key
  return None not in row[key] and named not in NOT_COVERED


def _slope_claim(
  rows: Sequence[Row], quantity: Quantity, experiment: str
) -> Claim:
  """That a quantity falls or grows with the sink, as the theory has it."""
  masses = [float(np.mean(row["first_mass"])) for row in rows]
  losses = [float(np.mean(row["loss"])) for row in rows]
  found = sink_slope(
    rows, quantity.key, quantity.what, quantity.unit, quantity.expect
  )
  how = "a line is fitted over the variants of each seed; " + (
    f"the sink was set, at a cost of up to {max(losses) - min(losses):.2f} nats"
    if experiment == SET
    else "variants differ in more than the sink"
  )
  return Claim(
    id=f"{quantity.id}_{experiment}",
    claim=f"Among the models of {experiment}, those with weaker sinks "
    f"{quantity.words}.",
    source="theorem 3.2, section 3",
    paper="no number; the argument of the paper",
    ours=f"{mean(found.slope, '+.3f')} {quantity.of_slope} for each unit of "
    f"attention on the first token, over {len(rows)} variants with "
    f"{min(masses):.3f} to {max(masses):.3f}{found.without}",
    effect=found.effect,
    how=how,
    provided=found.provided,
    untested=found.untested,
  )


def _bound_claim(rows: Sequence[Row], tokens: int) -> list[Claim]:
  """That no pair of tokens exceeds the bound, if it covers any model."""
  covered = [row for row in rows if None not in row["violated"]]
  if not covered:
    return []
  over = sum(sum(row["violated"]) for row in covered)
  models = sum(len(row["violated"]) for row in covered)
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
      effect=Count(
        "pairs of tokens exceed the bound",
        int(over),
        # A causal Jacobian has blocks on the diagonal and below it.
        models * tokens * (tokens + 1) // 2,
      ),
      how="one text, every pair of tokens and every seed",
    )
  ]
