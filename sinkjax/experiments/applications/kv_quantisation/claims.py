"""The claims about keeping the first token in full precision."""

import numpy as np

from sinkjax.experiments.applications.kv_quantisation.config import Kept, Layout
from sinkjax.experiments.applications.kv_quantisation.results import (
  linear_array,
  share_recovered,
)
from sinkjax.experiments.applications.kv_quantisation.settings import (
  STATIC,
  TOKEN,
)
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import mean_of

FAILS = 0.1
"""Loss increase in nats from which a quantised model has failed: 10 % of
perplexity, a multiple of what 8 bits cost with a range for each token."""

KVQUANT, INTACT = "2401.18079", "2403.01241"
BONDARENKO, PREFIX = "2306.12929", "2410.05265"
PREFIX_FOUND = "static W4A4KV4, +3.08 points over SpinQuant"

Losses = dict[Kept, np.ndarray]
"""[P] loss increases by the token kept."""


def claims(result: Result) -> list[Claim]:
  """Three about keys and values, three about activations."""
  bits = result.config.claim_bits
  unrotated, token = (_kv(result, x) for x in (Layout.UNROTATED, Layout.TOKEN))
  return [
    _keep_sink(
      "keep_sink_per_channel",
      "Keeping the first token in full precision lowers the loss of "
      f"{bits}-bit keys and values with keys rounded per channel.",
      (KVQUANT, "no number"),
      unrotated,
      f"{bits} bits, keys per channel before rotation",
    ),
    _keep_sink(
      "keep_sink_per_token",
      "Keeping the first token in full precision lowers the loss of "
      f"{bits}-bit keys and values rounded per token.",
      (INTACT, "no number"),
      token,
      f"{bits} bits, per token",
    ),
    _most_of_loss(bits, token),
    _static_fails(_linear(result, 8, 8)),
    _keep_sink(
      "keep_sink_static",
      "Keeping the first token in full precision lowers the loss of 8-bit "
      "activations with static ranges.",
      (PREFIX, PREFIX_FOUND),
      _linear(result, 8, 8),
      "W8A8, one static range per tensor",
    ),
    _static_over_token(result),
  ]


def _kv(result: Result, layout: Layout) -> Losses:
  numbers = result.numbers
  at = numbers["bits"].index(result.config.claim_bits)
  loss = result.arrays["kv_loss"][numbers["layouts"].index(layout), at]
  return {kept: loss[numbers["kept"].index(kept)] for kept in Kept}


def _linear(
  result: Result, weights: int, activations: int, ranges: str = STATIC
) -> Losses:
  return {
    kept: result.arrays[linear_array(ranges, weights, activations, kept)]
    for kept in Kept
  }


def _ours(loss: Losses) -> str:
  """Loss increase with nothing, the first token and the control kept."""
  none, sink, control = (mean_of(loss[kept]).text("+.3f") for kept in Kept)
  share = share_recovered(loss[Kept.NOTHING], loss[Kept.SINK])
  said = (
    f"the loss rises by {none} nats, with the first token kept by {sink}, with "
    f"the control token kept by {control}"
  )
  if share is not None:
    said += f"; keeping the first token recovers {100 * share:.0f} %"
  return said


def _keep_sink(
  id: str, claim: str, source: tuple[str, str], loss: Losses, note: str
) -> Claim:
  """Keeping the first token helps, and more than keeping the control does."""
  sink = loss[Kept.SINK]
  # Any token in full precision helps a little: it must help more.
  gain, more = (
    mean_of(loss[kept] - sink) for kept in (Kept.NOTHING, Kept.CONTROL)
  )
  verdicts = {direction(gain.low, gain.high), direction(more.low, more.high)}
  verdict = UNDECIDED
  if DISAGREES in verdicts:
    verdict = DISAGREES
  elif verdicts == {AGREES}:
    verdict = AGREES
  return Claim(
    id,
    claim,
    *source,
    _ours(loss),
    verdict,
    f"{note}; agrees if the loss is lower than with nothing kept and than with "
    "the control kept, by 95 % intervals over texts",
  )


def _most_of_loss(bits: int, loss: Losses) -> Claim:
  none, sink = loss[Kept.NOTHING], loss[Kept.SINK]
  # Linear in each text, so an interval over texts is that of a mean.
  half = mean_of(none - sink - none / 2)
  return Claim(
    "most_of_loss",
    f"Most of the loss of {bits}-bit keys and values comes from rounding the "
    "first token.",
    f"{INTACT}, our reading",
    "no number",
    _ours(loss),
    direction(half.low, half.high),
    f"{bits} bits, per token; agrees if keeping the first token recovers more "
    "than half, by the 95 % interval over texts",
  )


def _static_fails(loss: Losses) -> Claim:
  none = mean_of(loss[Kept.NOTHING])
  return Claim(
    "static_activations_fail",
    "8-bit activations with one static range per tensor raise the loss by more "
    f"than {FAILS:g} nats.",
    BONDARENKO,
    "W8A8 perplexity 1294 against 4.52 with clipped softmax (BERT); 21.18 "
    "against 16.02 gated (OPT-125m)",
    f"the loss rises by {none.text('+.3f')} nats",
    direction(none.low - FAILS, none.high - FAILS),
    "W8A8, range from the least to the greatest number in other texts; margin "
    f"of {FAILS:g} nats, 10 % of perplexity",
  )


def _static_over_token(result: Result) -> Claim:
  """Static ranges with the sink kept against per-token ranges without."""

  def pair(width: int) -> tuple[np.ndarray, np.ndarray]:
    static = _linear(result, width, width)[Kept.SINK]
    return static, _linear(result, width, width, TOKEN)[Kept.NOTHING]

  static, dynamic = pair(8)
  better = mean_of(dynamic - static)
  both = "; ".join(
    f"W{width}A{width}: the loss rises by "
    f"{mean_of(pair(width)[0]).text('+.3f')} nats with static ranges, by "
    f"{mean_of(pair(width)[1]).text('+.3f')} with a range per token"
    for width in (8, 4)
  )
  return Claim(
    "static_over_token",
    "Static activation ranges with the first token in full precision lose less "
    "than a range for each token with nothing kept.",
    PREFIX,
    PREFIX_FOUND,
    both,
    direction(better.low, better.high),
    "95 % interval of the difference at W8A8, since both break the model at "
    "W4A4; one token kept, keys and values not rounded, activations not "
    "rotated, nothing trained",
  )
