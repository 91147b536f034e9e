"""Whether there are no-op heads, and what they read."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.paper.noop_heads.kinds import BROADCAST, NOOP, Kind

FIGURE = "section 3.2, figure 4"

RARE = 0.01
"""A kind of sinks has to make up more than this share of them, which is two
heads of SmolLM2-135M."""


def claims(result: Result) -> list[Claim]:
  """The heads, their values while dormant and active, and kinds of sinks."""
  numbers = result.numbers
  return [
    _heads(result),
    _value(
      numbers,
      "sink_ratio",
      id="dormant_value_small",
      claim="A no-op head reads a value of small norm while it is dormant.",
      sign=-1,
    ),
    _value(
      numbers,
      "acted_ratio",
      id="active_value_large",
      claim="A no-op head reads a value of large norm when it is active.",
      sign=1,
    ),
    _kinds(result),
  ]


def _mean(numbers: Mapping[str, Any], name: str) -> Mean | None:
  """A stored mean; `None` where there was nothing to average."""
  return None if numbers[name] is None else Mean.read(numbers[name])


def _heads(result: Result) -> Claim:
  numbers, conditions = result.numbers, result.numbers["conditions"]
  auroc = _mean(numbers, "auroc")
  if auroc is None:
    ours, verdict = f"none of {numbers['heads']} heads", DISAGREES
  else:
    best, *_ = drawn = numbers["drawn"]
    ours = (
      f"{numbers['found']} of {numbers['heads']} heads; for the best "
      f"{len(drawn)} the trigger predicts active queries with AUROC "
      f"{auroc.text('.3f')}; the best is layer {best['layer']} head "
      f"{best['head']} by {best['trigger']}"
    )
    # Chance is 0.5.
    verdict = direction(auroc.low - 0.5, auroc.high - 0.5)
  return Claim(
    id="heads_with_trigger",
    claim="Some heads act on a trigger and otherwise attend to the first "
    "token.",
    source=FIGURE,
    paper="one head in the first layers of Gemma 7B, whose trigger is an "
    "apostrophe as the previous token",
    ours=ours,
    verdict=verdict,
    why=f"a head counts if at least {100 * conditions['resting'][0]:g} % of "
    "its queries are dormant and a trigger predicts the active ones with AUROC "
    f"{conditions['auroc']:g} on the texts that choose it; agrees above 0.5, "
    "chance, on held-out texts",
  )


def _value(
  numbers: Mapping[str, Any], name: str, *, id: str, claim: str, sign: int
) -> Claim:
  """A claim that a ratio of norms is above 1, or, by its sign, below."""
  mean = _mean(numbers, name)
  ours, verdict = "no such head", UNTESTED
  if mean is not None:
    ours = f"{mean.text('.2f')} times the mean norm of the other tokens' values"
    verdict = direction(*sorted(sign * (x - 1) for x in (mean.low, mean.high)))
  return Claim(
    id=id,
    claim=claim,
    source=FIGURE,
    paper="no number: a bar chart",
    ours=ours,
    verdict=verdict,
    why=f"{numbers['found']} heads, held-out texts; agrees "
    f"{'above' if sign > 0 else 'below'} 1",
  )


def _kinds(result: Result) -> Claim:
  numbers = result.numbers
  noop, broadcast = _mean(numbers, Kind.NOOP), _mean(numbers, Kind.BROADCAST)
  ours, verdict = "no sinks", UNTESTED
  if noop is not None and broadcast is not None:
    small, large = (
      mean.scaled(100).text(".1f", " %") for mean in (noop, broadcast)
    )
    ranks = ", ".join(
      f"{numbers['stable_rank'][kind]:.2f} ({kind})"
      for kind in (Kind.NOOP, Kind.BROADCAST)
      if numbers["stable_rank"][kind] is not None
    )
    ours = (
      f"{small} of the sinks are no-op, {large} have a ratio above "
      f"{BROADCAST:g}; stable rank of the update {ranks}"
    )
    verdict = AGREES if min(noop.low, broadcast.low) > RARE else DISAGREES
  return Claim(
    id="two_kinds_of_sinks",
    claim="Sinks are of two kinds: no-op, of small value, and broadcast.",
    source="2606.08105",
    paper=f"value ratio below {NOOP:g} (no-op) and about 1 (broadcast)",
    ours=ours,
    verdict=verdict,
    why=f"heads with a sink score above {result.config.eps:g}; agrees if each "
    f"kind is more than {100 * RARE:g} % of the sinks",
  )
