"""What the Jacobian lens leaves out, and what it is good for.

Claims and margins were written before any result of them was seen.
"""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import SHARE, Expect, effect
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.paper.lens.experiment import CONTROL, LOGIT
from sinkjax.experiments.shared.sink_removal import Condition

SOURCE = "the Jacobian lens, our reading"
NUMBER = "no number"


def claims(result: Result) -> list[Claim]:
  """The first token, the sink, skipping, and the logit lens."""
  return [
    _first_is_across(result),
    _sink_keeps_apart(result),
    _first_spoils(result),
    _sixteen(result),
    _beats_logit(result),
  ]


def across(result: Result, condition: str, skip: int) -> np.ndarray:
  """[P] share across tokens, the mean over layers."""
  at = list(result.config.skips).index(skip)
  return result.arrays[f"across, {condition}"][:, at].mean(axis=-1)


def middle(result: Result) -> np.ndarray:
  """Which of the layers looked at are in the middle third of the model."""
  depth = (np.array(result.numbers["layers"]) + 1) / result.numbers["of_layers"]
  found = (depth > 1 / 3) & (depth <= 2 / 3)
  # A model of few layers may have none there.
  return found if found.any() else np.ones_like(found)


def quality(
  result: Result, metric: str, reading: str, which: np.ndarray | None = None
) -> np.ndarray:
  """[P] of the texts held out, the mean over layers, with the sink."""
  values = result.arrays[f"{metric}, {Condition.SINK}, {reading}"]
  return (values if which is None else values[which]).mean(axis=0)


def _percent(values: np.ndarray) -> str:
  return f"{mean_of(100 * values).text('.1f')} %"


def _of_maps(result: Result) -> str:
  numbers = result.numbers
  return (
    f"{numbers['texts']} texts of {numbers['tokens']} tokens, the mean over "
    f"{len(numbers['layers'])} layers; a share is <J, J_across> / <J, J> of a "
    f"text's lens, of {result.config.samples} random directions"
  )


def _of_readings(result: Result, layers: str) -> str:
  numbers = result.numbers
  return (
    f"fitted on {numbers['fitted']} texts of {numbers['tokens']} tokens, read "
    f"on {numbers['held_out']} others, all tokens but the first; the mean over "
    f"{layers}; without centring"
  )


def _first_is_across(result: Result) -> Claim:
  with_first, without = (across(result, Condition.SINK, s) for s in (0, 1))
  return Claim(
    id="first_source_is_across",
    claim="A larger share of the lens goes across tokens where the first token "
    "is among the sources.",
    source=SOURCE,
    paper=NUMBER,
    ours=f"{_percent(with_first)} with the first token, {_percent(without)} "
    "without",
    effect=effect(
      with_first - without,
      "the share across tokens with nothing skipped, less that with the first "
      "token skipped",
      SHARE,
      Expect.MORE,
    ),
    how=_of_maps(result),
  )


def _sink_keeps_apart(result: Result) -> Claim:
  sink, hidden, control = (
    across(result, name, 1) for name in (*Condition, CONTROL)
  )
  at = result.numbers["control_position"]
  return Claim(
    id="hiding_raises_across",
    claim="A larger share of the lens goes across tokens where the sink is "
    "hidden.",
    source=SOURCE,
    paper=NUMBER,
    ours=f"{_percent(sink)} with the sink, {_percent(hidden)} with it hidden, "
    f"{_percent(control)} with position {at} hidden",
    effect=effect(
      hidden - sink,
      "the share across tokens with position 0 hidden, less that with the sink",
      SHARE,
      Expect.MORE,
    ),
    how=f"{_of_maps(result)}; the first token is no source; hidden from layer "
    f"{result.numbers['from_layer']} on",
    provided=(
      effect(
        hidden - control,
        "the share across tokens with position 0 hidden, less that with "
        f"position {at} hidden",
        SHARE,
        Expect.MORE,
      ),
    ),
  )


def _first_spoils(result: Result) -> Claim:
  one, none = (quality(result, "agree", f"skip {s}") for s in (1, 0))
  return Claim(
    id="skipping_first_helps",
    claim="A lens fitted without the first token agrees more often with the "
    "model's prediction than one fitted with it.",
    source=SOURCE,
    paper=NUMBER,
    ours=f"{_percent(one)} without the first token, {_percent(none)} with it",
    effect=effect(
      one - none,
      "the share of tokens whose prediction a lens has, fitted without the "
      "first token, less that fitted with it",
      SHARE,
      Expect.MORE,
    ),
    how=_of_readings(result, "layers"),
  )


def _sixteen(result: Result) -> Claim:
  most = max(result.config.skips)
  many, one = (quality(result, "agree", f"skip {s}") for s in (most, 1))
  return Claim(
    id="skipping_more_is_the_same",
    claim=f"Skipping {most} first tokens in the fit does no more for the "
    "lens's agreement with the model than skipping one.",
    source=SOURCE,
    paper="no number; by our reading others skip the first 16 positions",
    ours=f"{_percent(many)} with {most} skipped, {_percent(one)} with one",
    effect=effect(
      many - one,
      f"the share of tokens whose prediction a lens has, fitted without {most} "
      "first tokens, less that fitted without one",
      SHARE,
      Expect.SAME,
    ),
    how=_of_readings(result, "layers"),
  )


def _beats_logit(result: Result) -> Claim:
  which = middle(result)
  ours, logit = (
    quality(result, "agree", name, which) for name in ("skip 1", LOGIT)
  )
  kl, logit_kl = (
    mean_of(quality(result, "kl", name, which)).text(".2f")
    for name in ("skip 1", LOGIT)
  )
  layers = ", ".join(
    str(x) for x in np.array(result.numbers["layers"])[which].tolist()
  )
  return Claim(
    id="beats_logit_lens",
    claim="In the middle layers the Jacobian lens agrees more often with the "
    "model's prediction than the logit lens does.",
    source=SOURCE,
    paper=NUMBER,
    ours=f"{_percent(ours)} against {_percent(logit)}; KL(model || lens) {kl} "
    f"against {logit_kl} nats",
    effect=effect(
      ours - logit,
      "the share of tokens whose prediction the Jacobian lens has, less that "
      "of the logit lens",
      SHARE,
      Expect.MORE,
    ),
    how=f"{_of_readings(result, f'layers {layers}')}; the first token is no "
    "source",
  )
