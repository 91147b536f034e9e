"""Whether there are massive activations, and what needs them."""

import functools
import math
from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  NATS,
  SHARE,
  Count,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.paper.massive.experiment import Edit
from sinkjax.metrics.norms import LEAST, LEAST_RATIO

BROKEN = math.log(2)
"""Nats from which a model counts as broken: its perplexity doubles, as where
the uses of the sink call a cache failed."""


def claims(result: Result) -> list[Claim]:
  """Massive activations, what breaks without them, and the sink."""
  numbers = result.numbers
  return [
    _dimensions(result),
    _zeroed(numbers),
    _fixed(numbers),
    _sinks(result),
  ]


def _mean(numbers: Mapping[str, Any], edit: Edit, what: str) -> Mean:
  return Mean.read(numbers["conditions"][edit][what])


_loss = functools.partial(_mean, what="loss_change")


def _claim(
  numbers: Mapping[str, Any],
  id: str,
  claim: str,
  paper: str,
  ours: str,
  made: Effect,
  how: str,
  provided: tuple[Effect, ...] = (),
) -> Claim:
  """A claim on changed activations, untested where a model has none."""
  head = (id, claim, "2402.17762", paper)
  if numbers["made"] is None:
    why = "this model has no massive activations"
    return Claim(*head, "not measured", None, untested=why)
  return Claim(*head, ours, made, how, provided)


def _dimensions(result: Result) -> Claim:
  numbers, arrays = result.numbers, result.arrays
  largest, ratio = arrays["largest"], arrays["ratio"]
  if numbers["made"] is None:
    ours = f"none; the largest is {largest.max():.0f}"
  else:
    dimensions = ", ".join(map(str, numbers["dimensions"]))
    ours = (
      f"dimensions {dimensions}, after layers {numbers['made']} to "
      f"{numbers['gone'] - 1}; up to {largest.max():,.0f}, and up to "
      f"{ratio.max():,.0f} times the median"
    )
  massive = ((largest > LEAST) & (ratio >= LEAST_RATIO)).any(axis=0)
  return Claim(
    id="massive_dimensions",
    claim="A few dimensions of the first token have massive activations in the "
    "middle layers.",
    source="2402.17762",
    paper="dimensions 1415 and 2533, layers 2 to 30 (Llama 2 7B)",
    ours=ours,
    effect=Count(
      "texts have no massive activation at position 0 in any layer",
      int((~massive).sum()),
      massive.size,
    ),
    how=f"massive: |x| above {LEAST:g} and {LEAST_RATIO:g} times the median",
  )


def _zeroed(numbers: Mapping[str, Any]) -> Claim:
  loss, other = _loss(numbers, Edit.ZERO), _loss(numbers, Edit.OTHERS)
  return _claim(
    numbers,
    "zero_breaks_model",
    "Setting massive activations to zero where they are made breaks the model.",
    "perplexity from 5.47 to infinity (Llama 2 7B)",
    f"loss changes by {loss.text('+.2f', ' nats')}",
    effect(
      loss,
      "loss with massive activations set to zero, less that of the unchanged "
      "model",
      NATS,
      Expect.MORE,
      margin=BROKEN,
    ),
    "a change that does not double the perplexity breaks nothing",
    (
      effect(
        other,
        "loss with as many other dimensions set to zero, less that of the "
        "unchanged model",
        NATS,
        Expect.NOT_MORE,
        margin=BROKEN,
      ),
    ),
  )


def _fixed(numbers: Mapping[str, Any]) -> Claim:
  fixed = _loss(numbers, Edit.MEAN)
  return _claim(
    numbers,
    "mean_keeps_model",
    "Fixing massive activations at their mean leaves the loss nearly "
    "unchanged.",
    "perplexity from 5.47 to 5.47 (Llama 2 7B)",
    f"loss changes by {fixed.text('+.4f', ' nats')}",
    effect(
      fixed,
      "loss with massive activations set to their mean, less that of the "
      "unchanged model",
      NATS,
      Expect.SAME,
    ),
    "the mean is over the same texts",
  )


def _sinks(result: Result) -> Claim:
  numbers, rates = result.numbers, result.arrays.get("sink_rate_by_text")
  plain, zeroed, other = (
    _mean(numbers, edit, "sink_rate").scaled(100).text(".1f", " %")
    for edit in (Edit.NONE, Edit.ZERO, Edit.OTHERS)
  )
  provided = ()
  # Files recorded before lack the rates by text, and with them the pairs.
  if rates is not None:
    by_edit = dict(zip(Edit, rates, strict=True))
    provided = (
      effect(
        by_edit[Edit.ZERO] - by_edit[Edit.OTHERS],
        "sink rate with massive activations set to zero, less that with as "
        "many other dimensions set to zero",
        SHARE,
        Expect.LESS,
      ),
    )
  return _claim(
    numbers,
    "sink_needs_massive",
    "Without massive activations, the first token is the sink of less than "
    "half as many heads.",
    "no number; the first token no longer attracts attention",
    f"sink rate {plain} unchanged; {zeroed} with massive activations set to "
    f"zero; {other} with as many other dimensions set to zero",
    effect(
      _mean(numbers, Edit.ZERO, "sink_rate_over_half"),
      "sink rate with massive activations set to zero, less half of that of "
      "the unchanged model",
      SHARE,
      Expect.LESS,
    ),
    "layers up to the one that makes massive activations keep their sinks",
    provided,
  )
