"""Whether predicted and found sinks are worth more than the first tokens."""

import numpy as np

from sinkjax.experiments.applications.predicted_protection.experiment import (
  Policy,
)
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import NATS, Effect, Expect, effect
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2508.04257"
PAPER = "no number that was at hand"

NAMES = {
  Policy.FIRST: "the first tokens",
  Policy.PREDICTED: "tokens predicted by the states that make the sink",
  Policy.FOUND: "the sinks that are found",
  Policy.ATTENDED: "the tokens that receive the most attention",
  Policy.RANDOM: "random tokens",
}
"""In sentences."""


def claims(result: Result) -> list[Claim]:
  """What each way to choose is worth, at equal memory."""
  return [
    _first(result),
    _over(
      result, "predicted_over_first", Policy.PREDICTED, Policy.FIRST, SOURCE
    ),
    _over(result, "found_over_first", Policy.FOUND, Policy.FIRST, SOURCE),
    _over(
      result, "predicted_over_random", Policy.PREDICTED, Policy.RANDOM, SOURCE
    ),
    _over(result, "found_over_attended", Policy.FOUND, Policy.ATTENDED, "ours"),
    _one(result),
  ]


def _loss(
  result: Result, policy: Policy, count: int | None = None
) -> np.ndarray:
  """[n] loss with so many tokens kept; those of the claims by default."""
  config = result.config
  at = config.keep.index(config.claim_keep if count is None else count)
  values = result.arrays[f"loss, {policy}"][at].astype(float)
  return by_template(values, result.numbers)


def _whole(result: Result, name: str = "whole") -> np.ndarray:
  return by_template(result.arrays[name].astype(float), result.numbers)


def _rise(result: Result, values: np.ndarray) -> str:
  return mean_of(values - _whole(result)).text("+.3f")


def _how(result: Result) -> str:
  config = result.config
  steps = f"keys per {config.per}"
  if config.per == "channel":
    steps += f" in groups of {config.group} tokens"
  return (
    f"{config.bits} bits, {steps}, values per token; {config.claim_keep} of "
    f"{config.tokens} tokens kept"
  )


def _more(values: np.ndarray, what: str) -> Effect:
  return effect(values, what, NATS, Expect.MORE)


def _first(result: Result) -> Claim:
  none, first, other = (
    _whole(result, "nothing"),
    _loss(result, Policy.FIRST),
    _loss(result, Policy.RANDOM),
  )
  return Claim(
    id="first_lowers_loss",
    claim="Keeping the first tokens in full precision lowers the loss of "
    "few-bit keys and values.",
    source=SOURCE,
    paper=PAPER,
    ours=f"the loss rises by {_rise(result, none)} nats, with the first tokens "
    f"kept by {_rise(result, first)}, with as many random ones by "
    f"{_rise(result, other)}",
    effect=_more(
      none - first,
      "loss with nothing kept, less that with the first tokens kept",
    ),
    how=_how(result),
    provided=(
      _more(
        other - first,
        "loss with as many random tokens kept, less that with the first tokens "
        "kept",
      ),
    ),
  )


def _over(
  result: Result, id: str, policy: Policy, other: Policy, source: str
) -> Claim:
  mine, theirs = (_loss(result, x) for x in (policy, other))
  hits = result.numbers["hits"]
  at = result.config.keep.index(result.config.claim_keep)
  shares = " and ".join(
    f"{100 * hits[str(x)][at]:.0f} %" for x in (policy, other)
  )
  return Claim(
    id=id,
    claim=f"At equal memory, keeping {NAMES[policy]} in full precision loses "
    f"less than keeping {NAMES[other]}.",
    source=source,
    paper=PAPER if source == SOURCE else "no number",
    ours=f"the loss rises by {_rise(result, mine)} nats, against "
    f"{_rise(result, theirs)}; they hold {shares} of the sinks found",
    effect=_more(
      theirs - mine,
      f"loss with {NAMES[other]} kept, less that with {NAMES[policy]} kept",
    ),
    how=_how(result),
  )


def _one(result: Result) -> Claim:
  head = (
    "one_is_enough",
    "Keeping the first token alone loses no more than keeping many first "
    "tokens.",
    "ours",
    "no number",
  )
  few, many = min(result.config.keep), max(result.config.keep)
  if few == many:
    why = "one number of tokens was measured"
    return Claim(*head, "not measured", None, untested=why)
  one, all_of = (_loss(result, Policy.FIRST, n) for n in (few, many))
  return Claim(
    *head,
    f"the loss rises by {_rise(result, one)} nats with {few} kept, by "
    f"{_rise(result, all_of)} with {many}",
    effect(
      one - all_of,
      f"loss with the first {few} kept, less that with the first {many}",
      NATS,
      Expect.NOT_MORE,
    ),
    _how(result),
  )
