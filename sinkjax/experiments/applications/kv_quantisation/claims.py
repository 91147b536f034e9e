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
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import NATS, Effect, Expect, effect
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.shared.text_batches import by_template, with_units

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
  found = [
    _keep_sink(
      result,
      "keep_sink_per_channel",
      "Keeping the first token in full precision lowers the loss of "
      f"{bits}-bit keys and values with keys rounded per channel.",
      (KVQUANT, "no number"),
      unrotated,
      f"{bits} bits, keys per channel before rotation",
    ),
    _keep_sink(
      result,
      "keep_sink_per_token",
      "Keeping the first token in full precision lowers the loss of "
      f"{bits}-bit keys and values rounded per token.",
      (INTACT, "no number"),
      token,
      f"{bits} bits, per token",
    ),
    _most_of_loss(result, token),
    _static_fails(result, _linear(result, 8, 8)),
    _keep_sink(
      result,
      "keep_sink_static",
      "Keeping the first token in full precision lowers the loss of 8-bit "
      "activations with static ranges.",
      (PREFIX, PREFIX_FOUND),
      _linear(result, 8, 8),
      "W8A8, one static range per tensor",
    ),
    _static_over_token(result),
  ]
  return with_units(found, result.numbers)


def _more(result: Result, values: np.ndarray, what: str) -> Effect:
  """Nats [P] that are expected to be above 0, over independent texts."""
  values = by_template(values, result.numbers)
  return effect(values, what, NATS, Expect.MORE)


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
  result: Result,
  id: str,
  claim: str,
  source: tuple[str, str],
  loss: Losses,
  how: str,
) -> Claim:
  """Keeping the first token helps, and more than keeping the control does."""
  gain, more = (loss[x] - loss[Kept.SINK] for x in (Kept.NOTHING, Kept.CONTROL))
  what = "the loss with {} kept, less that with the first token kept"
  return Claim(
    id,
    claim,
    *source,
    _ours(loss),
    _more(result, gain, what.format("nothing")),
    how=how,
    # Any token in full precision helps a little: it must help more.
    provided=(_more(result, more, what.format("the control token")),),
  )


def _most_of_loss(result: Result, loss: Losses) -> Claim:
  bits = result.config.claim_bits
  none, sink = loss[Kept.NOTHING], loss[Kept.SINK]
  # Linear in each text, where a share of a small loss is mostly noise.
  return Claim(
    "most_of_loss",
    f"Most of the loss of {bits}-bit keys and values comes from rounding the "
    "first token.",
    f"{INTACT}, our reading",
    "no number",
    _ours(loss),
    _more(
      result,
      none - sink - none / 2,
      "what keeping the first token takes from the loss, less half of the loss "
      "increase with nothing kept",
    ),
    how=f"{bits} bits, per token",
  )


def _static_fails(result: Result, loss: Losses) -> Claim:
  none = loss[Kept.NOTHING]
  return Claim(
    "static_activations_fail",
    "8-bit activations with one static range per tensor raise the loss by more "
    f"than {FAILS:g} nats.",
    BONDARENKO,
    "W8A8 perplexity 1294 against 4.52 with clipped softmax (BERT); 21.18 "
    "against 16.02 gated (OPT-125m)",
    f"the loss rises by {mean_of(none).text('+.3f')} nats",
    _more(
      result,
      none - FAILS,
      f"the loss increase with nothing kept, less {FAILS:g} nats, 10 % of "
      "perplexity",
    ),
    how="W8A8, range from the least to the greatest number in other texts",
  )


def _static_over_token(result: Result) -> Claim:
  """Static ranges with the sink kept against per-token ranges without."""

  def pair(width: int) -> tuple[np.ndarray, np.ndarray]:
    static = _linear(result, width, width)[Kept.SINK]
    return static, _linear(result, width, width, TOKEN)[Kept.NOTHING]

  static, dynamic = pair(8)
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
    _more(
      result,
      dynamic - static,
      "the loss with a range for each token and nothing kept, less that with "
      "static ranges and the first token kept, W8A8",
    ),
    how="at W8A8, since both break the model at W4A4; one token kept, keys and "
    "values not rounded, activations not rotated, nothing trained",
  )
