"""What a step a tensor costs, and to what that is due."""

import numpy as np

from sinkjax.experiments.applications.quantisation_audit.experiment import (
  INPUTS,
  NOTHING,
  OTHER,
  SINK,
  STEPS,
  added,
  attributed,
)
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  NATS,
  RANKS,
  SHARE,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import mean_of, rank_correlation
from sinkjax.experiments.shared.text_batches import by_template
from sinkjax.inference.quantize_audit import BROKEN

TENSOR, TOKEN = STEPS
SOURCE = "measured elsewhere, no source that was at hand"
LAST = "mlp_act"
"""The input that has the massive activations of models with a gated MLP."""


def claims(result: Result) -> list[Claim]:
  """Two on steps, four on tensors, one on gates."""
  return [
    _steps(result),
    _weights(result),
    _sink(result),
    _last_input(result),
    _dispersion(result),
    _underflow(result),
    Claim(
      "gates_spare_bits",
      "A model with gates on its heads loses less at eight bits than the same "
      "without.",
      SOURCE,
      "0.0117 and 0.0012 nats added with gates, 0.6450 and 0.0203 without, "
      "with a step a tensor and a token (a model of 1B)",
      "not testable here",
      None,
      untested="it takes two models that differ in their gates alone",
    ),
  ]


def _text(values: np.ndarray) -> str:
  return mean_of(values).text("+.4f", " nats")


def _nats(values: np.ndarray, what: str, expect: Expect) -> Effect:
  return effect(values, what, NATS, expect)


def _bits(result: Result) -> str:
  return f"{result.config.bits}-bit"


def _steps(result: Result) -> Claim:
  tensor, token = (added(result, per) for per in STEPS)
  return Claim(
    "tensor_over_token",
    "Inputs of few bits with one step a tensor raise the loss more than with "
    "one step a token.",
    SOURCE,
    "nats added at 8 bits: 0.2097 and 0.0047 (GPT-2), 0.4378 and 0.0096 "
    "(Qwen3-0.6B)",
    f"{_text(tensor)} with a step a tensor, {_text(token)} with a step a token",
    _nats(
      tensor - token,
      "loss added with a step a tensor, less that with a step a token",
      Expect.MORE,
    ),
    how=f"{_bits(result)} weights, a step a channel, and inputs of all "
    "projections; dynamic ranges",
  )


def _weights(result: Result) -> Claim:
  # The inputs are whole: what is left is the weights' doing.
  values = added(result, TOKEN, INPUTS)
  return Claim(
    "weights_cost_nothing",
    "Weights of few bits with one step a channel leave the loss the same.",
    SOURCE,
    "no number",
    f"{_text(values)} added",
    _nats(
      values,
      "loss with rounded weights, less that of the unchanged model",
      Expect.SAME,
    ),
    how=f"{_bits(result)} weights, inputs as they are",
  )


def _broken(result: Result, id: str, sentence: str) -> Claim | None:
  """The claim where the model is broken, and nothing is attributed."""
  if not result.numbers["broken"][TENSOR]:
    return None
  return Claim(
    id,
    sentence,
    "ours",
    "no number",
    f"{_text(added(result, TENSOR))} added",
    None,
    untested=f"the perplexity is above {BROKEN:g} times the reference's: no "
    "attribution",
  )


def _sink(result: Result) -> Claim:
  id, sentence = (
    "sink_costs_the_step",
    "With one step a tensor, leaving the first token out of rounding gives "
    "back more of the loss than leaving another out.",
  )
  if broken := _broken(result, id, sentence):
    return broken
  sink, other = (attributed(result, TENSOR, out) for out in (SINK, OTHER))
  return Claim(
    id,
    sentence,
    "ours",
    "no number",
    f"{_text(sink)} given back, {OTHER} {_text(other)}, of "
    f"{_text(added(result, TENSOR))} added",
    _nats(
      sink - other,
      f"loss given back with {SINK} left out, less that with {OTHER} left out",
      Expect.MORE,
    ),
    how="the token's inputs are whole, and do not count in the step",
    provided=(
      _nats(sink, f"loss given back with {SINK} left out", Expect.MORE),
    ),
  )


def _last_input(result: Result) -> Claim:
  id, sentence = (
    "last_mlp_input_has_most",
    "With one step a tensor, what the MLP's last projection reads has more "
    "than half of the added loss.",
  )
  if broken := _broken(result, id, sentence):
    return broken
  whole = added(result, TENSOR)
  shares = {
    out: attributed(result, TENSOR, out)
    for out in (*result.numbers["inputs"], *result.numbers["kernels"])
  }
  most = max(shares, key=lambda out: shares[out].mean())
  return Claim(
    id,
    sentence,
    "ours",
    "no number",
    f"{_text(shares[LAST])} of {_text(whole)} given back; most by {most}, "
    f"{_text(shares[most])}; all tensors one by one "
    f"{_text(sum(shares.values()))}",
    _nats(
      2 * shares[LAST] - whole,
      f"twice the loss given back with {LAST} left out, less all that is added",
      Expect.MORE,
    ),
    how="each tensor of all layers in turn is left out of rounding",
  )


def _dispersion(result: Result) -> Claim:
  id, sentence = (
    "dispersion_tells_the_cost",
    "With one step a tensor, inputs whose largest token exceeds the others by "
    "more have more of the change in predictions.",
  )
  if broken := _broken(result, id, sentence):
    return broken
  sites, arrays = result.numbers["inputs"], result.arrays
  dispersion = np.concatenate([arrays[f"dispersion, {x}"] for x in sites])
  whole = arrays[f"kl, {TENSOR}, without {NOTHING}"]
  given = np.stack(
    [
      whole - arrays[f"kl, {TENSOR}, without {site}, layer {layer}"]
      for site in sites
      for layer in range(len(arrays[f"dispersion, {site}"]))
    ]
  )
  values = by_template(
    np.nan_to_num(rank_correlation(dispersion.T, given.T)), result.numbers
  )
  return Claim(
    id,
    sentence,
    "ours",
    "no number",
    f"rank correlation {mean_of(values).text('+.3f')} over {len(given)} inputs",
    effect(
      values,
      "rank correlation, over the inputs of all layers, of row dispersion and "
      "the KL to the unchanged model given back by leaving the input out",
      RANKS,
      Expect.MORE,
    ),
    how="within each text; dispersion is the largest token's range over the "
    "median token's",
  )


def _underflow(result: Result) -> Claim:
  tensor, row = (
    by_template(
      np.mean(
        [
          result.arrays[f"underflow, {per}, {site}"].mean(axis=0)
          for site in result.numbers["inputs"]
        ],
        axis=0,
      ),
      result.numbers,
    )
    for per in STEPS
  )
  shown = [mean_of(x).scaled(100).text(".2f", " %") for x in (tensor, row)]
  return Claim(
    "tensor_step_underflows",
    "With one step a tensor more numbers of the inputs become zero than with "
    "one step a token.",
    SOURCE,
    "no number that was at hand",
    f"{shown[0]} with a step a tensor, {shown[1]} with a step a token",
    effect(
      tensor - row,
      "share of the numbers that become 0 with a step a tensor, less that with "
      "a step a token",
      SHARE,
      Expect.MORE,
    ),
    how=f"{_bits(result)} grids; mean over inputs and layers",
  )
