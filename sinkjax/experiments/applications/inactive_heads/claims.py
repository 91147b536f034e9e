"""How many heads are inactive, and which scores find them."""

import numpy as np

from sinkjax.experiments.applications.inactive_heads.experiment import (
  GRADED,
  RANDOM,
  WHOLE,
)
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  RELATIVE,
  SHARE,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.shared.share_at import LIMIT
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2504.03889, version 4"

BEST, FIRST = GRADED
"""The score that the source finds to be the most consistent, the norm of a
head's output normalised by layer; and its first."""

POINT = 0.01
"""Of accuracy: the one per cent of the source, as percentage points."""

MISSED = 0.07
"""Share of heads that the source says attention on the first token fails to
find."""


def claims(result: Result) -> list[Claim]:
  """How many can go, by which score, at zero or at the mean."""
  return [
    _accuracy(result),
    *_choice(result),
    _loss(result),
    _better(
      result,
      RANDOM,
      "inactive_over_random",
      "Removing the heads of the least output norm raises the loss less than "
      "removing random heads.",
      "no number that was at hand",
    ),
    _better(
      result,
      FIRST,
      "norm_over_first_weight",
      "The norm of its output tells better than attention on the first token "
      "which head can be removed.",
      "output norms identify inactive heads consistently across 3 families",
    ),
    _missed(result),
    _mean(result),
  ]


def _at(result: Result, what: str, name: str, output: str = "zero"):
  """[n] relative changes at the share that the claims are about."""
  at = list(result.config.shares).index(result.config.share)
  values = result.arrays[f"{what}, {name}, {output}"][at]
  return by_template(values, result.numbers)


def _percent(values: np.ndarray) -> str:
  return mean_of(values).scaled(100).text("+.2f", " %")


def _share_at(result: Result, name: str, output: str = "zero") -> str:
  one = result.numbers["share_at_one_percent"][f"{name}, {output}"]
  ends = [100 * one[x] for x in ("value", "low", "high")]
  more = "" if one["passes"] else "at least "
  return f"{more}{ends[0]:.1f} ({ends[1]:.1f} to {ends[2]:.1f}) %"


def _relative(
  values: np.ndarray, what: str, expect: Expect, margin: float | None = None
) -> Effect:
  return effect(values, what, RELATIVE, expect, margin=margin)


def _removed(result: Result) -> str:
  return f"{100 * result.config.share:.0f} % of heads"


def _accuracy(result: Result) -> Claim:
  right = _at(result, "right", BEST)
  return Claim(
    id="twelve_percent_inactive",
    claim="More than 12 % of heads can be ablated within 1 % of the accuracy.",
    source=SOURCE,
    paper="more than 12 % on average of 14 models, MMLU",
    ours=f"with {_removed(result)} of the least output norm in their layer set "
    f"to zero, the number of correct next tokens changes by {_percent(right)}",
    effect=_relative(
      right,
      f"the number of correct next tokens with {_removed(result)} set to zero, "
      "less that of the whole model",
      Expect.NOT_LESS,
      LIMIT,
    ),
    how="the same heads in every text, chosen on others; next tokens in place "
    "of MMLU",
  )


def _choice(result: Result) -> list[Claim]:
  """None where a file was recorded before items were asked."""
  if "items" not in result.numbers:
    return []
  head = (
    "twelve_percent_of_choice",
    "More than 12 % of heads can be ablated at a loss of at most one "
    "percentage point of multiple-choice accuracy.",
    SOURCE,
    "more than 12 % within 1 % of MMLU accuracy",
  )
  if "chance" not in result.arrays:
    return [Claim(*head, "not measured", None, untested="no items were asked")]
  right = {
    name: result.arrays[f"answered, {name}"].astype(float)
    for name in (WHOLE, BEST, FIRST, RANDOM)
  }
  shown = {
    name: mean_of(x).scaled(100).text(".1f", " %") for name, x in right.items()
  }
  claim = Claim(
    *head,
    f"accuracy {shown[WHOLE]}, with {_removed(result)} of the least output "
    f"norm in their layer set to zero {shown[BEST]}, by {FIRST} "
    f"{shown[FIRST]}, at random {shown[RANDOM]}; chance "
    f"{100 * result.arrays['chance'].mean():.1f} %",
    effect(
      right[BEST] - right[WHOLE],
      f"share of items answered rightly with {_removed(result)} set to zero, "
      "less that of the whole model",
      SHARE,
      Expect.NOT_LESS,
      per="item",
      margin=POINT,
    ),
    how="four tasks of BIG-bench in place of MMLU",
  )
  return [claim]


