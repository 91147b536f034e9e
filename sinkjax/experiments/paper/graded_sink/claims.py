"""Would more or less of the sink be better, and what does it do to mixing?"""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, NATS, Expect, effect
from sinkjax.experiments.harness.stats import format_ratio, mean_of
from sinkjax.experiments.paper.graded_sink.experiment import FEW, MANY, MAPPED
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2505.11739"
PAPER = "no number that was at hand: other amounts can do better"


def claims(result: Result) -> list[Claim]:
  """The slope at the trained amount, both sides of it, and the mixing."""
  return [
    _slope(result),
    _side(
      result,
      FEW,
      "less_raises_loss",
      "Half as much attention on the first token raises the loss.",
    ),
    _side(
      result,
      MANY,
      "more_raises_loss",
      "Twice as much attention on the first token raises the loss.",
    ),
    _mixing(result),
  ]


def _slope(result: Result) -> Claim:
  values = by_template(result.arrays["slopes"].sum(axis=(1, 2)), result.numbers)
  return Claim(
    id="trained_amount_is_best",
    claim="At the trained amount of attention on the first token the loss has "
    "no slope.",
    source=SOURCE,
    paper=PAPER,
    ours=f"{mean_of(values).text('+.4f', ' nats')} for each unit of log g",
    effect=effect(
      values,
      "derivative of the loss by log g at g = 1, all heads together",
      NATS,
      Expect.SAME,
    ),
    how=f"exact derivative on {result.numbers['texts']} texts; a unit of log g "
    "is a factor of 2.7 on the attention before it is normalised",
  )


def _change(result: Result, key: int, by: float) -> np.ndarray:
  factors = [float(x) for x in result.config.factors]
  loss = result.arrays["loss"][key]
  change = loss[factors.index(by)] - loss[factors.index(1.0)]
  return by_template(change, result.numbers)


def _side(result: Result, by: float, id: str, sentence: str) -> Claim:
  sink, control = (_change(result, key, by) for key in (0, 1))
  what = f"loss with the attention on the first token times {by:g}, less that"
  at = result.numbers["control_position"]
  return Claim(
    id=id,
    claim=sentence,
    source=SOURCE,
    paper=PAPER,
    ours=f"{mean_of(sink).text('+.4f', ' nats')}, on position {at} "
    f"{mean_of(control).text('+.4f', ' nats')}",
    effect=effect(sink, f"{what} of the unchanged model", NATS, Expect.MORE),
    how=f"all layers and heads; the control is position {at}",
    provided=(
      effect(
        sink - control,
        f"{what} with the attention on position {at} times {by:g}",
        NATS,
        Expect.MORE,
      ),
    ),
  )


def _mixing(result: Result) -> Claim:
  mixing = result.arrays["mixing"]
  low, high = mixing[:, 0], mixing[:, -1]
  sink, control = np.log(high / low)
  at = result.numbers["control_position"]
  far, near = (f"g = {by:g}" for by in (MAPPED[-1], MAPPED[0]))
  return Claim(
    id="more_sink_mixes_less",
    claim="The more attention the first token gets, the less the other tokens "
    "mix.",
    source=SOURCE,
    paper="not measured there: follows from arXiv 2504.02732",
    ours=f"{format_ratio(mean_of(sink))} the mixing at {far} as at {near}; "
    f"with position {at} graded {format_ratio(mean_of(control))}",
    effect=effect(
      sink,
      f"exact mixing of the other tokens at {far} over that at {near}",
      LOG_RATIO,
      Expect.LESS,
    ),
    how=f"{result.numbers['map_texts']} texts of {result.config.map_tokens} "
    f"tokens, without the rows and columns of positions 0 and {at}",
    provided=(
      effect(
        sink - control,
        f"the same, over that with position {at} graded",
        LOG_RATIO,
        Expect.LESS,
      ),
    ),
  )
