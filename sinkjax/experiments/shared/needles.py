"""Needles in a haystack: single sentences to be found again in a long text.

The haystack is made of the sentences of `swap_texts.SWAP_TEXTS`, repeated in
another order each time. Between them stand sentences such as "The password of
Lisbon is copper." Each is asked for at the end, in a branch of its own: the
answer is the most probable of all the passwords in the text.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS, parse_swaps
from sinkjax.transforms.branches import Row, branch_row, split_endings

PLACES = (
  "Lisbon",
  "Cairo",
  "Oslo",
  "Lima",
  "Delhi",
  "Rome",
  "Paris",
  "Tokyo",
  "Berlin",
  "Madrid",
  "Vienna",
  "Dublin",
  "Athens",
  "Moscow",
  "Boston",
  "Seattle",
  "Chicago",
  "Denver",
  "Sydney",
  "Toronto",
  "Havana",
  "Prague",
  "Warsaw",
  "Geneva",
  "Kyoto",
  "Milan",
  "Dallas",
  "Houston",
  "Manila",
  "Nairobi",
  "Tehran",
  "Baghdad",
)
WORDS = (
  "copper",
  "river",
  "candle",
  "garden",
  "winter",
  "silver",
  "orange",
  "pepper",
  "bridge",
  "mirror",
  "window",
  "button",
  "castle",
  "forest",
  "guitar",
  "hammer",
  "island",
  "jacket",
  "kitchen",
  "ladder",
  "market",
  "needle",
  "ocean",
  "pencil",
  "rabbit",
  "shadow",
  "table",
  "umbrella",
  "valley",
  "wagon",
  "yellow",
  "zebra",
  "apple",
  "bread",
  "cloud",
  "dragon",
  "engine",
  "feather",
  "glass",
  "honey",
  "iron",
  "jungle",
  "king",
  "lemon",
  "mountain",
  "night",
  "oil",
  "paper",
  "queen",
  "rain",
  "stone",
  "tiger",
  "village",
  "water",
)

FILLER = tuple(
  line.strip(".") + "."
  # All swaps of a text have the same original; the dictionary keeps one.
  for text in {x.text: x.before for x in parse_swaps(SWAP_TEXTS)}.values()
  for line in text.split(". ")
)
BEFORE = 4
"""Sentences before the first needle: the text is cut to its length in these,
so that no needle is lost."""

LONGEST = 40
"""Tokens of a sentence, at most: a text that lacks so many needs one more."""


class Haystack(NamedTuple):
  """A long text with its questions.

  Attributes:
    row: the text and, as branches, the questions; T tokens in all.
    asked: [Q] index of each question's last token.
    choices: [Q] id of the first token of each password; question i asks for
      password i.
    depth: [Q] where its sentence starts, as a share of the text.
    unknown: [U] index of the last token of questions about places that are not
      in the text.
  """

  row: Row
  asked: np.ndarray
  choices: np.ndarray
  depth: np.ndarray
  unknown: np.ndarray


def sentence(place: str, word: str) -> str:
  """The needle.

  >>> sentence("Oslo", "river")
  'The password of Oslo is river.'
  """
  return f"The password of {place} is {word}."


def _question(place: str) -> str:
  return f"\n{sentence(place, '').split(' .')[0]}"


def _answers(
  subject: Subject, rng: random.Random, count: int
) -> tuple[list[int], list[str]]:
  """The different first tokens of `count` words, and the words."""
  by_token: dict[int, str] = {}
  encode, stem = subject.tokenizer.encode, _question(PLACES[0])
  for word in rng.sample(WORDS, len(WORDS)):
    # A word is encoded after a question: its first token depends on the space.
    _, (ending,) = split_endings(encode, stem, [f" {word}"])
    # Only the first token of an answer is scored, so a second password with the
    # same one could not be told from the first.
    by_token.setdefault(ending[0], word)
  if len(by_token) < count:
    raise ValueError(
      f"this tokenizer distinguishes {len(by_token)} of the {len(WORDS)} "
      "passwords by their first token; needles must be at most that, got "
      f"{count}"
    )
  return list(by_token)[:count], list(by_token.values())[:count]


def haystack(
  subject: Subject,
  prefix: Sequence[int],
  tokens: int,
  needles: int,
  seed: int,
  unknown: int = 0,
) -> Haystack:
  """A text with needles at even depths, `tokens` long with its questions.

  Args:
    subject: whose tokenizer.
    prefix: ids put first; they count.
    tokens: T.
    needles: Q, at most the number of `PLACES`.
    seed: of the order, the places and the passwords.
    unknown: U, questions about other places, which the text cannot answer.

  Raises:
    ValueError: for more needles and questions than places, or than fit.
  """
  if not 2 <= needles <= len(PLACES):
    raise ValueError(f"needles must be 2 to {len(PLACES)}, got {needles}")
  if not 0 <= unknown <= len(PLACES) - needles:
    raise ValueError(
      f"with {needles} needles, questions without an answer must be at most "
      f"{len(PLACES) - needles}, got {unknown}"
    )
  rng, encode = random.Random(seed), subject.tokenizer.encode
  choices, words = _answers(subject, rng, needles)
  places = rng.sample(PLACES, needles)
  hidden = [sentence(*pair) for pair in zip(places, words, strict=True)]
  others = [place for place in PLACES if place not in places]
  asked_for = [*places, *rng.sample(others, unknown)]
  questions = [_question(place) for place in asked_for]
  _, endings = split_endings(encode, hidden[-1], questions)
  # An estimate: a tokenizer may join the start of a question with the end of
  # the text, and the text is not there yet. `cut` below is exact.
  wanted = tokens - len(prefix) - sum(map(len, endings))
  count, text = BEFORE, _lines(hidden, BEFORE, seed)
  while len(encode(text)) < wanted:
    # No more sentences than are surely missing: what is too much is cut off at
    # the start, and must not reach the first needle.
    count += max(1, (wanted - len(encode(text))) // LONGEST)
    text = _lines(hidden, count, seed)
  context, endings = split_endings(encode, text, questions)
  cut = tokens - len(prefix) - sum(map(len, endings))
  starts = [len(encode(text[: text.index(x)])) for x in hidden]
  lost = len(context) - cut
  if not 0 <= lost <= starts[0]:
    raise ValueError(
      f"{needles} needles and their questions do not fit {tokens} tokens"
    )
  row = branch_row([*prefix, *context[lost:]], endings)
  ends = [
    np.flatnonzero(row.branch == i + 1)[-1] for i in range(len(questions))
  ]
  asked, without = np.split(np.array(ends), [needles])
  depth = (np.array(starts) - lost) / cut
  return Haystack(row, asked, np.array(choices), depth, without)


def _lines(hidden: Sequence[str], count: int, seed: int) -> str:
  """`count` sentences of filler with the needles between them."""
  # The seed starts again at every call, so that a longer text begins with the
  # same sentences as a shorter one.
  rng, lines = random.Random(seed), []
  while len(lines) < count:
    lines += rng.sample(FILLER, len(FILLER))
  lines = lines[:count]
  # From the back: an insertion then moves no place that is still to come.
  for i in reversed(range(len(hidden))):
    lines.insert(BEFORE + i * (count - BEFORE) // len(hidden), hidden[i])
  return " ".join(lines)
