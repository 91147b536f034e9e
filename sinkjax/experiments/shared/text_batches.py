"""Texts of equal length, batches of them of one shape, independent texts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim, Subject
from sinkjax.experiments.harness.stats import group_means
from sinkjax.experiments.shared.prompt_corpus import ALIKE, Text, texts_for


def texts_of_length(
  subject: Subject,
  texts: Sequence[Text] | None,
  count: int,
  tokens: int,
  seed: int,
  *,
  fewest: int = 0,
) -> np.ndarray:
  """[P, T] the first `tokens` ids of every text that has as many.

  Args:
    subject: whose tokenizer and prefix.
    texts: to choose from; `None` for the user's, or `count` of each domain.
    count: texts of each domain.
    tokens: T, the prefix counted.
    seed: of the choice.
    fewest: texts that are needed.

  Raises:
    ValueError: for fewer.
  """
  texts = texts_for(subject, texts, count, seed)
  rows = subject.encode([text.text for text in texts])
  ids = [row[:tokens] for row in rows if len(row) >= tokens]
  if len(ids) < fewest:
    raise ValueError(
      f"{len(ids)} texts have {tokens} tokens; at least {fewest} are needed"
    )
  # Also of none, which has no rows to take the length from.
  return np.array(ids, int).reshape(len(ids), tokens)


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


def templates_of(ids: np.ndarray, skipped: int = 0) -> list[int]:
  """[P] the first text of [P, T] that begins as each does.

  Pages from one template depend on each other and count as one text.

  Args:
    ids: of the texts.
    skipped: tokens before each, of a chat template, which all texts share.

  >>> same = [5] * 8
  >>> templates_of(np.array([[*same, 1], [4] * 9, [*same, 2]]))
  [0, 1, 0]
  """
  starts = [
    tuple(row[skipped : skipped + ALIKE]) for row in np.asarray(ids).tolist()
  ]
  return [starts.index(start) for start in starts]


def by_template(values: np.ndarray, numbers: Mapping[str, Any]) -> np.ndarray:
  """[n] values [P] of texts, those of one template averaged.

  Args:
    values: of each text.
    numbers: of a result, with "templates" of `templates_of`. Older files may
      have the texts' origins instead; where there are neither, each text
      counts.

  >>> by_template(np.array([1.0, 2.0, 5.0]), {"templates": [0, 1, 0]}).tolist()
  [3.0, 2.0]
  """
  groups = numbers.get("templates")
  if groups is None:
    origins = numbers.get("origins", [""] * len(values))
    # The pages of pydoc are the texts of the corpus that share a template.
    groups = [
      -1 if origin.startswith("pydoc: ") else i
      for i, origin in enumerate(origins)
    ]
  return group_means(values, groups)


def with_units(
  claims: Sequence[Claim], numbers: Mapping[str, Any]
) -> list[Claim]:
  """The claims, those over texts with a remark where `by_template` is blind.

  Args:
    claims: of one result.
    numbers: of that result.
  """
  if "templates" in numbers or "origins" in numbers:
    return list(claims)
  # Pages of one template agree with each other, so intervals are too narrow.
  note = (
    "this file does not tell which texts share a template, so each text counts"
  )
  return [
    dataclasses.replace(one, how=f"{one.how}; {note}" if one.how else note)
    if getattr(one.effect, "per", "") == "text"
    else one
    for one in claims
  ]
