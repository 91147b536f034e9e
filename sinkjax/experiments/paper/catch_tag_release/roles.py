"""Whose tags are measured: sinks, and another token beside each."""

import enum
from typing import NamedTuple

import numpy as np

START = 8
"""Queries that count stand at this position or later; the token that position 0
is compared with stands before it."""

FEWEST = 16
"""Queries behind a found sink, at least: variance of fewer is mostly noise."""


class Role(enum.StrEnum):
  """Keys whose tags are measured; the values are keys of recorded results."""

  FIRST = "position 0"
  OTHER = "another early token"
  FOUND = "found sink"
  NEAR = "token beside the found sink"


class Placed(NamedTuple):
  """Where the roles stand.

  Attributes:
    keys: [R, P] position by role and text; 0 where a text has no found sink.
    queries: [R, P, T] bool, the later tokens; none where there is no sink.
  """

  keys: np.ndarray
  queries: np.ndarray

  def having(self, role: Role) -> np.ndarray:
    """[n] the texts that have the role."""
    return np.flatnonzero(self.queries[list(Role).index(role)].any(axis=-1))


def place(sinks: np.ndarray, seed: int, skipped: int = 0) -> Placed:
  """A position for every role in every text.

  Position 0 is compared with a token at random before `START` that is no sink;
  the first sink behind position 0 with the nearest token that is none, the
  earlier of two. Compared roles have the same queries.

  Args:
    sinks: [P, T] bool, of `find_sinks`.
    seed: of the choice.
    skipped: tokens before each text, of a chat template.

  >>> sinks = np.zeros((1, 40), bool)
  >>> sinks[0, [0, 12]] = True
  >>> placed = place(sinks, 0)
  >>> placed.keys[[0, 2, 3], 0].tolist(), placed.queries.sum(axis=-1)[:, 0]
  ([0, 12, 11], array([32, 32, 27, 27]))
  """
  texts, length = sinks.shape
  start, rng = START + skipped, np.random.default_rng(seed)
  keys = np.zeros((len(Role), texts), int)
  queries = np.zeros((len(Role), texts, length), bool)
  queries[:2, :, start:] = True
  for text, mask in enumerate(sinks):
    plain = np.flatnonzero(~mask[1:]) + 1
    early = plain[plain < start]
    # A text of sinks alone has no other token to compare with.
    keys[1, text] = rng.choice(early) if early.size else 1
    later = np.flatnonzero(mask[1 : length - FEWEST]) + 1
    if not later.size or not plain.size:
      continue
    sink = later[0]
    near = plain[np.argmin(np.abs(plain - sink))]
    behind = max(sink, near) + 1
    if length - behind < FEWEST:
      continue
    keys[2:, text] = sink, near
    queries[2:, text, behind:] = True
  return Placed(keys, queries)
