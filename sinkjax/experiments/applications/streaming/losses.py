"""Losses of the tokens of one text, and how two ways to see it compare."""

from typing import NamedTuple

import numpy as np

from sinkjax.experiments.applications.streaming.config import (
  KEPT,
  Config,
  Run,
  dense_end,
  fresh,
  starts,
)
from sinkjax.experiments.harness.stats import Mean, pooled


class Losses(NamedTuple):
  """Of some tokens of the text.

  Attributes:
    at: [n] tokens of the text before each.
    nats: [n].
  """

  at: np.ndarray
  nats: np.ndarray


class Streams(NamedTuple):
  """The text, seen in every way.

  Attributes:
    runs: of caches of fixed size.
    dense: with everything kept.
    recomputed: from the window alone.
  """

  runs: dict[Run, Losses]
  dense: Losses
  recomputed: Losses

  def whole(self, config: Config, sinks: int = KEPT) -> Losses:
    """The whole text, with so many first tokens kept."""
    return self.runs[Run(sinks, config.total, config.tokens)]


def numbered(nats: np.ndarray, tokens: int, begin: int) -> Losses:
  """Losses of the text alone, without what was put before it."""
  at = begin + 1 + np.arange(tokens)
  # float64: sums over 100,000 tokens lose digits in float32.
  return Losses(at, nats[-tokens:].astype(np.float64))


class Pair(NamedTuple):
  """Two ways to see the same tokens.

  Attributes:
    gap: nats of the first less those of the second, over blocks.
    first: mean nats of the first.
    second: of the second.
    tokens: how many.
    blocks: [n, 3] tokens, and mean nats of the first and the second, of each.
  """

  gap: Mean
  first: float
  second: float
  tokens: int
  blocks: np.ndarray


def mean_from(found: Losses, config: Config, low: int, high: int) -> Mean:
  """Mean loss of the tokens with more than `low` and at most `high` before."""
  mine = (found.at > low) & (found.at <= high)
  return pooled(found.nats[mine], (found.at[mine] - 1) // config.block)


def compare(
  a: Losses, b: Losses, config: Config, low: int, high: int | None = None
) -> Pair | None:
  """The difference at the tokens of both with more than `low` before them.

  At most `high`, if it is given. Neighbouring tokens depend on each other and
  blocks of text hardly do: Student's t over blocks, each with the weight of
  its tokens. `None` for fewer than two blocks.
  """
  at, i, j = np.intersect1d(a.at, b.at, assume_unique=True, return_indices=True)
  mine = (at > low) & (at <= (at[-1] if high is None else high))
  first, second = a.nats[i][mine], b.nats[j][mine]
  # The tokens that have 1 to `block` before them are the first block.
  groups = (at[mine] - 1) // config.block
  names, sizes = np.unique(groups, return_counts=True)
  if len(names) < 2:
    return None
  gap = pooled(first - second, groups)
  means = [
    np.bincount(groups - names[0], nats)[names - names[0]] / sizes
    for nats in (first, second)
  ]
  blocks = np.stack([sizes, *means], axis=1)
  count = int(mine.sum())
  return Pair(gap, float(first.mean()), float(second.mean()), count, blocks)


def pairs_of(
  config: Config, streams: Streams, context: int
) -> dict[str, Pair | None]:
  """The comparisons that the claims are about.

  Args:
    config: what was run.
    streams: the losses.
    context: tokens of the text that fit the model's context.
  """
  total, own = config.total, streams.whole(config)

  def against(sinks: int) -> Losses:
    return streams.whole(config, sinks)

  # The first `total` tokens after its start see less than a full cache.
  late = fresh(config)
  found = {
    "window_alone": compare(against(0), own, config, total),
    "four_first": compare(own, against(8), config, total),
    "one_first": compare(against(1), own, config, total),
    "dense_end": compare(
      streams.dense, own, config, dense_end(config, context)
    ),
    "dense": compare(streams.dense, own, config, context),
    "recomputed": compare(own, streams.recomputed, config, total),
    "fresh": compare(own, streams.runs[late], config, late.begin + total),
  }
  if "\n" in config.starts:
    newlines = streams.runs[starts(config)["\n"]]
    found["newlines"] = compare(newlines, own, config, total)
  return found
