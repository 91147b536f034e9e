"""Attention on the first token on equal terms.

Rows of some variants do not sum to one: part of the weight goes to no token or
to a learned key. A smaller weight on the first token may then be a smaller
weight on every token, so variants are compared in shares of what a row gives.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.training.attention_variants.experiment import VARIANTS
from sinkjax.models.normalizers import UNNORMALIZED

LEAST_SUM = 0.15
"""Mean sum of a row from which the mean weight over it is taken for a share.
The first query can attend to nothing but itself: in texts of 64 tokens its
weight of 1 is more than a tenth of any smaller sum, and hides the others'."""


class Masses(NamedTuple):
  """A variant's attention, means over queries, heads and layers, by seed.

  Attributes:
    weight: [S] on the first token, as the model has it; `None` where the files
      have only its share.
    row_sum: [S] of all weights of a query.
    share: [S] of the first token in what a row gives; `None` where that was
      not recorded and does not follow from the others.
  """

  weight: np.ndarray | None
  row_sum: np.ndarray
  share: np.ndarray | None

  def text(self) -> str:
    """As in '0.057 (0.032 to 0.083) in rows that sum to 0.569'."""
    weight = "not recorded" if self.weight is None else mean(self.weight)
    return f"{weight} in rows that sum to {self.row_sum.mean():.3f}"


def masses(variant: str, scalars: Mapping[str, Any]) -> Masses:
  """Of one variant's measurements.

  Results recorded earlier lack `first_share`. What they have as `first_mass` is
  that share for normalisers whose sums are not bounded, and the weight for all
  others; the share is then the mean weight over the mean sum, in which queries
  that give more count for more, unless they give less than `LEAST_SUM`.

  Args:
    variant: its name.
    scalars: see `train_runs.measure`.
  """
  total = np.asarray(scalars["row_sum"], float)
  if "first_share" in scalars:
    weight, share = (
      np.asarray(scalars[name], float)
      for name in ("first_weight", "first_share")
    )
    return Masses(weight, total, share)
  first = np.asarray(scalars["first_mass"], float)
  if VARIANTS[variant].model.get("normalizer") in UNNORMALIZED:
    return Masses(None, total, first)
  if total.mean() < LEAST_SUM:
    return Masses(first, total, None)
  return Masses(first, total, first / total)


def relative_sinks(
  variants: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[float]]:
  """The sink of each variant in percent of softmax's, one a seed.

      100 (m_s - u) / (mean m_softmax - u),

  m_s the share of the first token with seed s, u that of uniform attention;
  empty where softmax has no sink. Papers report the share of their own sinks.

  Args:
    variants: {variant: its measurements in the form of its training}.
  """
  if "softmax" not in variants:
    return {}
  uniform = np.mean(variants["softmax"]["uniform_mass"])
  shares = {name: masses(name, of).share for name, of in variants.items()}
  shares = {name: x for name, x in shares.items() if x is not None}
  # The mean over seeds, because the sink of a single seed may be so close to
  # zero that a quotient by it means nothing.
  above = shares["softmax"].mean() - uniform
  if above <= 0:
    return {}
  return {
    name: (100 * (share - uniform) / above).tolist()
    for name, share in shares.items()
  }
