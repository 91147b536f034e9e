"""What an experiment hands over: claims and verdicts, numbers and tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

AGREES, DISAGREES = "agrees", "disagrees"
UNDECIDED, UNTESTED = "undecided", "cannot be tested"
VERDICTS = (AGREES, DISAGREES, UNDECIDED, UNTESTED)


class Subject(NamedTuple):
  """The model that is experimented on.

  Attributes:
    name: as the user named it.
    params: its parameters, or weights read layer by layer.
    cfg: its config.
    tokenizer: its tokenizer.
    prefix: ids put before every text.
  """

  name: str
  params: Any
  cfg: Any
  tokenizer: Any
  prefix: list[int]

  def has_bos(self) -> bool:
    """Whether texts start with BOS."""
    return bool(self.prefix) and self.prefix[0] == self.tokenizer.bos_id


@dataclasses.dataclass(frozen=True)
class Claim:
  """A sentence of the paper beside what was measured.

  Attributes:
    claim: the sentence, in our words.
    source: section, figure or table.
    paper: its figure, with the model; "no number" for a picture.
    ours: what was measured, in words, with its interval.
    verdict: one of `VERDICTS`.
    why: what decides; for what cannot be tested, the reason.
  """

  claim: str
  source: str
  paper: str
  ours: str
  verdict: str
  why: str

  def __post_init__(self):
    if self.verdict not in VERDICTS:
      raise ValueError(
        f"verdict must be one of {list(VERDICTS)}, got {self.verdict!r}"
      )


@dataclasses.dataclass(frozen=True)
class Result:
  """One experiment's outcome.

  Attributes:
    name: of the experiment.
    title: of its part of the report.
    claims: what it says of the paper.
    numbers: plain values, for result.json.
    tables: {file name: (header, rows)}, one beside each figure.
    arrays: what figures are drawn from, for arrays.npz.
  """

  name: str
  title: str
  claims: Sequence[Claim]
  numbers: dict[str, Any]
  tables: dict[str, tuple[list[str], list[list[Any]]]]
  arrays: dict[str, np.ndarray]


def direction(low: float, high: float) -> str:
  """The verdict on "greater than zero" by an interval.

  >>> direction(0.1, 0.3), direction(-2, -1), direction(-0.1, 0.2)
  ('agrees', 'disagrees', 'undecided')
  """
  if low > 0:
    return AGREES
  return DISAGREES if high < 0 else UNDECIDED
