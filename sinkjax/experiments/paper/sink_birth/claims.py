"""Whether the sink grows, after what, and with what."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  COSINE,
  LOG_RATIO,
  SHARE,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import (
  format_ratio,
  mean_of,
  rank_correlation,
)
from sinkjax.experiments.shared.text_batches import by_template
from sinkjax.metrics.emergence import half_step

GU = "2410.10781"
FEWEST = 4
"""Checkpoints of a correlation and of an order in time."""


def claims(result: Result) -> list[Claim]:
  """One on growth, three on what goes along, two on the order."""
  rate = result.arrays["rate"].astype(float)
  return [
    _claim(
      result,
      "sink_grows",
      "The last checkpoint has more heads with a sink than the first.",
      GU,
      rate[-1] - rate[0],
      "sink rate of the last checkpoint, less that of the first",
      SHARE,
      Expect.MORE,
      2,
    ),
    _with_rate(
      result,
      "values_drain_with_sink",
      "In checkpoints with more sinks, the first token has smaller values.",
      "value",
      Expect.LESS,
    ),
    _with_rate(
      result,
      "massive_with_sink",
      "In checkpoints with more sinks, the largest activation is more massive.",
      "massive",
      Expect.MORE,
    ),
    _with_rate(
      result,
      "entropy_falls_with_sink",
      "In checkpoints with more sinks, rows of attention have less entropy.",
      "entropy",
      Expect.LESS,
    ),
    _order(
      result,
      "sink_after_loss",
      "The sink rate has made half of its change later than the loss.",
      GU,
      "loss",
      Expect.MORE,
    ),
    _order(
      result,
      "sink_not_before_massive",
      "The sink rate has made half of its change no earlier than massive "
      "activations.",
      "ours",
      "massive",
      Expect.NOT_LESS,
    ),
  ]


def _claim(
  result: Result,
  id: str,
  claim: str,
  source: str,
  values: np.ndarray,
  what: str,
  unit: Unit,
  expect: Expect,
  fewest: int = FEWEST,
) -> Claim:
  """Of values [P], those that are no numbers left out."""
  head = (id, claim, source, "no number")
  count = len(result.numbers["steps"])
  if count < fewest:
    why = (
      f"{count or 1} checkpoint{'s' * (count > 1)} of a model given by name "
      f"{'are' if count > 1 else 'is'} measured, {fewest} are needed"
    )
    return Claim(*head, "not measured", None, untested=why)
  some = np.flatnonzero(np.isfinite(values))
  templates = result.numbers["templates"]
  units = {"templates": [templates[i] for i in some]}
  kept = by_template(values[some], units) if len(some) else np.zeros(0)
  if len(kept) < 2:
    why = "the sink rate does not change over these checkpoints"
    return Claim(*head, "not measured", None, untested=why)
  mean = mean_of(kept)
  shown = {
    SHARE.name: mean.scaled(100).text("+.1f", " percentage points"),
    LOG_RATIO.name: format_ratio(mean),
  }.get(unit.name, mean.text("+.3f"))
  return Claim(
    *head,
    f"{shown} in {len(some)} texts",
    effect(kept, what, unit, expect),
    f"{count} checkpoints, steps {result.numbers['steps'][0]} to "
    f"{result.numbers['steps'][-1]}",
  )


def _curves(result: Result, name: str) -> np.ndarray:
  """[P, K]."""
  return result.arrays[name].astype(float).T


def _with_rate(
  result: Result, id: str, claim: str, name: str, expect: Expect
) -> Claim:
  found = rank_correlation(_curves(result, "rate"), _curves(result, name))
  what = {
    "value": "the norm of the first token's values over the others'",
    "massive": "the largest activation over the median one",
    "entropy": "the entropy of rows",
  }[name]
  return _claim(
    result,
    id,
    claim,
    "ours",
    found,
    f"rank correlation over checkpoints of a text's sink rate and {what}",
    COSINE,
    expect,
  )


def _order(
  result: Result, id: str, claim: str, source: str, name: str, expect: Expect
) -> Claim:
  steps, later = (
    result.numbers["steps"],
    np.full(result.numbers["texts"], np.nan),
  )
  if len(steps) >= FEWEST:
    at = np.array(steps, float)
    sink, other = (
      np.log1p(half_step(at, _curves(result, x))) for x in ("rate", name)
    )
    later = sink - other
  return _claim(
    result,
    id,
    claim,
    source,
    later,
    "one and the step at which the sink rate has made half of its change, over "
    f"that of {'the loss' if name == 'loss' else 'massive activations'}",
    LOG_RATIO,
    expect,
  )
