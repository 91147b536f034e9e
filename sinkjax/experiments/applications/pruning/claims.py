"""The claims about removing and skipping dormant heads."""

from typing import Any

import numpy as np

from sinkjax.experiments.applications.pruning.config import (
  UNROLLED,
  Ranking,
  Skip,
  without,
)
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  RELATIVE,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, mean_of
from sinkjax.experiments.shared.share_at import LIMIT
from sinkjax.experiments.shared.text_batches import by_template, with_units

FEW, MORE = 0.04, 0.14
"""Shares of heads that the first version of arXiv 2504.03889 sets to zero. The
fourth has other scores and another number, see `inactive_heads`."""

EQUAL, WITHIN = 0.005, RELATIVE.margin
"""Relative falls of the accuracy up to which it counts as equal, and as within
one per cent; the paper gives no number for "equal", so half of the other."""

THRESHOLD = 0.9
"""The weight on the first token above which skipped queries are compared: what
is skipped has a tenth of a row's weight at most."""


def claims(result: Result) -> list[Claim]:
  """Heads removed, heads skipped at single queries, time."""
  found = [
    _accuracy(result, FEW, EQUAL),
    _accuracy(result, MORE, WITHIN),
    _better_than(result, Ranking.RANDOM),
    _better_than(result, Ranking.WEIGHTS),
    skip_dormant(result),
    predict_dormant(result),
    _faster(result),
  ]
  return with_units(found, result.numbers)


def _loss(result: Result, ranking: Ranking, at: int) -> np.ndarray:
  """[P] loss increase with heads set to zero, at a share by its number."""
  return result.arrays[f"loss, {ranking}, zero"][at]


def _over_texts(
  result: Result,
  values: np.ndarray,
  what: str,
  expect: Expect,
  margin: float | None = None,
) -> Effect:
  """An effect of relative changes [P], over independent texts."""
  values = by_template(values, result.numbers)
  return effect(values, what, RELATIVE, expect, margin=margin)


def _percent(values: np.ndarray | Mean, form: str = "+.2f") -> str:
  mean = values if isinstance(values, Mean) else mean_of(values)
  return mean.scaled(100).text(form, " %")


def share_text(one: dict[str, Any], least: float = 0.0) -> str:
  """A share of `share_at` in words; nothing is known below the `least`."""
  if one["value"] < least:
    return f"less than {100 * least:g} %"
  ends = [100 * one[x] for x in ("value", "low", "high")]
  more = "" if one["passes"] else "at least "
  return f"{more}{ends[0]:.1f} ({ends[1]:.1f} to {ends[2]:.1f}) %"


def _accuracy(result: Result, share: float, allowed: float) -> Claim:
  """Dormant heads set to zero, judged by correct next tokens."""
  how = "at equal accuracy"
  paper = "more than 4 %, five benchmarks (version 1; not in version 4)"
  if allowed == WITHIN:
    how = "within 1 % of the accuracy"
    paper = (
      "more than 14 %, five benchmarks (version 1); more than 12 %, MMLU "
      "(version 4)"
    )
  head = (
    f"remove_{100 * share:.0f}_percent",
    f"More than {100 * share:.0f} % of heads, the same ones in every text, can "
    f"be set to zero {how}.",
    "2504.03889",
    paper,
  )
  shares = list(result.config.shares)
  if share not in shares:
    why = f"the share {share} is not in the config"
    return Claim(*head, "not measured", None, untested=why)
  at = shares.index(share)
  right = result.arrays[f"right, {Ranking.DORMANT}, zero"][at]
  loss = _percent(_loss(result, Ranking.DORMANT, at))
  return Claim(
    *head,
    f"with the {100 * share:.0f} % of heads of the least output norm relative "
    "to their layer set to zero, the number of correct next tokens changes by "
    f"{_percent(right)} and the loss by {loss}",
    _over_texts(
      result,
      right,
      "the number of correct next tokens with "
      f"{100 * share:.0f} % of heads set to zero, less that of the whole model",
      Expect.NOT_LESS,
      allowed,
    ),
    how="our reading of the criterion, which there picks heads anew for each "
    "input; next tokens in place of benchmarks",
  )


def _better_than(result: Result, other: Ranking) -> Claim:
  """What heads read beside the sink, against another ranking."""
  sentence, source = {
    Ranking.RANDOM: (
      "Removing the heads that read least from tokens other than the sink "
      "raises the loss less than removing random heads.",
      "2504.02732 section 3.2",
    ),
    Ranking.WEIGHTS: (
      "What a head reads from tokens other than the sink predicts better than "
      "its weights which heads can be removed.",
      "2504.03889",
    ),
  }[other]
  shares = list(result.config.shares)
  # Few heads removed cost nothing in any order: compare where it matters.
  at = shares.index(MORE) if MORE in shares else len(shares) - 1
  own, theirs = (_loss(result, x, at) for x in (Ranking.NONSINK, other))
  at_one = result.numbers["share_at_one_percent"]
  mine, others = (
    share_text(at_one[f"{x}, zero"], shares[0])
    for x in (Ranking.NONSINK, other)
  )
  order = "in random order" if other == Ranking.RANDOM else "ranked by weights"
  return Claim(
    f"nonsink_over_{other}",
    sentence,
    source,
    "no number",
    f"with {100 * shares[at]:.0f} % of heads removed the loss changes by "
    f"{_percent(own)}, {order} by {_percent(theirs)}; it has risen by +1 % at "
    f"{mine} of heads, {order} at {others}",
    _over_texts(
      result,
      theirs - own,
      f"the loss with {100 * shares[at]:.0f} % of heads removed {order}, less "
      "that with those removed that read least beside the sink",
      Expect.MORE,
    ),
    how="ranked by the norm itself, not divided by its layer's mean, the loss "
    "changes by "
    f"{_percent(_loss(result, Ranking.NONSINK_NORM, at))}: dividing was chosen "
    "after a small run on texts of the same sources",
  )