def _loss(result: Result) -> Claim:
  values = _at(result, "loss", BEST)
  every = {
    name.removesuffix(", zero"): one["value"]
    for name, one in result.numbers["share_at_one_percent"].items()
    if name.endswith(", zero")
  }
  best = max(every, key=every.get)
  return Claim(
    id="twelve_percent_of_loss",
    claim="More than 12 % of heads can be ablated within 1 % of the loss.",
    source=SOURCE,
    paper="more than 12 % within 1 % of MMLU accuracy",
    ours=f"with {_removed(result)} set to zero the loss changes by "
    f"{_percent(values)}; heads at which it has risen by +1 %: "
    f"{_share_at(result, BEST)}, in the order of {best} "
    f"{_share_at(result, best)}, of {FIRST} {_share_at(result, FIRST)}, at "
    f"random {_share_at(result, RANDOM)}",
    effect=_relative(
      values,
      f"the loss with {_removed(result)} of the least output norm set to zero, "
      "less that of the whole model",
      Expect.NOT_MORE,
      LIMIT,
    ),
  )


def _better(
  result: Result, other: str, id: str, sentence: str, paper: str
) -> Claim:
  own, theirs = (_at(result, "loss", name) for name in (BEST, other))
  order = "at random" if other == RANDOM else f"by {other}"
  return Claim(
    id,
    sentence,
    SOURCE,
    paper,
    f"with {_removed(result)} set to zero the loss changes by {_percent(own)}, "
    f"chosen {order} by {_percent(theirs)}",
    _relative(
      theirs - own,
      f"the loss with {_removed(result)} removed {order}, less that with those "
      "of the least output norm",
      Expect.MORE,
    ),
  )


def _missed(result: Result) -> Claim:
  values = by_template(
    result.arrays[f"missed, {BEST}"],
    {"templates": result.numbers["rank_templates"]},
  )
  return Claim(
    id="first_weight_misses",
    claim="Attention on the first token fails to find more than 7 % of heads "
    "that their output norm finds.",
    source=SOURCE,
    paper="more than 7 % of inactive heads on average",
    ours=f"of the {_removed(result)} that each score picks in a text, "
    f"{_percent(values)} of all heads have a small output norm and no large "
    "attention on the first token",
    effect=effect(
      values - MISSED,
      "share of heads that the output norm picks in a text and attention on "
      "the first token does not, less 7 %",
      SHARE,
      Expect.MORE,
    ),
    how="both pick as many; 7 % of all heads, as we read the source",
  )


def _mean(result: Result) -> Claim:
  zero, mean = (_at(result, "loss", BEST, x) for x in ("zero", "mean"))
  return Claim(
    id="mean_costs_less",
    claim="Heads set to their mean output cost less than heads set to zero.",
    source="ours",
    paper="no number",
    ours=f"with {_removed(result)} set to their mean the loss changes by "
    f"{_percent(mean)}, to zero by {_percent(zero)}; heads at which it has "
    f"risen by +1 % at the mean: {_share_at(result, BEST, 'mean')}",
    effect=_relative(
      zero - mean,
      f"the loss with {_removed(result)} set to zero, less that with them set "
      "to their mean",
      Expect.MORE,
    ),
    how="means over the texts that rank",
  )
