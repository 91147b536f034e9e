"""What the experiment `streaming` runs, and the names in its files."""

import dataclasses
import enum
from typing import NamedTuple

import numpy as np

NEEDED = (0, 1, 4, 8)
"""Counts of first tokens that the claims are about."""

KEPT = 4
"""First tokens kept where nothing else is said, as in StreamingLLM."""

END = 4
"""Blocks at the end of what is dense that decide: failing may take a while."""


class Curve(enum.StrEnum):
  """Ways to see the text, as the recorded tables name them."""

  WINDOW = "window alone"
  ONE = "1 first and window"
  KEPT = f"{KEPT} first and window"
  DENSE = "dense"
  RECOMPUTE = "recompute"


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
  # Small against the context: most of the text is past the cache.
  total: int = 256
  sinks: tuple[int, ...] = (0, 1, 2, 4, 8)
  totals: tuple[int, ...] = (128, 512, 1024)
  fewer_sinks: tuple[int, ...] = (0, 1, 4)
  # Ten blocks: enough for an interval, a twentieth of the time.
  fewer: int = 5_000
  starts: tuple[str, ...] = ("\n", ".")
  # 6,144 tokens past the context of SmolLM2, by when its loss has risen.
  dense: int = 14_336
  room: int = 2_048
  recomputed: int = 384
  # A few paragraphs: what one block is about the next is about less.
  block: int = 500
  chunk: int = 128
  batch: int = 8
  rounds: int = 7
  steps: int = 4
  seed: int = 0

  def check(self, prefix: int) -> None:
    """Refuses a config that leaves out what the claims are about.

    Args:
      prefix: tokens put before every text.

    Raises:
      ValueError: naming the field.
    """
    if set(NEEDED) - set(self.sinks):
      raise ValueError(
        f"sinks must have {list(NEEDED)}, which the claims are about, got "
        f"{self.sinks}"
      )
    widest, least = max(self.total, *self.totals), max(self.sinks)
    if min(self.total, *self.totals) <= least + prefix:
      raise ValueError(
        f"total and totals must be greater than the {least} first tokens and "
        f"the prefix, got {self.total} and {self.totals}"
      )
    least, most = widest + 2 * self.block, self.tokens - self.total
    if not least <= self.fewer <= most:
      raise ValueError(
        f"fewer must be at most tokens - total={most} and leave two blocks of "
        f"{self.block} after {widest}, got {self.fewer}"
      )
    if not 1 < self.dense <= self.tokens:
      raise ValueError(
        f"dense must be in [2, tokens={self.tokens}], got {self.dense}"
      )
    if not 2 <= self.recomputed <= self.tokens - self.total:
      raise ValueError(
        f"recomputed must be from 2 to tokens - total, got {self.recomputed}"
      )


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


def runs_of(config: Config) -> list[Run]:
  """Every stream."""
  fewer, total = config.fewer, config.total
  long = [Run(s, total, config.tokens) for s in config.sinks]
  other = [
    Run(s, wide, fewer) for wide in config.totals for s in config.fewer_sinks
  ]
  return [*long, *other, *starts(config).values(), fresh(config)]


def starts(config: Config) -> dict[str, Run]:
  """The streams with other first tokens, by the string that gives these."""
  return {x: Run(KEPT, config.total, config.fewer, x) for x in config.starts}


def fresh(config: Config) -> Run:
  """The end of the text as if it began there."""
  return Run(
    KEPT, config.total, config.fewer, begin=config.tokens - config.fewer
  )


def dense_end(config: Config, context: int) -> int:
  """The position after which everything kept is judged past the context."""
  return max(context, config.dense - END * config.block)


def sample(config: Config) -> np.ndarray:
  """[n] one token of each of n equal parts of the text."""
  # Stratified: a sample at random could miss whole stretches of the text.
  edges = np.linspace(config.total, config.tokens, config.recomputed + 1)
  edges = np.floor(edges).astype(int)
  rng = np.random.default_rng(config.seed)
  return rng.integers(edges[:-1], edges[1:]) + 1
