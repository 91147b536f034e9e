"""What BOS and the sink are worth on tasks and needles."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import SHARE, Effect, Expect, effect
from sinkjax.experiments.harness.stats import Mean, sign_flip, student
from sinkjax.experiments.paper.first_token.experiment import Condition

SOURCE = "section 5, table 3"

Answers = Mapping[Condition, np.ndarray]
"""The share of right answers of each unit, [N] by condition."""


def claims(result: Result) -> list[Claim]:
  """Accuracy without BOS, then accuracy and needles without the sink."""
  numbers = result.numbers
  right = _answers(result, "right", list(numbers["items"]))
  found = _by_haystack(result)
  return [
    _bos(result, right),
    _sink(
      result,
      right,
      per="item",
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
      per="haystack",
      id="needles_without_sink",
      claim="Removing the sink in the later layers makes the model find fewer "
      "needles in a long text.",
      paper="RULER, 4096 tokens: 82.57 to 0.00 % without BOS (Gemma 7B)",
      what="needles found",
      note=f"{numbers['needles']} needles to a haystack, chance "
      f"{100 * numbers['chance_of_a_needle']:.1f} %",
    ),
  ]


def _answers(result: Result, what: str, parts: list[str | int]) -> Answers:
  """Of all tasks, or of all lengths, by condition; none without any part."""
  # Shares as numbers: NumPy does not subtract booleans.
  return {
    Condition(name): np.concatenate(
      [result.arrays[f"{what} {part}, {name}"] for part in parts]
    ).astype(float)
    for name in result.numbers["tasks"]
    if parts
  }


def _by_haystack(result: Result) -> Answers:
  """The share of each haystack's needles that were found.

  Needles of one haystack stand in one text, and are asked for in one pass.
  """
  numbers = result.numbers
  found = _answers(result, "found", numbers["lengths"])
  return {
    name: one.reshape(-1, numbers["needles"]).mean(axis=1)
    for name, one in found.items()
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


def _interval(values: np.ndarray) -> Mean:
  """`mean_of` for what is shown alone, without its test."""
  value, half = map(float, student(values))
  return Mean(value, value - half, value + half, len(values), np.nan)


def _bos(result: Result, right: Answers) -> Claim:
  """A claim that is tested where the model's texts start with BOS."""
  numbers, own = result.numbers, Condition(result.numbers["own"])
  made, provided = None, ()
  if own is Condition.BOS:
    chance = _chance(result)
    above, left = (right[x] - chance for x in (own, Condition.NO_BOS))
    made = _share(
      above / 2 - left,
      "half of what accuracy with BOS is above chance, less what it is above "
      "chance without",
      Expect.MORE,
      "item",
    )
    # A model that only guesses has nothing to lose.
    provided = (
      _share(above, "accuracy with BOS above chance", Expect.MORE, "item"),
    )
  shown = "; ".join(
    f"{name} {_percent(numbers['tasks'], name)}"
    for name in (Condition.BOS, Condition.NO_BOS)
    if name in right
  )
  return Claim(
    id="accuracy_without_bos",
    claim="Without the BOS that training put first, accuracy loses more than "
    "half of what it is above chance.",
    source=SOURCE,
    paper="HellaSwag 80.61 to 27.35 %, ARC-Easy 80.77 to 28.49 (Gemma 7B)",
    ours=f"accuracy: {shown}; chance {100 * numbers['chance']:.1f} %",
    effect=made,
    how="endings compared by their log-likelihood a byte",
    provided=provided,
    untested=""
    if made
    else f"the texts of {result.model} do not start with BOS",
  )


def _share(values: np.ndarray, what: str, expect: Expect, per: str) -> Effect:
  # Most items have the same answer under both conditions. A zero changes no
  # sum, whatever its sign, and a thousand of them would take seconds.
  mean = _interval(values)._replace(p=sign_flip(values[values != 0]))
  return effect(mean, what, SHARE, expect, per=per)


def _sink(
  result: Result,
  answers: Answers,
  *,
  per: str,
  id: str,
  claim: str,
  paper: str,
  what: str,
  note: str,
) -> Claim:
  """A claim that hiding the sink costs more than hiding its neighbour."""
  own = Condition(result.numbers["own"])
  shares = [
    answers[x]
    for x in (own, Condition.HIDDEN, Condition.CONTROL)
    if x in answers
  ]
  # An interval over haystacks needs two of them.
  if not shares or len(shares[0]) < 2:
    ours = ", ".join(f"{100 * x.mean():.1f} %" for x in shares)
    untested = "the model's context is shorter than every text"
    if shares:
      untested = f"a single {per} has no interval"
    ours = ours or "not measured"
    return Claim(id, claim, SOURCE, paper, ours, None, note, (), untested)
  before, hidden, control = shares
  shown = [_interval(x).scaled(100).text(".1f", " %") for x in shares]
  return Claim(
    id,
    claim,
    SOURCE,
    paper,
    f"{what}: {shown[0]} unchanged; {shown[1]} with position 0 hidden from "
    f"layer {result.numbers['from_layer']} on; {shown[2]} with position 1 "
    "hidden instead",
    _share(
      hidden - before,
      f"{what} with position 0 hidden, less that of the unchanged model",
      Expect.LESS,
      per,
    ),
    note,
    # To hide any token costs something: what counts is what hiding the sink
    # costs beyond that.
    (
      _share(
        hidden - control,
        f"{what} with position 0 hidden, less that with position 1 hidden",
        Expect.LESS,
        per,
      ),
    ),
  )
