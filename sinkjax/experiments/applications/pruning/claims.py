"""What the experiment `pruning` says of the claims about heads that rest."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import UNTESTED, Claim, direction
from sinkjax.experiments.harness.stats import Mean, mean_over

LIMIT = 0.01
"""The loss increase at which shares are read off."""

EQUAL, WITHIN = 0.005, 0.01
"""An accuracy is equal if it falls by less than the first, relatively; and
within one per cent by the second."""

FEW, MORE = 0.04, 0.14
"""Shares of heads that arXiv 2504.03889 sets to zero."""

SAMPLES = 2000
"""Bootstrap samples of the texts."""

RESTS = 0.9
"""The threshold at which skipped queries are compared."""


def without(share: float) -> str:
  """The name of a model without so many of its heads."""
  return f"without {share:.0%} of heads, unrolled"


def share_at(
  shares: Sequence[float], loss: np.ndarray, limit: float = LIMIT
) -> dict[str, Any]:
  """The share at which the mean loss first passes `limit`, by lines between.

  Args:
    shares: [S] increasing; from (0, 0) on.
    loss: [S, P] increase of each text.
    limit: of the mean over texts.

  Returns:
    "value", and "low" and "high" of the 95 % interval by bootstrap over
    texts. A curve that never passes gives the greatest share, a lower bound.

  >>> found = share_at([0.1, 0.2], np.array([[0.0, 0.0], [0.02, 0.02]]))
  >>> round(found["value"], 6)
  0.15
  """
  x = np.concatenate([[0.0], shares])
  y = np.concatenate([np.zeros((1, loss.shape[1])), loss])
  rng = np.random.default_rng(0)
  draws = rng.integers(loss.shape[1], size=(SAMPLES, loss.shape[1]))
  found = [_crossing(x, y[:, draw].mean(axis=1), limit) for draw in draws]
  low, high = np.quantile(found, [0.025, 0.975])
  value = _crossing(x, y.mean(axis=1), limit)
  return {
    "value": value,
    "low": float(low),
    "high": float(high),
    "passes": bool((y.mean(axis=1) > limit).any()),
  }


def _crossing(x: np.ndarray, y: np.ndarray, limit: float) -> float:
  over = np.flatnonzero(y > limit)
  if not over.size:
    return float(x[-1])
  i = int(over[0])
  part = (limit - y[i - 1]) / (y[i] - y[i - 1])
  return float(x[i - 1] + part * (x[i] - x[i - 1]))


def _percent(mean: Mean, sign: str = "+") -> str:
  ends = [f"{100 * x:{sign}.2f}" for x in mean[:3]]
  return f"{ends[0]} ({ends[1]} to {ends[2]}) %"


def _share_text(one: dict[str, Any], least: float = 0.0) -> str:
  """In words; below the `least` share that was measured no number is known."""
  if one["value"] < least:
    return f"less than {100 * least:g} %"
  more = "" if one["passes"] else "at least "
  return (
    f"{more}{100 * one['value']:.1f} ({100 * one['low']:.1f} to "
    f"{100 * one['high']:.1f}) %"
  )


def _over(values) -> Mean:
  return mean_over(values, range(len(values)))


def claims(
  config: Any, by_order, by_skip, gains, left, at_one, small
) -> list[Claim]:
  """One of each kind; the arguments are those of `pruning`."""
  shares = list(config.shares)
  found = [
    _accuracy(
      by_order,
      shares,
      FEW,
      EQUAL,
      "More than 4 % of heads, the same in every text, can be set to "
      "zero at equal accuracy.",
    ),
    _accuracy(
      by_order,
      shares,
      MORE,
      WITHIN,
      "More than 14 % of them can, within 1 % of the accuracy.",
    ),
  ]
  at = shares.index(MORE) if MORE in shares else len(shares) - 1
  for other, sentence, source in (
    (
      "random",
      "Heads that read little beside the sink, for their layer, are "
      "missed less than heads at random.",
      "2504.02732 section 3.2",
    ),
    (
      "weights",
      "What a head reads beside it, over its layer's mean, tells "
      "better than its weights which one is missed.",
      "2504.03889",
    ),
  ):
    gap = _over(
      by_order[other, "zero"]["loss"][at]
      - by_order["beside_sink", "zero"]["loss"][at]
    )
    own = _over(by_order["beside_sink", "zero"]["loss"][at])
    theirs = _over(by_order[other, "zero"]["loss"][at])
    mine = _share_text(at_one["beside_sink, zero"], shares[0])
    raw = _over(by_order["beside_norm", "zero"]["loss"][at])
    found.append(
      Claim(
        sentence,
        source,
        "no number",
        f"loss at {shares[at]:.0%} of heads {_percent(own)}, by {other} "
        f"{_percent(theirs)}; +1 % at {mine} of heads, by {other} "
        f"{_share_text(at_one[f'{other}, zero'], shares[0])}",
        direction(gap.low, gap.high),
        f"95 % interval of the difference; by the norm itself, not over the "
        f"layer's mean, {_percent(raw)}: dividing was settled on after a small "
        "run on texts of the same sources",
      )
    )
  return [
    *found,
    _queries(config, by_skip, at_one),
    _foretold(by_skip, at_one),
    _time(config, gains, left, small),
  ]


def _accuracy(by_order, shares, share, allowed, sentence) -> Claim:
  paper = "equal" if allowed == EQUAL else "within 1 %, several benchmarks"
  if share not in shares:
    return Claim(
      sentence,
      "2504.03889",
      paper,
      "not measured",
      UNTESTED,
      f"the share {share} is not in the config",
    )
  one = by_order["dormant", "zero"]
  right = _over(one["right"][shares.index(share)])
  loss = _over(one["loss"][shares.index(share)])
  return Claim(
    sentence,
    "2504.03889",
    paper,
    f"{share:.0%} of heads, least output norm in their layer first: share of "
    f"next tokens that are right {_percent(right)}, loss {_percent(loss)}",
    direction(right.low + allowed, right.high + allowed),
    f"agrees if it falls by less than {allowed:.1%} of itself; our reading of "
    "the criterion, which there picks heads anew for each input; next tokens "
    "in place of benchmarks",
  )


def _queries(config, by_skip, at_one) -> Claim:
  thresholds = list(config.thresholds)
  at = thresholds.index(RESTS) if RESTS in thresholds else len(thresholds) // 2
  share, kept = by_skip["sink's part kept"]
  _, chance = by_skip["random queries"]
  cost = _over(kept[at])
  return Claim(
    "Where a head rests on the first token, the rest of its row can go for "
    "less than 1 % of the loss.",
    "2504.02732 section 3.2",
    "no number",
    f"above a weight of {thresholds[at]:g}, {100 * share[at].mean():.1f} % of "
    f"(head, query) pairs: loss {_percent(_over(kept[at]))}; as many at random "
    f"{_percent(_over(chance[at]))}; +1 % at "
    f"{_share_text(at_one['sink' + chr(39) + 's part kept'])} of pairs",
    direction(LIMIT - cost.high, LIMIT - cost.low),
    "95 % interval over texts; what goes has less than a tenth of a row's "
    "weight, at random it may have all",
  )


def _foretold(by_skip, at_one) -> Claim:
  """At +1 % loss: as many foretold as at random?"""
  told, chance = at_one["foretold"], at_one["random queries, sink alone"]
  return Claim(
    "The score with the first key alone foretells where a head rests, better "
    "than chance.",
    "ours",
    "no number",
    f"+1 % loss at {_share_text(told)} of pairs foretold, "
    f"{_share_text(chance)} at random, {_share_text(at_one['sink alone'])} "
    "with the pattern known",
    direction(told["low"] - chance["high"], told["high"] - chance["low"]),
    "intervals by bootstrap over texts that do not meet; all are the sink's "
    "value alone, at random as many as foretold",
  )


def _time(config, gains, left, small) -> Claim:
  claim = (
    f"Without {config.unrolled[0]:.0%} of the heads, those that rest, a "
    "model is faster."
  )
  parts = [
    f"{name} ({left[name]:.0%} left): {_percent(gain, '')} of the time, loss "
    f"{_percent(_over(small[name]))}"
    for name, gain in gains.items()
  ]
  gain = gains[without(config.unrolled[0])]
  return Claim(
    claim,
    "ours",
    "no number",
    "saved: " + "; ".join(parts),
    direction(gain.low, gain.high),
    "by the first share, over rounds, on this machine's processor; groups are "
    "what a matrix product can do without, not the heads that rest",
  )
