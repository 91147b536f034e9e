"""What swapped words say about the sink."""

import functools
from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  SHARE,
  Count,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio
from sinkjax.experiments.paper.perturbation.experiment import (
  CONTROL_KEY,
  Condition,
  Contrast,
)

SOURCE = "section 3.1, figure 2"

_ratio = functools.partial(format_ratio, form=".2f")


def _points(mean: Mean) -> str:
  scaled = tuple(100 * x for x in mean[:3])
  return "{:+.1f} ({:+.1f} to {:+.1f}) percentage points".format(*scaled)


def claims(result: Result) -> list[Claim]:
  """The claims of section 3.1, from the stored contrasts."""
  numbers = result.numbers
  contrast = {
    name: Contrast.read(stored) for name, stored in numbers["contrasts"].items()
  }
  last = contrast["log_change_last_layer"]
  return [
    Claim(
      id="earlier_tokens_unchanged",
      claim="Swapping a word leaves every earlier token exactly unchanged.",
      source=SOURCE,
      paper="zero (Gemma 7B)",
      ours=f"exactly 0 in {_texts(numbers)}",
      # Were it otherwise, there would be no result: the experiment stops.
      effect=Count("swaps change an earlier token", 0, numbers["swaps"]),
      how="checked at every layer; the experiment stops if any token differs",
    ),
    _spread(
      numbers,
      last,
      LOG_RATIO,
      id="spread_last_layer",
      claim="Without the sink, a swapped word changes later tokens more at the "
      "last layer.",
      paper="no number; visible in one prompt (Gemma 7B)",
      what="the relative change at the last layer",
    ),
    _spread(
      numbers,
      contrast["log_change_all_layers"],
      LOG_RATIO,
      id="spread_all_layers",
      claim="Without the sink, a swapped word changes later tokens more on "
      "average over the layers.",
      paper="no number; visible from earlier layers on (Gemma 7B)",
      what="the relative change averaged over layers",
    ),
    _spread(
      numbers,
      contrast["reached"],
      SHARE,
      id="spread_reach",
      claim="Without the sink, a swapped word changes a larger share of later "
      f"tokens by more than {100 * numbers['threshold']:g} % of their norm.",
      paper="no number (Gemma 7B)",
      what="in the share of later tokens",
    ),
    _without_bos(result.model, last.over_sink.get(Condition.NO_BOS)),
  ]


def _texts(numbers: Mapping[str, Any]) -> str:
  return f"{numbers['swaps']} swaps in {numbers['texts']} texts"


def _spread(
  numbers: Mapping[str, Any],
  contrast: Contrast,
  unit: Unit,
  *,
  id: str,
  claim: str,
  paper: str,
  what: str,
) -> Claim:
  """A claim that something is more without the sink.

  Args:
    numbers: of the result.
    contrast: of what should be more.
    unit: of its means.
    id: of the claim.
    claim: the sentence.
    paper: what the paper reports.
    what: the measure, in words.
  """
  # Files recorded before lack the position; their texts had one BOS or none.
  position = numbers.get(
    "control_position", CONTROL_KEY + numbers["first_position_is_bos"]
  )
  shown, compared, against = (
    (_ratio, "ratio", "over")
    if unit is LOG_RATIO
    else (_points, "difference", "less")
  )
  sink = contrast.over_sink[Condition.HIDDEN]
  control = contrast.over_sink[Condition.CONTROL]
  beyond = contrast.beyond_control
  measure = what.removeprefix("in ")
  hidden = f"{measure} with position 0 hidden {against} that"
  return Claim(
    id=id,
    claim=claim,
    source=SOURCE,
    paper=paper,
    ours=(
      f"{shown(sink)} {what} with position 0 hidden from layer "
      f"{numbers['from_layer']} on; {shown(control)} with position {position} "
      f"hidden instead; {compared} of the two: {shown(beyond)}"
    ),
    effect=effect(sink, f"{hidden} with the sink", unit, Expect.MORE),
    how=_texts(numbers),
    # What hiding any token does is not the sink's doing.
    provided=(
      effect(
        beyond, f"{hidden} with position {position} hidden", unit, Expect.MORE
      ),
    ),
  )


def _without_bos(model: str | None, change: Mean | None) -> Claim:
  ours, made = "not measured", None
  if change is not None:
    ours = f"{_ratio(change)} the change at the last layer"
    made = effect(
      change,
      "the relative change at the last layer without BOS over that with it",
      LOG_RATIO,
      Expect.MORE,
    )
  return Claim(
    id="spread_without_bos",
    claim="Leaving out the BOS that training put first makes a swapped word "
    "change later tokens more.",
    source=SOURCE,
    paper="no number (Gemma 7B)",
    ours=ours,
    effect=made,
    untested="" if made else f"the texts of {model} do not start with BOS",
  )
