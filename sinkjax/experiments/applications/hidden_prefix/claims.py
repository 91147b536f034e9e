"""What a prefix takes off the text, and what that is worth."""

import numpy as np

from sinkjax.experiments.applications.hidden_prefix.experiment import Condition
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  SHARE,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import format_ratio, mean_of
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2406.12016"
PAPER = "no number that was at hand"


def claims(result: Result) -> list[Claim]:
  """Ranges, sinks, the cost of rounding, and what the search is worth."""
  return [
    _ranges(result),
    _sinks(result),
    _bits(result),
    _search(result),
    _loss(result),
  ]


def _of(result: Result, what: str, condition: Condition) -> np.ndarray:
  return by_template(result.arrays[f"{what}, {condition}"], result.numbers)


def _named(result: Result) -> str:
  """The prefix in words: its ids, since its text may be unprintable."""
  ids = result.numbers["prefix"][Condition.FOUND]
  return f"{len(ids)} token{'s' * (len(ids) > 1)} {ids}"


def _nats(values: np.ndarray, form: str = "+.3f") -> str:
  return mean_of(values).text(form, " nats")


def _ranges(result: Result) -> Claim:
  none, found, random = (
    _of(result, "range", x)
    for x in (Condition.NONE, Condition.FOUND, Condition.RANDOM)
  )
  return Claim(
    id="prefix_takes_ranges",
    claim="A prefix found greedily makes the largest activations of the text "
    "smaller.",
    source=SOURCE,
    paper=PAPER,
    ours=f"the largest inputs of projections are "
    f"{format_ratio(mean_of(none - found))} as large without {_named(result)}, "
    f"and {format_ratio(mean_of(random - found))} as large behind "
    "random tokens",
    effect=effect(
      none - found,
      "largest activation of the text without a prefix, over that with it, "
      "mean of logarithms over layers and inputs",
      LOG_RATIO,
      Expect.MORE,
    ),
    how="searched on other texts; the prefix's own activations do not count",
  )


def _sinks(result: Result) -> Claim:
  none, own, first = (
    _of(result, what, condition)
    for what, condition in (
      ("own_rate", Condition.NONE),
      ("own_rate", Condition.FOUND),
      ("first_rate", Condition.FOUND),
    )
  )
  shown = [mean_of(x).scaled(100).text(".1f", " %") for x in (none, own, first)]
  return Claim(
    id="prefix_takes_the_sink",
    claim="Behind a prefix, the text's own first token is the sink of fewer "
    "heads.",
    source=SOURCE,
    paper="no number",
    ours=f"sink rate of the text's first token {shown[0]} without a prefix, "
    f"{shown[1]} behind it; of the prefix's {shown[2]}",
    effect=effect(
      own - none,
      "sink rate of the text's first token behind the prefix, less that "
      "without",
      SHARE,
      Expect.LESS,
    ),
    how=f"heads with a mean attention above {result.config.eps:g}",
  )


def _bits(result: Result) -> Claim:
  none, found, kept = (
    _of(result, "rounded", x)
    for x in (Condition.NONE, Condition.FOUND, Condition.KEPT)
  )
  bits, more = result.config.bits, ""
  # A tokenizer may have no BOS.
  if f"rounded, {Condition.BOS}" in result.arrays:
    more = f", behind BOS {_nats(_of(result, 'rounded', Condition.BOS))}"
  return Claim(
    id="prefix_lowers_cost_of_bits",
    claim="A prefix found greedily lowers the loss that rounding weights and "
    "activations to a few bits adds.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{bits} bits add {_nats(none)} without a prefix, {_nats(found)} "
    f"behind {_named(result)}, {_nats(kept)} without one but with the first "
    f"token unrounded{more}",
    effect=effect(
      none - found,
      f"loss that {bits} bits add without a prefix, less what they add behind "
      "it",
      NATS,
      Expect.MORE,
    ),
    how="one static range a tensor, set on other texts; the prefix is not "
    "rounded",
  )


def _search(result: Result) -> Claim:
  found, random = (
    _of(result, "rounded", x) for x in (Condition.FOUND, Condition.RANDOM)
  )
  return Claim(
    id="search_beats_random",
    claim="A prefix found greedily lowers the cost of rounding more than as "
    "many random tokens.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{result.config.bits} bits add {_nats(random)} behind random tokens, "
    f"{_nats(found)} behind the found ones",
    effect=effect(
      random - found,
      "loss that rounding adds behind random tokens, less what it adds behind "
      "the found prefix",
      NATS,
      Expect.MORE,
    ),
  )


def _loss(result: Result) -> Claim:
  none, found = (
    _of(result, "loss", x) for x in (Condition.NONE, Condition.FOUND)
  )
  return Claim(
    id="prefix_keeps_loss",
    claim="Without rounding, a model predicts a text no worse behind the "
    "prefix.",
    source=SOURCE,
    paper=PAPER,
    ours=f"the loss changes by {_nats(found - none)}",
    effect=effect(
      found - none,
      "loss of the text behind the prefix, less that without one",
      NATS,
      Expect.NOT_MORE,
    ),
    how="tokens after the text's first",
  )
