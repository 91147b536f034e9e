"""What the experiment `attack` runs, and the names in its files."""

import dataclasses
import enum

NORMS = ("relative", "absolute")
"""Radii of a shift, see `Config.share`."""


class Kind(enum.StrEnum):
  """Kinds of shift, as the recorded tables name them."""

  RANDOM = "random direction"
  ONE_STEP = "one step"
  SEVERAL_STEPS = "several steps"


class Way(enum.StrEnum):
  """Ways to replace a token, as the recorded tables name them."""

  SWAPPED = "swapped"
  INSERTED = "put in"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: how many, of as many domains as there are.
    tokens: T of each; tokens of the first half are attacked, the second half
      is measured.
    share: the norm of a shift over that of the vector it is added to. Equal
      relative norm: the attacked token's own, in each layer; equal absolute
      norm: the median over the text's tokens, in each layer.
    steps: gradients of the attack of several steps.
    candidates: tokens of the vocabulary that are swapped in and inserted.
    eps: a head has a sink where its attention on position 0 exceeds this.
    seed: of texts, candidates and random directions.
  """

  # One of every domain; the text is the unit of the intervals.
  texts: int = 11
  # Half is attacked, half measured: 32 predictions average out single ones.
  tokens: int = 64
  # A random shift of this norm hardly changes the output, an attack does.
  share: float = 0.2
  # A gradient costs two forward passes: four take most of the time already.
  steps: int = 4
  candidates: int = 16
  # The threshold of Gu et al. (2410.10781).
  eps: float = 0.3
  seed: int = 0
