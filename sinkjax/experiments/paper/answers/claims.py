"""Whether attention on the sink tells a right answer, and better than what."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import AUROC, Expect, effect
from sinkjax.experiments.harness.stats import student
from sinkjax.experiments.paper.answers.experiment import (
  FEWEST,
  Score,
  by_haystack,
  by_item,
)

SOURCE = "ours"
PAPER = "no number"
CHANCE = 0.5


def claims(result: Result) -> list[Claim]:
  """Four on multiple choice, three on needles."""
  return [
    _tells(
      result,
      "less_sink_right_answer",
      "Questions that give the sink less attention than others of their task "
      "are answered rightly more often.",
      Score.SINK,
      "item",
    ),
    _tells(
      result,
      "less_sink_beyond_rivals",
      "Questions that give the sink less attention than their length and "
      "surprisal explain are answered rightly more often.",
      Score.BEYOND,
      "item",
    ),
    _better(
      result,
      "sink_over_length",
      "Little attention on the sink tells a right answer better than a short "
      "question does.",
      Score.LENGTH,
      "item",
    ),
    _better(
      result,
      "sink_over_surprisal",
      "Little attention on the sink tells a right answer better than an "
      "unsurprising question does.",
      Score.SURPRISAL,
      "item",
    ),
    _tells(
      result,
      "less_sink_found_needle",
      "Of the needles in a haystack, those whose questions give the sink less "
      "attention are found more often.",
      Score.SINK,
      "haystack",
    ),
    _better(
      result,
      "needle_sink_over_distance",
      "Little attention on the sink tells a needle that is found better than a "
      "short distance does.",
      Score.LENGTH,
      "haystack",
    ),
    _better(
      result,
      "needle_sink_over_surprisal",
      "Little attention on the sink tells a needle that is found better than "
      "an unsurprising question does.",
      Score.SURPRISAL,
      "haystack",
    ),
  ]


def _values(result: Result, score: Score, per: str) -> np.ndarray:
  if per == "haystack":
    return by_haystack(result.arrays, score)
  return by_item(result.numbers, result.arrays, score)


def _untested(result: Result, id: str, sentence: str, per: str) -> Claim:
  why = f"no task has {FEWEST} right and {FEWEST} wrong answers"
  if per == "haystack":
    why = (
      "fewer than two haystacks have needles that were found and others that "
      "were not"
      if result.numbers["haystacks"]
      else f"the model's context is shorter than {result.config.tokens} tokens"
    )
  return Claim(id, sentence, SOURCE, PAPER, "not measured", None, untested=why)


def _area(values: np.ndarray) -> str:
  # Not `mean_of`, whose sign-flip test of a thousand items takes seconds.
  mean, half = student(values)
  return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def _how(per: str) -> str:
  if per == "haystack":
    return "an area within each haystack; mean over the question's tokens"
  return (
    "areas within each task, by DeLong's method; mean over layers, heads and "
    "the tokens of the question without its endings"
  )


def _tells(
  result: Result, id: str, sentence: str, score: Score, per: str
) -> Claim:
  values = _values(result, score, per)
  if len(values) < 2:
    return _untested(result, id, sentence, per)
  text = f"AUROC {_area(values)}"
  if per == "item" and score is Score.SINK:
    last = by_item(result.numbers, result.arrays, Score.LAST)
    text += f", by the question's last token {_area(last)}"
  return Claim(
    id,
    sentence,
    SOURCE,
    PAPER,
    text,
    effect(
      values - CHANCE,
      f"AUROC by which {score} tells a right answer, less 0.5, chance",
      AUROC,
      Expect.MORE,
      per=per,
    ),
    how=_how(per),
  )


def _better(
  result: Result, id: str, sentence: str, rival: Score, per: str
) -> Claim:
  own, other = (_values(result, x, per) for x in (Score.SINK, rival))
  if len(own) < 2:
    return _untested(result, id, sentence, per)
  name = f"a {rival}" if rival is Score.LENGTH else f"an {rival}"
  if per == "haystack" and rival is Score.LENGTH:
    name = "a short distance"
  return Claim(
    id,
    sentence,
    SOURCE,
    PAPER,
    f"AUROC {_area(own)}, of {name} {_area(other)}",
    effect(
      own - other,
      f"AUROC of {Score.SINK}, less that of {name}",
      AUROC,
      Expect.MORE,
      per=per,
    ),
    how=_how(per),
  )
