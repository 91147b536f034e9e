"""What runs measured on their way, as one table and arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Histories(NamedTuple):
  """Of M models with S seeds each, at K steps.

  Attributes:
    names: of what was measured.
    steps: [K].
    arrays: {name: [M, S, K]}.
    table: (header, rows), a row for each run and step.
  """

  names: list[str]
  steps: list[int]
  arrays: dict[str, np.ndarray]
  table: tuple[list[str], list[list[Any]]]


def histories(
  found: Sequence[Mapping[str, Any]], about: Sequence[str], seeds: int
) -> Histories:
  """Of outcomes whose "history" has rows {"step", name: scalar}.

  Args:
    found: of `jobs.run_jobs`, all seeds of a model in a row.
    about: what of a run's request stands in the table.
    seeds: S.
  """
  names = [key for key in found[0]["history"][0] if key != "step"]
  steps = [row["step"] for row in found[0]["history"]]
  rows = [
    [*(one["request"][key] for key in about), row["step"],
     *(row[name] for name in names)]
    for one in found
    for row in one["history"]
  ]  # fmt: skip
  arrays = {
    name: np.array(
      [[row[name] for row in one["history"]] for one in found]
    ).reshape(-1, seeds, len(steps))
    for name in names
  }
  return Histories(names, steps, arrays, ([*about, "step", *names], rows))
