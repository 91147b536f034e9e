"""What the experiment `pruning` runs, and the names in its files."""

import dataclasses
import enum

from sinkjax.inference.head_scores import HeadScores


class Ranking(enum.StrEnum):
  """Orders in which heads are removed, as the recorded files name them."""

  NONSINK = "beside_sink"
  OFF_SINK = "off_sink"
  OUTPUT = "output"
  DORMANT = "dormant"
  WEIGHTS = "weights"
  NONSINK_NORM = "beside_norm"
  OUTPUT_NORM = "output_norm"
  RANDOM = "random"


RECORDED_AS = {
  "nonsink_update": Ranking.NONSINK,
  "nonsink_norm": Ranking.NONSINK_NORM,
}
"""Fields of `HeadScores` that the recorded files call something else."""

SCORES = {RECORDED_AS.get(name, name): name for name in HeadScores._fields}
"""Fields of `HeadScores`, by their names in the files."""

OUTPUTS = ("zero", "mean")
"""What the output of a removed head is set to."""


class Skip(enum.StrEnum):
  """How heads are skipped at single queries, as the recorded files name it."""

  SINK_TERM = "sink's part kept"
  SINK_VALUE = "sink alone"
  PREDICTED = "foretold"
  RANDOM = "random queries"
  RANDOM_VALUE = "random queries, sink alone"


WHOLE, UNROLLED = "whole", "whole, unrolled"
"""Timed models with all heads: layers in a scan, and one after the other."""


def without(share: float) -> str:
  """The name of a timed model without so many of its heads."""
  return f"without {share:.0%} of heads, unrolled"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`; half of them
      rank the heads, on the others the loss is measured.
    tokens: T of each; shorter texts are left out.
    shares: of the heads removed; the claims read 0.04 and 0.14.
    seeds: random orders.
    thresholds: a head is skipped where its weight on the first token exceeds
      them.
    shapes: (KV groups, query heads in each) of smaller models that are timed;
      those that the model is too small for are left out.
    timed: tokens of the text that is timed.
    unrolled: shares of the heads that timed models are without, some of
      `shares`; the claim reads the first.
    rounds: of timing.
    batch: texts in one forward pass.
    seed: of the choice of texts.
  """

  count: int = 6
  tokens: int = 96
  # About a factor 2 apart; 0.04 and 0.14 are those of arXiv 2504.03889.
  shares: tuple[float, ...] = (0.01, 0.02, 0.04, 0.07, 0.14, 0.3, 0.5)
  # Random orders differ much; their mean is one number a text.
  seeds: int = 3
  thresholds: tuple[float, ...] = (0.5, 0.7, 0.9, 0.99)
  # Of the 3 groups of 3 heads that SmolLM2-135M has.
  shapes: tuple[tuple[int, int], ...] = ((3, 2), (2, 3), (2, 2), (1, 3))
  timed: int = 256
  unrolled: tuple[float, ...] = (0.07, 0.3, 0.5)
  # Exactly 512 assignments of signs, so p can fall to 0.004.
  rounds: int = 9
  batch: int = 8
  seed: int = 0

  def check(self) -> None:
    """Refuses shares and thresholds that cannot be.

    Raises:
      ValueError: naming them.
    """
    inside = all(0 < x < 1 for x in (*self.shares, *self.thresholds))
    if not inside or list(self.shares) != sorted(self.shares):
      raise ValueError(
        "shares and thresholds must be between 0 and 1, shares increasing, got "
        f"{self.shares} and {self.thresholds}"
      )
    if not self.unrolled or not set(self.unrolled) <= set(self.shares):
      raise ValueError(
        f"unrolled must be some of shares={self.shares}, got {self.unrolled}"
      )
