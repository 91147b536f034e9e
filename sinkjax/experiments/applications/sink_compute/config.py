"""What the experiment `sink_compute` runs, and the names in its files."""

import dataclasses

from sinkjax.config import ModelConfig

ROWS_BOUND, ROWS_KNOWN = "whole rows, bound", "whole rows, oracle"
SUMMARIES, SCORES, ORACLE = "summaries", "scores", "oracle"
NO_SINK = ", no sink"
"""Ways to know what can be skipped, as the recorded files name them."""


def bits_name(bits: int | None) -> str:
  """The name of what `block_bounds.span_of` bounds blocks from.

  >>> bits_name(6), bits_name(0), bits_name(None)
  ('6 bits', 'summaries', 'scores')
  """
  if bits is None:
    return SCORES
  return f"{bits} bits" if bits else SUMMARIES


def slack_name(nats: float) -> str:
  """The name of scores that are known to within so much.

  >>> slack_name(0.5)
  'scores, 0.5 nats off'
  """
  return f"{SCORES}, {nats:g} nats off"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    lengths: T of the shares, multiples of the block, increasing.
    counts: texts at each of them.
    fitting: other texts, of the greatest length, to fit the codes on.
    length: T of loss and errors, one of `lengths`; the claims are about it.
    tolerances: weight that a query may lose.
    at: one of them, which claims and times are about.
    bits: of a key's numbers, in codes.
    best: one of `bits`, with which loss and time are measured.
    slacks: nats to within which scores are taken to be known.
    block: queries, and keys, in a block.
    window: blocks before a query's own that are always read.
    timed: T of the timings.
    rounds: of these.
    corpus: of the texts, see `data.corpus`.
    seed: of the choice of texts.
  """

  lengths: tuple[int, ...] = (256, 1024, 4096)
  # A text of 4096 tokens takes as long as sixteen of 1024: T^2 scores.
  counts: tuple[int, ...] = (8, 8, 3)
  fitting: int = 2
  length: int = 1024
  tolerances: tuple[float, ...] = (0.3, 1e-1, 1e-2, 1e-3, 1e-4)
  # The loss does not change at it, and much can be skipped.
  at: float = 1e-1
  bits: tuple[int, ...] = (4, 6, 8)
  # The fewest bits that prove most of what can be skipped.
  best: int = 6
  slacks: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
  # Smaller blocks can be skipped more often, and save less each.
  block: int = 16
  window: int = 1
  timed: tuple[int, ...] = (512, 1024, 2048, 4096)
  rounds: int = 5
  corpus: str = "sotu"
  seed: int = 0

  def check(self, max_len: int) -> None:
    """Refuses lengths, counts, bits and tolerances that do not fit.

    Args:
      max_len: the greatest length that the model takes.

    Raises:
      ValueError: naming the field.
    """
    every = (*self.lengths, *self.timed)
    if any(x % self.block or x < 4 * self.block for x in every):
      raise ValueError(
        f"lengths must be multiples of block={self.block}, four at least, got "
        f"{self.lengths} and {self.timed}"
      )
    if max(every) > max_len:
      raise ValueError(f"lengths must be at most {max_len}, got {max(every)}")
    if self.length not in self.lengths or self.best not in self.bits:
      raise ValueError(
        f"length must be one of {self.lengths} and best one of {self.bits}, "
        f"got {self.length} and {self.best}"
      )
    many = len(self.counts) == len(self.lengths)
    if not many or min(self.counts) < 2 or self.fitting < 1:
      raise ValueError(
        "counts must be 2 or more for each of lengths, and fitting 1 or more, "
        f"got {self.counts} and {self.fitting}"
      )
    inside = all(0 < x < 1 for x in self.tolerances)
    if not inside or self.at not in self.tolerances:
      raise ValueError(
        "tolerances must be between 0 and 1 and at one of them, got "
        f"{self.tolerances} and {self.at}"
      )


def check_model(cfg: ModelConfig) -> None:
  """Refuses attention that the bounds do not hold for.

  Raises:
    ValueError: naming what the model has.
  """
  has = {
    "a normalizer other than softmax": cfg.normalizer != "softmax",
    "a soft cap of the scores": cfg.attn_softcap is not None,
    "a sink logit": cfg.sink_logit,
    "a bias of the attention": cfg.attn_bias != "none",
    "heads with roles": cfg.control_heads > 0,
    "ALiBi": cfg.positions == "alibi",
    "local layers": any(cfg.local_layers),
    "a scale that is not positive": cfg.score_scale <= 0,
  }
  found = [name for name, true in has.items() if true]
  if found:
    raise ValueError(
      "bounds are of plain softmax attention over all keys; this model has "
      + " and ".join(found)
    )
