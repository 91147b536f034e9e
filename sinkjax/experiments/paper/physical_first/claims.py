"""Whether the sink goes with the order, with index 0 or with BOS."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import SHARE, Effect, Expect, effect
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.paper.physical_first.experiment import Case
from sinkjax.experiments.shared.key_rates import rate_at, rate_elsewhere
from sinkjax.experiments.shared.text_batches import by_template

SOURCES = "2504.02732, 2410.10781"
PAPER = "no number for a trained model"


def claims(result: Result) -> list[Claim]:
  """Three on indices, two on BOS."""
  return [
    _shifted(result),
    _first_not_zero(
      result,
      Case.SWAPPED,
      "sink_is_first_not_index_0",
      "If the first token and another exchange their position indices, the "
      "sink is on the token that stands first.",
      f"token {result.config.at} has index 0",
    ),
    _first_not_zero(
      result,
      Case.PERMUTED,
      "sink_is_first_in_any_order",
      "If all position indices are permuted, the sink is on the token that "
      "stands first, not on the one at index 0.",
      "a permutation of its own for each text",
    ),
    _first_not_bos(result),
    _bos_alone(result),
  ]


def _rates(result: Result, case: Case) -> np.ndarray:
  return result.arrays[f"rates, {case}"].astype(float)


def _units(result: Result, values: np.ndarray) -> np.ndarray:
  return by_template(values, result.numbers)


def _text(result: Result, values: np.ndarray) -> str:
  return mean_of(_units(result, 100 * values)).text(".1f", " %")


def _share(
  result: Result, values: np.ndarray, what: str, expect: Expect
) -> Effect:
  return effect(_units(result, values), what, SHARE, expect)


def _missing(result: Result, case: Case) -> str:
  if case in result.numbers["cases"]:
    return ""
  if case in (Case.BOS_FIRST, Case.BOS_MOVED):
    return "this model's tokenizer has no BOS"
  return "this model has no positions"


def _shifted(result: Result) -> Claim:
  head = (
    "sink_needs_no_index_0",
    "With all position indices shifted, so that no token has index 0, the "
    "first token is the sink of as many heads.",
    SOURCES,
    PAPER,
  )
  if why := _missing(result, Case.SHIFTED):
    return Claim(*head, "not measured", None, untested=why)
  plain, shifted = (
    rate_at(_rates(result, case), 0) for case in (Case.PLAIN, Case.SHIFTED)
  )
  return Claim(
    *head,
    f"sink rate {_text(result, plain)}, shifted {_text(result, shifted)}",
    _share(
      result,
      shifted - plain,
      "sink rate of the first token with indices shifted, less that of the "
      "unchanged model",
      Expect.SAME,
    ),
    f"indices from {result.config.shift} on; rotary and ALiBi scores depend on "
    "distances alone, so this is a test for learned positions and a check for "
    "the others",
    (
      # Without a sink there is nothing that could stay.
      _share(
        result,
        shifted - rate_elsewhere(_rates(result, Case.SHIFTED)),
        "sink rate of the first token with indices shifted, less the mean of "
        "others",
        Expect.MORE,
      ),
    ),
  )


def _first_not_zero(
  result: Result, case: Case, id: str, claim: str, how: str
) -> Claim:
  head = (id, claim, SOURCES, PAPER)
  if why := _missing(result, case):
    return Claim(*head, "not measured", None, untested=why)
  rates, zero = _rates(result, case), result.arrays[f"zero, {case}"]
  first, moved = rate_at(rates, 0), rate_at(rates, zero)
  others = rate_elsewhere(rates, zero)
  return Claim(
    *head,
    f"sink rate of the first token {_text(result, first)}, of the token at "
    f"index 0 {_text(result, moved)}, of others {_text(result, others)}",
    _share(
      result,
      first - moved,
      "sink rate of the token that stands first, less that of the token at "
      "index 0",
      Expect.MORE,
    ),
    f"{how}; the causal mask is that of the order",
    (
      _share(
        result,
        first - others,
        "sink rate of the token that stands first, less the mean of others",
        Expect.MORE,
      ),
    ),
  )


def _first_not_bos(result: Result) -> Claim:
  head = (
    "sink_is_first_not_bos",
    "With BOS in the middle of a text, the sink is on the token that stands "
    "first, not on BOS.",
    SOURCES,
    PAPER,
  )
  if why := _missing(result, Case.BOS_MOVED):
    return Claim(*head, "not measured", None, untested=why)
  at, rates = result.config.at, _rates(result, Case.BOS_MOVED)
  first, bos = rate_at(rates, 0), rate_at(rates, at)
  start = rate_at(_rates(result, Case.BOS_FIRST), 0)
  return Claim(
    *head,
    f"sink rate of the first token {_text(result, first)}, of BOS at position "
    f"{at} {_text(result, bos)}; of BOS where it stands first "
    f"{_text(result, start)}",
    _share(
      result,
      first - bos,
      "sink rate of the token that stands first, less that of BOS",
      Expect.MORE,
    ),
    "the texts without BOS at their start",
  )


def _bos_alone(result: Result) -> Claim:
  head = (
    "bos_in_the_middle_is_no_sink",
    "BOS in the middle of a text is the sink of no more heads than other "
    "tokens are.",
    SOURCES,
    PAPER,
  )
  if why := _missing(result, Case.BOS_MOVED):
    return Claim(*head, "not measured", None, untested=why)
  at, rates = result.config.at, _rates(result, Case.BOS_MOVED)
  bos, others = rate_at(rates, at), rate_elsewhere(rates, at)
  # What stands at this place without it, as a control of the place.
  there = rate_at(_rates(result, Case.BOS_FIRST), at)
  return Claim(
    *head,
    f"sink rate {_text(result, bos)}, of others {_text(result, others)}, of "
    f"the word that stands there otherwise {_text(result, there)}",
    _share(
      result,
      bos - others,
      "sink rate of BOS in the middle, less the mean of others after the first",
      Expect.NOT_MORE,
    ),
    f"at position {at}",
  )
