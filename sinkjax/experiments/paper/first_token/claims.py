"""What BOS and the sink are worth on tasks and needles."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  UNTESTED,
  Claim,
  Result,
  direction,
)
from sinkjax.experiments.paper.first_token.experiment import (
  Condition,
  over_items,
)

SOURCE = "section 5, table 3"

Answers = Mapping[Condition, np.ndarray]
"""Whether each answer was right, [N] by condition."""


def claims(result: Result) -> list[Claim]:
  """Accuracy without BOS, then accuracy and needles without the sink."""
  numbers = result.numbers
  right = _answers(result, "right", list(numbers["items"]))
  found = _answers(result, "found", numbers["lengths"])
  return [
    _bos(result, right),
    _sink(
      result,
      right,
      id="accuracy_without_sink",
      claim="Removing the sink in the later layers lowers the accuracy on "
      "multiple-choice tasks.",
      paper="no number",
      what="accuracy",
      note=f"{sum(numbers['items'].values())} items",
    ),
    _sink(
      result,
      found,
      id="needles_without_sink",
      claim="Removing the sink in the later layers makes the model find fewer "
      "needles in a long text.",
      paper="RULER, 4096 tokens: 82.57 to 0.00 % without BOS (Gemma 7B)",
      what="needles found",
      note=f"chance {100 * numbers['chance_of_a_needle']:.1f} %",
    ),
  ]


def _answers(result: Result, what: str, parts: list[str | int]) -> Answers:
  """Of all tasks, or of all lengths, by condition; none without any part."""
  return {
    Condition(name): np.concatenate(
      [result.arrays[f"{what} {part}, {name}"] for part in parts]
    ).astype(float)
    for name in result.numbers["tasks"]
    if parts
  }


def _chance(result: Result) -> np.ndarray:
  """How often a guess is right, for each item of all tasks.

  Files recorded before lack it by item; they have each task's mean.
  """
  means = {row["task"]: row["chance"] for row in result.records("tasks.csv")}
  return np.concatenate(
    [
      result.arrays.get(f"chance {task}", np.full(count, means[task]))
      for task, count in result.numbers["items"].items()
    ]
  )


def _percent(values: np.ndarray) -> str:
  return over_items(values).scaled(100).text(".1f", " %")


def _bos(result: Result, right: Answers) -> Claim:
  """A claim that is tested where the model's texts start with BOS."""
  own, chance = Condition(result.numbers["own"]), _chance(result)
  verdict = UNTESTED
  why = f"the texts of {result.model} do not start with BOS"
  if own is Condition.BOS:
    # Above zero where less than half of what is above chance is left.
    left = (right[own] - chance) / 2 - (right[Condition.NO_BOS] - chance)
    mean = over_items(left)
    verdict = direction(mean.low, mean.high)
    why = "agrees if less than half of what is above chance is left"
  shown = "; ".join(
    f"{name} {_percent(right[name])}"
    for name in (Condition.BOS, Condition.NO_BOS)
    if name in right
  )
  return Claim(
    id="accuracy_without_bos",
    claim="Without the BOS that training put first, accuracy falls to chance.",
    source=SOURCE,
    paper="HellaSwag 80.61 to 27.35 %, ARC-Easy 80.77 to 28.49 (Gemma 7B)",
    ours=f"accuracy: {shown}; chance {100 * chance.mean():.1f} %",
    verdict=verdict,
    why=why,
  )


def _sink(
  result: Result,
  answers: Answers,
  *,
  id: str,
  claim: str,
  paper: str,
  what: str,
  note: str,
) -> Claim:
  """A claim that hiding the sink costs more than hiding its neighbour."""
  if not answers:
    ours, verdict = "not measured", UNTESTED
    why = "the model's context is shorter than every text"
  else:
    own = answers[Condition(result.numbers["own"])]
    hidden, control = answers[Condition.HIDDEN], answers[Condition.CONTROL]
    ours = (
      f"{what}: {_percent(own)} to {_percent(hidden)} with position 0 hidden "
      f"from layer {result.numbers['from_layer']} on; {_percent(control)} with "
      "position 1 hidden instead"
    )
    verdict = _falls(own - hidden, control - hidden)
    why = (
      f"{note}; agrees if the falls from the unchanged model and from the "
      "control are both above 0"
    )
  return Claim(id, claim, SOURCE, paper, ours, verdict, why)


def _falls(from_own: np.ndarray, from_control: np.ndarray) -> str:
  """The verdict on two falls, of which the control's comes first."""
  lost, more = over_items(from_own), over_items(from_control)
  verdict = direction(more.low, more.high)
  if verdict == AGREES and lost.low <= 0:
    return DISAGREES if lost.high < 0 else UNDECIDED
  return verdict
