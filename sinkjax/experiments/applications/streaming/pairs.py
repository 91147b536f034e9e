"""The comparisons of two ways to see the text, from the files."""

from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.applications.streaming.config import KEPT
from sinkjax.experiments.applications.streaming.tables import (
  fresh_name,
  start_name,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import Mean, mean_of, pooled

BLOCK_LOSSES = {"window_alone": (0, KEPT), "one_first": (1, KEPT)}
"""First tokens kept in the two caches of the comparisons that are tested for
their sign and whose losses every file has, block by block."""


class Compared(NamedTuple):
  """Two ways to see the same tokens, as the files hold them."""

  gap: Mean
  first: float
  second: float
  tokens: int


def pairs_of(result: Result) -> dict[str, Compared | None]:
  """The comparisons by name; `None` for fewer than two blocks of text.

  Files recorded before they were kept have most of them in their tables.
  """
  stored = result.numbers.get("pairs")
  if stored is None:
    return _pairs_of_tables(result)
  return {
    name: None
    if one is None
    else Compared(**one | {"gap": Mean.read(one["gap"])})
    for name, one in stored.items()
  }


def _pairs_of_tables(result: Result) -> dict[str, Compared | None]:
  config = result.config
  whole = {
    row["first"]: row
    for row in result.records("sinks.csv")
    if (row["total"], row["to"]) == (config.total, config.tokens)
  }
  own = whole[KEPT]["loss"]

  def above(sinks: int) -> Compared:
    row = whole[sinks]
    ends = [row[f"above_{x}"] for x in ("kept", "low", "high")]
    return _pair(config.block, row, row["loss"], own, ends)

  found = {
    "window_alone": above(0),
    "one_first": above(1),
    "four_first": _swapped(above(8)),
  }
  for row in result.records("starts.csv"):
    ends = [row[x] for x in ("difference", "low", "high")]
    one = _pair(config.block, row, row["loss"], row["loss_own"], ends)
    if row["first tokens"] == fresh_name(config):
      found["fresh"] = _swapped(one)
    elif row["first tokens"] == start_name("\n"):
      found["newlines"] = one
  return found


def _pair(
  block: int,
  row: dict[str, Any],
  first: float,
  second: float,
  ends: list[float],
) -> Compared:
  """Of a table's row, whose tokens have more than `from` before them."""
  # As `losses.compare` counts them, the first and the last cut off.
  blocks = (row["to"] - 1) // block - row["from"] // block + 1
  gap = Mean(*ends, blocks, np.nan)
  return Compared(gap, first, second, row["to"] - row["from"])


def _swapped(pair: Compared) -> Compared:
  gap = pair.gap
  gap = gap._replace(value=-gap.value, low=-gap.high, high=-gap.low)
  return Compared(gap, pair.second, pair.first, pair.tokens)


def gap_of(result: Result, gap: Mean, of: str, limit: float = 0.0) -> Mean:
  """The first loss less the second and a limit, over blocks of the text.

  Args:
    result: what was measured.
    gap: the difference without the limit.
    of: the name of the comparison.
    limit: nats.
  """
  kept = result.arrays.get(f"pair, {of}")
  if kept is not None:
    tokens, first, second = kept.T
    size, off = tokens.astype(int), first - second - limit
    return pooled(np.repeat(off, size), np.repeat(np.arange(len(off)), size))
  # Files of before every block was kept: a sign-flip test of a difference is
  # none of the difference less a limit, and tables have no test at all.
  if of in BLOCK_LOSSES and (limit or np.isnan(gap.p)):
    first, second = (
      result.arrays[f"block_loss, {x} first"] for x in BLOCK_LOSSES[of]
    )
    config = result.config
    # Whole blocks, seen by caches that are full.
    whole = slice(
      -(-config.total // config.block), config.tokens // config.block
    )
    return mean_of((first - second)[whole] - limit)
  ends = (x - limit for x in gap[:3])
  return Mean(*ends, gap.groups, np.nan if limit else gap.p)
