"""Texts of equal length, and batches of them of one shape."""

from collections.abc import Iterator, Sequence

import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.prompt_corpus import Text, gather


def texts_of_length(
  subject: Subject,
  texts: Sequence[Text] | None,
  count: int,
  tokens: int,
  seed: int,
) -> list[list[int]]:
  """The first `tokens` ids of every text that has as many.

  Args:
    subject: whose tokenizer and prefix.
    texts: to choose from; `None` for `count` of each domain of `gather`.
    count: texts of each domain.
    tokens: T, the prefix counted.
    seed: of the choice.
  """
  texts = gather(count, seed) if texts is None else texts
  rows = [subject.prefix + subject.tokenizer.encode(x.text) for x in texts]
  return [row[:tokens] for row in rows if len(row) >= tokens]


def batches(
  ids: np.ndarray, batch: int
) -> Iterator[tuple[int, int, np.ndarray]]:
  """(start, count, rows [batch, T]) of [P, T]: one shape, one compilation.

  The last batch is filled up with its own rows; its first `count` are real.

  >>> [(at, n, rows.shape) for at, n, rows in batches(np.zeros((5, 3)), 4)]
  [(0, 4, (4, 3)), (4, 1, (4, 3))]
  """
  for start in range(0, len(ids), batch):
    # np.resize repeats the rows, so the filling is text like any other.
    part = ids[start : start + batch]
    yield start, len(part), np.resize(part, (batch, ids.shape[1]))