def _threshold(result: Result) -> int:
  """The number of the threshold at which skipped queries are compared."""
  thresholds = list(result.config.thresholds)
  if THRESHOLD in thresholds:
    return thresholds.index(THRESHOLD)
  return len(thresholds) // 2


def skip_dormant(result: Result) -> Claim:
  """Weights other than the first key's dropped where that has most."""
  at = _threshold(result)
  share = result.arrays[f"skipped, {Skip.SINK_TERM}"][at].mean()
  cost = result.arrays[f"loss, {Skip.SINK_TERM}"][at]
  chance = result.arrays[f"loss, {Skip.RANDOM}"][at]
  at_one = result.numbers["share_at_one_percent"][Skip.SINK_TERM]
  return Claim(
    "skip_dormant",
    "Where a head attends almost only to the first token, the rest of its "
    "attention can be dropped for less than 1 % of the loss.",
    "2504.02732 section 3.2",
    "no number",
    f"dropped above a weight of {result.config.thresholds[at]:g} on the first "
    "token, at "
    f"{100 * share:.1f} % of (head, query) pairs, the loss changes by "
    f"{_percent(cost)}, at as many random pairs by {_percent(chance)}; it has "
    f"risen by +1 % at {share_text(at_one)} of pairs",
    _over_texts(
      result,
      cost,
      "the loss with the rest of these rows dropped, less that of the whole "
      "model",
      Expect.NOT_MORE,
      LIMIT,
    ),
    how="what is dropped has less than a tenth of a row's weight, at random "
    "pairs it may have all",
  )


def predict_dormant(result: Result) -> Claim:
  """Does it cost less to skip predicted pairs than as many random ones?"""
  at = _threshold(result)
  threshold = result.config.thresholds[at]
  own, theirs = (
    result.arrays[f"loss, {x}"][at] for x in (Skip.PREDICTED, Skip.RANDOM_VALUE)
  )
  share = result.arrays[f"skipped, {Skip.PREDICTED}"][at].mean()
  at_one = result.numbers["share_at_one_percent"]
  predicted, chance = at_one[Skip.PREDICTED], at_one[Skip.RANDOM_VALUE]
  return Claim(
    "predict_dormant",
    "The score of the first key alone predicts better than chance at which "
    "queries a head is dormant.",
    "ours",
    "no number",
    f"skipping {100 * share:.1f} % of (head, query) pairs by prediction "
    f"changes the loss by {_percent(own)}, as many at random by "
    f"{_percent(theirs)}; the loss has risen by +1 % at "
    f"{share_text(predicted)} of pairs skipped by prediction, "
    f"{share_text(chance)} at random and "
    f"{share_text(at_one[Skip.SINK_VALUE])} with the pattern known",
    _over_texts(
      result,
      theirs - own,
      "the loss with pairs skipped at random, less that with as many skipped "
      f"by prediction of a weight above {threshold:g}",
      Expect.MORE,
    ),
    how="skipped pairs read the sink's value alone; random ones are of any "
    "head, so which heads are dormant counts for the prediction too",
  )


def _faster(result: Result) -> Claim:
  """The time of models that are without heads."""
  first = result.config.unrolled[0]
  left = {row["model"]: row["heads_left"] for row in result.records("time.csv")}
  saved = {k: Mean.read(x) for k, x in result.numbers["saved"].items()}
  parts = [
    f"{name} ({100 * left[name]:.0f} % left) {_percent(gain, '.2f')}, loss "
    f"{_percent(result.arrays[f'loss, {name}'])}"
    for name, gain in saved.items()
  ]
  whole, fewer = (
    result.arrays[f"seconds, {name}"] for name in (UNROLLED, without(first))
  )
  return Claim(
    "faster_without",
    f"Without the {100 * first:.0f} % of heads that read least from tokens "
    "other than the sink, a model is faster.",
    "ours",
    "no number",
    "time saved: " + "; ".join(parts),
    effect(
      np.log(whole / fewer),
      "the time of the whole model, unrolled, over that of the model without "
      "these heads",
      LOG_RATIO,
      Expect.MORE,
      per="timing round",
    ),
    how="interleaved rounds on this machine's processor; groups are chosen so "
    "that matrix products get smaller, not by how dormant their heads are",
  )
