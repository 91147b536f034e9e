"""Which property of the first token makes a sink, and what takes it away."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  NATS,
  SHARE,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.paper.make_a_sink.experiment import Case
from sinkjax.experiments.shared.key_rates import rate_at, rate_elsewhere
from sinkjax.experiments.shared.text_batches import by_template

SOURCE = "2605.06611"
PAPER = "no number that was at hand"


def claims(result: Result) -> list[Claim]:
  """Five on making a sink, one on taking it away, two on what follows."""
  return [
    _makes(
      result,
      Case.ALONE,
      Case.NEIGHBOUR,
      "alone_makes_sink",
      "A token that sees nothing but itself becomes a sink.",
      "in every layer; control: it sees nothing but the token before it",
    ),
    _makes(
      result,
      Case.VARIANCE,
      None,
      "variance_makes_sink",
      "A token to which attention writes as much as to the first becomes a "
      "sink.",
      f"factors {_factors(result)} in layers 0 to {result.numbers['rise']}",
    ),
    _makes(
      result,
      Case.NORM,
      None,
      "norm_makes_sink",
      "A token whose state is scaled to the first token's norm becomes a sink.",
      f"once, after layer {result.numbers['rise']}",
    ),
    _makes(
      result,
      Case.STATE,
      None,
      "state_makes_sink",
      "A token that is given the first token's state becomes a sink.",
      f"the mean over texts once, after layer {result.numbers['rise']}",
    ),
    _makes(
      result,
      Case.DIMS,
      Case.OTHERS,
      "large_dimensions_make_sink",
      "A token that is given the first token's large dimensions becomes a "
      "sink.",
      f"dimensions {', '.join(map(str, result.numbers['dimensions']))} once, "
      f"after layer {result.numbers['rise']}; control: as many others of the "
      "same size",
    ),
    _takes(result),
    _shared(result),
    _loss(result),
  ]


def _factors(result: Result) -> str:
  found = result.numbers["written_over_other"][: result.numbers["rise"] + 1]
  low, high = f"{min(found):.2g}", f"{max(found):.2g}"
  return low if low == high else f"{low} to {high}"


def _rates(result: Result, case: Case) -> np.ndarray:
  return result.arrays[f"rates, {case}"].astype(float)


def _token(result: Result, case: Case) -> np.ndarray:
  return rate_at(_rates(result, case), result.config.at)


def _share(
  result: Result, values: np.ndarray, what: str, expect: Expect
) -> Effect:
  return effect(by_template(values, result.numbers), what, SHARE, expect)


def _text(result: Result, values: np.ndarray) -> str:
  return mean_of(by_template(100 * values, result.numbers)).text(".1f", " %")


def _makes(
  result: Result,
  case: Case,
  control: Case | None,
  id: str,
  claim: str,
  how: str,
) -> Claim:
  head = (id, claim, SOURCE, PAPER)
  if case is Case.DIMS and not result.numbers["dimensions"]:
    why = (
      "no dimension holds a large share of the first token's norm in this model"
    )
    return Claim(*head, "not measured", None, untested=why)
  plain, made = _token(result, Case.PLAIN), _token(result, case)
  # Where no other edit is like it, tokens that are not edited are the control.
  if control is None:
    against = rate_elsewhere(_rates(result, case), result.config.at)
    what = "the mean of tokens that are not changed"
  else:
    against, what = _token(result, control), f"that of a token that {control}"
    if case is Case.DIMS:
      what = "that of a token with other dimensions as large"
  return Claim(
    *head,
    f"sink rate of the token {_text(result, plain)} as it is, "
    f"{_text(result, made)} changed, control {_text(result, against)}",
    _share(
      result,
      made - plain,
      "sink rate of the changed token, less that of the same token unchanged",
      Expect.MORE,
    ),
    f"the token at position {result.config.at}; {how}",
    (
      _share(
        result,
        made - against,
        f"sink rate of the changed token, less {what}",
        Expect.MORE,
      ),
    ),
  )


def _takes(result: Result) -> Claim:
  plain, taken, control = (
    rate_at(_rates(result, case), 0)
    for case in (Case.PLAIN, Case.AVERAGE, Case.CONTROL)
  )
  others = rate_elsewhere(_rates(result, Case.AVERAGE))
  return Claim(
    id="average_takes_sink",
    claim="If attention writes to the first token what it writes to others on "
    "average, the first token is the sink of fewer heads.",
    source=SOURCE,
    paper=PAPER,
    ours=f"sink rate of the first token {_text(result, plain)}, "
    f"{_text(result, taken)} with the average, {_text(result, control)} with "
    f"it in another token; of others {_text(result, others)}",
    effect=_share(
      result,
      taken - plain,
      "sink rate of the first token with the average in place of what "
      "attention writes to it, less that of the unchanged model",
      Expect.LESS,
    ),
    how="average over texts and tokens after the first, so that no token sees "
    f"its future; layers 0 to {result.numbers['rise']}",
    provided=(
      _share(
        result,
        taken - control,
        f"the same, less that with the average in token {result.config.at - 1}",
        Expect.LESS,
      ),
    ),
  )


def _shared(result: Result) -> Claim:
  plain, made = (
    rate_at(_rates(result, case), 0) for case in (Case.PLAIN, Case.ALONE)
  )
  return Claim(
    id="second_sink_takes_from_first",
    claim="Beside a token that sees nothing but itself, the first token is the "
    "sink of fewer heads.",
    source="ours",
    paper="no number",
    ours=f"sink rate of the first token {_text(result, plain)}, beside the "
    f"second sink {_text(result, made)}",
    effect=_share(
      result,
      made - plain,
      "sink rate of the first token beside the second sink, less that of the "
      "unchanged model",
      Expect.LESS,
    ),
  )


def _loss(result: Result) -> Claim:
  loss = [
    result.arrays[f"loss, {case}"].astype(float)
    for case in (Case.PLAIN, Case.ALONE, Case.NEIGHBOUR)
  ]
  more, control = (by_template(x - loss[0], result.numbers) for x in loss[1:])
  return Claim(
    id="second_sink_costs_nothing",
    claim="A second sink leaves the loss of other tokens the same.",
    source="ours",
    paper="no number",
    ours=f"the loss changes by {mean_of(more).text('+.3f', ' nats')}, for a "
    "token that sees the one before it alone by "
    f"{mean_of(control).text('+.3f', ' nats')}",
    effect=effect(
      more,
      "loss with a token that sees nothing but itself, less that of the "
      "unchanged model",
      NATS,
      Expect.SAME,
    ),
    how="without what this token itself predicts",
    provided=(
      # What makes no sink says nothing about the cost of one.
      _share(
        result,
        _token(result, Case.ALONE) - _token(result, Case.PLAIN),
        "sink rate of the token that sees itself alone, less that of the same "
        "token unchanged",
        Expect.MORE,
      ),
    ),
  )
