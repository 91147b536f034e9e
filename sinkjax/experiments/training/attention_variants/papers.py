"""What papers report of the variants, beside what is found here."""

from typing import NamedTuple

import numpy as np

from sinkjax.experiments.harness.sweep import Table, Trained
from sinkjax.experiments.training.attention_variants.masses import (
  relative_sinks,
)

GU, ZUHRI, QIU, BONDARENKO = (
  "Gu et al., section 7",
  "Zuhri et al. (2504.20966)",
  "Qiu et al. (2505.06708)",
  "Bondarenko et al. (2306.12929)",
)


class PaperResult(NamedTuple):
  """What a paper reports of a variant.

  Attributes:
    source: which paper.
    softmax: its sink with softmax, in percent.
    variant: its sink with the variant, in percent.
    what: what the percents are of.
  """

  source: str
  softmax: float
  variant: float
  what: str = "of heads"

  @property
  def left(self) -> float:
    """The variant's sink in percent of softmax's."""
    return 100 * self.variant / self.softmax

  def __str__(self) -> str:
    return f"{self.softmax:g} to {self.variant:g} % {self.what}"


PAPER = {
  "k_bias": PaperResult(GU, 18.18, 0.0),
  "kv_bias": PaperResult(GU, 18.18, 0.04),
  "v_bias": PaperResult(GU, 18.18, 17.53),
  "sink_logit": PaperResult(ZUHRI, 34.89, 8.78),
  "softmax1": PaperResult(ZUHRI, 34.89, 16.36),
  "softpick": PaperResult(ZUHRI, 34.89, 0.0),
  "sigmoid": PaperResult(GU, 18.18, 0.44, "of heads, by proxy"),
  "normalized_sigmoid": PaperResult(GU, 18.18, 30.24),
  "elu1": PaperResult(GU, 18.18, 0.80, "of heads, by proxy"),
  "relu": PaperResult(ZUHRI, 34.89, 4.56, "of heads, ReLU of the softmax"),
  "head_gate": PaperResult(QIU, 46.7, 7.3, "of attention"),
  "element_gate": PaperResult(QIU, 46.7, 4.8, "of attention"),
  "value_gate": PaperResult(QIU, 46.7, 29.7, "of attention"),
}
"""What papers found; shares of heads are at eps 0.3."""

UNCOUNTED = (BONDARENKO, "outliers 735 to 21.5; no sink rate")
"""Clipped softmax, whose paper counts no sinks."""

EXPECT_WEAKER = (
  "k_bias",
  "kv_bias",
  "sink_logit",
  "softmax1",
  "clipped_softmax",
  "softpick",
  "sigmoid",
  "elu1",
  "relu",
  "head_gate",
  "element_gate",
  "value_gate",
)
"""Variants that papers found, or designed, to have a weaker sink."""


def tables(trained: Trained) -> dict[str, Table]:
  """The papers' sinks beside ours, as a table."""
  header = [
    "variant",
    "source",
    "softmax_percent",
    "variant_percent",
    "counted",
    "left_percent",
    "ours_left_percent",
  ]
  rows = []
  variants = {name: trained.as_trained(name) for name in trained.probes}
  for name, ours in relative_sinks(variants).items():
    paper = PAPER.get(name)
    # Variants that no paper measured keep their row, with empty cells.
    theirs = [*paper, paper.left] if paper else [None] * 5
    rows.append([name, *theirs, float(np.mean(ours))])
  return {"papers.csv": (header, rows)}
