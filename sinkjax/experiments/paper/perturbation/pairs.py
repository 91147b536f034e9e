"""Pairs of texts that differ in one swapped word, as tokens."""

from typing import NamedTuple

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.swap_texts import parse_swaps

FIRST_PLACE = 3
"""A swap must be at this position of the text or later, after the sink and the
control."""

AFTER = 4
"""So many tokens must follow it, or its spread is a mean of next to none."""


class Pair(NamedTuple):
  """Two texts of equal length in tokens that differ in one place.

  Attributes:
    text: number of the text.
    words: what was swapped.
    ids: of the text as it stands.
    changed: of the text with the swap.
    first: the first position that differs.
    last: the last one.
  """

  text: int
  words: tuple[str, str]
  ids: list[int]
  changed: list[int]
  first: int
  last: int


def pairs_of(subject: Subject, texts: str) -> tuple[list[Pair], int]:
  """The swaps that change no token count, and how many others there are."""
  pairs, others, swaps = [], 0, parse_swaps(texts)
  before = subject.encode([swap.before for swap in swaps])
  after = subject.encode([swap.after for swap in swaps])
  for swap, ids, changed in zip(swaps, before, after, strict=True):
    # The lengths may differ here: such a swap is dropped below.
    differ = [
      i for i, (a, b) in enumerate(zip(ids, changed, strict=False)) if a != b
    ]
    if (
      len(ids) != len(changed)
      or not differ
      or differ[0] < FIRST_PLACE + len(subject.prefix)
      or len(ids) - 1 - differ[-1] < AFTER
    ):
      others += 1
      continue
    pairs.append(
      Pair(swap.text, swap.words, ids, changed, differ[0], differ[-1])
    )
  return pairs, others
