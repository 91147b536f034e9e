"""What BOS and the sink are worth on tasks and needles."""

from collections.abc import Mapping
from typing import Any

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
from sinkjax.experiments.harness.stats import Mean, student
from sinkjax.experiments.paper.first_token.experiment import Condition

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
      numbers["tasks"],
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
      numbers["found"],
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


def _percent(means: Mapping[str, Any], name: Condition) -> str:
  """A stored share of right answers."""
  return Mean.read(means[name]).scaled(100).text(".1f", " %")


def _interval(values: np.ndarray) -> tuple[float, float]:
  """95 % over items; without the sign-flip test, which takes seconds."""
  mean, half = student(values)
  return float(mean - half), float(mean + half)


def _bos(result: Result, right: Answers) -> Claim:
  """A claim that is tested where the model's texts start with BOS."""
  numbers, own = result.numbers, Condition(result.numbers["own"])
  verdict = UNTESTED
  why = f"the texts of {result.model} do not start with BOS"
  if own is Condition.BOS:
    chance = _chance(result)
    # Above zero where less than half of what is above chance is left.
    left = (right[own] - chance) / 2 - (right[Condition.NO_BOS] - chance)
    verdict = direction(*_interval(left))
    why = "agrees if less than half of what is above chance is left"
  shown = "; ".join(
    f"{name} {_percent(numbers['tasks'], name)}"
    for name in (Condition.BOS, Condition.NO_BOS)
    if name in right
  )
  return Claim(
    id="accuracy_without_bos",
    claim="Without the BOS that training put first, accuracy falls to chance.",
    source=SOURCE,
    paper="HellaSwag 80.61 to 27.35 %, ARC-Easy 80.77 to 28.49 (Gemma 7B)",
    ours=f"accuracy: {shown}; chance {100 * numbers['chance']:.1f} %",
    verdict=verdict,
    why=why,
  )


def _sink(
  result: Result,
  answers: Answers,
  means: Mapping[str, Any],
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
    own = Condition(result.numbers["own"])
    shares = (own, Condition.HIDDEN, Condition.CONTROL)
    before, hidden, control = (_percent(means, name) for name in shares)
    ours = (
      f"{what}: {before} unchanged; {hidden} with position 0 hidden from layer "
      f"{result.numbers['from_layer']} on; {control} with position 1 hidden "
      "instead"
    )
    verdict = _falls(*(answers[name] for name in shares))
    why = (
      f"{note}; agrees if the falls from the unchanged model and from the "
      "control are both above 0"
    )
  return Claim(id, claim, SOURCE, paper, ours, verdict, why)


def _falls(own: np.ndarray, hidden: np.ndarray, control: np.ndarray) -> str:
  """The verdict on two falls, of which that from the control comes first."""
  verdict = direction(*_interval(control - hidden))
  low, high = _interval(own - hidden)
  if verdict == AGREES and low <= 0:
    return DISAGREES if high < 0 else UNDECIDED
  return verdict
