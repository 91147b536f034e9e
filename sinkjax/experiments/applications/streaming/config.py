"""What the experiment `streaming` runs, and how its losses are compared."""

import dataclasses
from typing import NamedTuple

import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.harness.stats import Mean, pooled

DENSE, RECOMPUTE, FRESH = "dense", "recompute", "fresh"
NEEDED = (0, 1, 4, 8)
"""Counts of first tokens that the claims are about."""
KEPT = 4
"""First tokens kept, where nothing else is said."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run. All of a cache is `total` tokens: with S first ones kept, the
  window has total - S, the token itself included.

  Attributes:
    speaker: whose addresses on the state of the union are the text.
    years: of the first and the last of them.
    tokens: N of the text, whose loss is measured.
    total: of the caches that see all of it.
    sinks: first tokens kept.
    totals: of other caches, which see the first `fewer` tokens.
    fewer_sinks: first tokens kept in them.
    fewer: tokens that these, other starts and a fresh start see.
    starts: strings whose first token, four times, is put before the text and
      kept.
    dense: tokens that the model sees with everything kept.
    room: slots by which that cache grows.
    recomputed: tokens, one in each of so many equal parts of the text, that
      are recomputed from the `total` before them.
    block: tokens of a block: blocks are what intervals are over.
    chunk: tokens at a time.
    batch: windows recomputed at a time.
    rounds: of timing.
    steps: tokens of a cache timed together.
    seed: of the choice of recomputed tokens.
  """

  speaker: str = "Roosevelt"
  years: tuple[int, int] = (1901, 1908)
  tokens: int = 100_000
  total: int = 256
  sinks: tuple[int, ...] = (0, 1, 2, 4, 8)
  totals: tuple[int, ...] = (128, 512, 1024)
  fewer_sinks: tuple[int, ...] = (0, 1, 4)
  fewer: int = 5_000
  starts: tuple[str, ...] = ("\n", ".")
  dense: int = 14_336
  room: int = 2_048
  recomputed: int = 384
  block: int = 500
  chunk: int = 128
  batch: int = 8
  rounds: int = 7
  steps: int = 4
  seed: int = 0


class Run(NamedTuple):
  """One stream.

  Attributes:
    sinks: first tokens kept.
    total: these and the window.
    tokens: of the text, whose loss is measured.
    start: the string before the text, "" for none.
    begin: the token of the text with which it begins.
  """

  sinks: int
  total: int
  tokens: int
  start: str = ""
  begin: int = 0


class Found(NamedTuple):
  """Losses.

  Attributes:
    at: [n] tokens of the text before each.
    nats: [n].
  """

  at: np.ndarray
  nats: np.ndarray


class Times(NamedTuple):
  """Of a token, with `KEPT` first tokens in the cache.

  Attributes:
    totals: [W] of the caches.
    cached: [W, R] seconds.
    anew: [W, R] seconds of recomputing.
    kept: [W] bytes of the cache.
    working: [W, 2] bytes that each needs while it computes, beside the
      parameters, -1 where the backend does not tell.
  """

  totals: list[int]
  cached: np.ndarray
  anew: np.ndarray
  kept: list[int]
  working: list[tuple[int, int]]


def plan_of(config: Config) -> list[Run]:
  fewer, total = config.fewer, config.total
  long = [Run(s, total, config.tokens) for s in config.sinks]
  other = [
    Run(s, wide, fewer) for wide in config.totals for s in config.fewer_sinks
  ]
  starts = [Run(KEPT, total, fewer, start) for start in config.starts]
  return [*long, *other, *starts, fresh(config)]


def fresh(config: Config) -> Run:
  """The end of the text as if it began there."""
  return Run(
    KEPT, config.total, config.fewer, begin=config.tokens - config.fewer
  )


def check(subject: Subject, config: Config) -> None:
  missing = set(NEEDED) - set(config.sinks)
  if missing:
    raise ValueError(
      f"sinks must have {list(NEEDED)}, which the claims are about, got "
      f"{config.sinks}"
    )
  widest, least = max(config.total, *config.totals), max(config.sinks)
  if min(config.total, *config.totals) <= least + len(subject.prefix):
    raise ValueError(
      f"total and totals must be greater than the {least} first tokens and "
      f"the prefix, got {config.total} and {config.totals}"
    )
  least, most = widest + 2 * config.block, config.tokens - config.total
  if not least <= config.fewer <= most:
    raise ValueError(
      f"fewer must be at most tokens - total={most} and leave two blocks of "
      f"{config.block} after {widest}, got {config.fewer}"
    )
  if not 1 < config.dense <= config.tokens:
    raise ValueError(
      f"dense must be in [2, tokens={config.tokens}], got {config.dense}"
    )
  if not 2 <= config.recomputed <= config.tokens - config.total:
    raise ValueError(
      f"recomputed must be from 2 to tokens - total, got {config.recomputed}"
    )


def sample(config: Config) -> np.ndarray:
  """[n] one token of each of n equal parts of the text."""
  edges = np.linspace(config.total, config.tokens, config.recomputed + 1)
  edges = np.floor(edges).astype(int)
  rng = np.random.default_rng(config.seed)
  return rng.integers(edges[:-1], edges[1:]) + 1


def numbered(nats, tokens: int, begin: int) -> Found:
  """Losses of the text alone, without what was put before it."""
  at = begin + 1 + np.arange(tokens)
  return Found(at, nats[-tokens:].astype(np.float64))


class Pair(NamedTuple):
  """Two ways to see the same tokens.

  Attributes:
    gap: nats of the first less those of the second, over blocks.
    first: mean nats of the first.
    second: of the second.
    tokens: how many.
  """

  gap: Mean
  first: float
  second: float
  tokens: int


def mean_from(found: Found, config: Config, low: int, high: int) -> Mean:
  """Mean loss of the tokens with more than `low` and at most `high` before."""
  mine = (found.at > low) & (found.at <= high)
  return pooled(found.nats[mine], (found.at[mine] - 1) // config.block)


def compare(
  a: Found, b: Found, config: Config, low: int, high: int | None = None
) -> Pair | None:
  """The difference at the tokens of both with more than `low` before them.

  At most `high`, if it is given. Neighbouring tokens depend on each other and
  blocks of text hardly do: Student's t over blocks, each with the weight of
  its tokens. `None` for fewer than two blocks.
  """
  at, i, j = np.intersect1d(a.at, b.at, assume_unique=True, return_indices=True)
  mine = (at > low) & (at <= (at[-1] if high is None else high))
  first, second = a.nats[i][mine], b.nats[j][mine]
  groups = (at[mine] - 1) // config.block
  if len(set(groups.tolist())) < 2:
    return None
  gap = pooled(first - second, groups)
  return Pair(gap, first.mean(), second.mean(), int(mine.sum()))
