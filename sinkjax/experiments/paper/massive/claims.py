"""Whether there are massive activations, and what needs them."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import Mean
from sinkjax.experiments.paper.massive.experiment import RATIO, SIZE, Edit

SAME = 0.05
"""A change of the loss by less than this share of the change that zeroing makes
counts as nearly none: the loss of twelve short texts is not known well enough
to ask for three equal digits, as the paper finds."""


def claims(result: Result) -> list[Claim]:
  """Massive activations, what breaks without them, and the sink."""
  numbers, arrays = result.numbers, result.arrays
  return [
    _dimensions(numbers, arrays),
    _zeroed(numbers),
    _fixed(numbers),
    _sinks(numbers),
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
  verdict: str,
  why: str,
) -> Claim:
  """A claim on changed activations, untested where a model has none."""
  if numbers["made"] is None:
    ours, verdict = "not measured", UNTESTED
    why = "this model has no massive activations"
  return Claim(id, claim, "2402.17762", paper, ours, verdict, why)


def _dimensions(
  numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Claim:
  largest, ratio = arrays["largest"].max(), arrays["ratio"].max()
  if numbers["made"] is None:
    ours, verdict = f"none; the largest is {largest:.0f}", DISAGREES
  else:
    dimensions = ", ".join(map(str, numbers["dimensions"]))
    ours = (
      f"dimensions {dimensions}, after layers {numbers['made']} to "
      f"{numbers['gone'] - 1}; up to {largest:,.0f}, and up to {ratio:,.0f} "
      "times the median"
    )
    verdict = AGREES
  return Claim(
    id="massive_dimensions",
    claim="A few dimensions of the first token have massive activations in the "
    "middle layers.",
    source="2402.17762",
    paper="dimensions 1415 and 2533, layers 2 to 30 (Llama 2 7B)",
    ours=ours,
    verdict=verdict,
    why=f"massive: |x| above {SIZE:g} and {RATIO:g} times the median",
  )


def _zeroed(numbers: Mapping[str, Any]) -> Claim:
  loss = _loss(numbers, Edit.ZERO)
  return _claim(
    numbers,
    "zero_breaks_model",
    "Setting massive activations to zero where they are made breaks the model.",
    "perplexity from 5.47 to infinity (Llama 2 7B)",
    f"loss changes by {loss.text('+.2f', ' nats')}",
    direction(loss.low, loss.high),
    f"95 % interval over {loss.groups} texts",
  )


def _fixed(numbers: Mapping[str, Any]) -> Claim:
  zeroed, fixed = _loss(numbers, Edit.ZERO), _loss(numbers, Edit.MEAN)
  same = abs(fixed.value) < SAME * abs(zeroed.value)
  return _claim(
    numbers,
    "mean_keeps_model",
    "Fixing massive activations at their mean leaves the loss nearly "
    "unchanged.",
    "perplexity from 5.47 to 5.47 (Llama 2 7B)",
    f"loss changes by {fixed.text('+.4f', ' nats')}",
    AGREES if same else DISAGREES,
    f"agrees below {100 * SAME:g} % of the change that setting them to zero "
    "makes",
  )


def _sinks(numbers: Mapping[str, Any]) -> Claim:
  left = _mean(numbers, Edit.ZERO, "sink_rate_over_half")
  plain, zeroed, other = (
    _mean(numbers, edit, "sink_rate").scaled(100).text(".1f", " %")
    for edit in (Edit.NONE, Edit.ZERO, Edit.OTHERS)
  )
  return _claim(
    numbers,
    "sink_needs_massive",
    "Without massive activations, the first token is no longer a sink.",
    "no number; the first token no longer attracts attention",
    f"sink rate {plain} unchanged; {zeroed} with massive activations set to "
    f"zero; {other} with as many other dimensions set to zero",
    direction(-left.high, -left.low),
    "agrees if less than half of the sink rate is left; layers up to the one "
    "that makes massive activations keep their sinks",
  )
