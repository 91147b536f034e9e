"""Variants of attention against softmax and each other, seed by seed."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, SHARE, Effect, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Trained
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.experiments.training.attention_variants.experiment import VARIANTS
from sinkjax.experiments.training.attention_variants.masses import masses
from sinkjax.experiments.training.attention_variants.papers import (
  EXPECT_WEAKER,
  GU,
  PAPER,
  QIU,
  UNCOUNTED,
  ZUHRI,
)

FIRST = "first_mass"
"""What most claims compare, on equal terms, see `masses`."""

MEASURES = {
  "kurtosis": ("kurtosis", ".1f"),
  "massive_ratio": ("largest activation over median", ".1f"),
}
"""What others compare: {key of a row: (in words, format)}."""

UNDEFINED = (
  "queries give so little to any token that the share of the first one, which "
  "was not recorded, does not follow from means of weights and sums"
)
"""Why a claim on the share of the first token has no effect."""


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Claims of the variants that were trained."""
  known = set(trained.probes)
  if "softmax" not in known:
    return []
  found = []
  for name in EXPECT_WEAKER:
    if name in known:
      source, paper = UNCOUNTED
      if name in PAPER:
        source, paper = PAPER[name].source, str(PAPER[name])
      text = (
        f"{VARIANTS[name].subject} puts less of its weight on the first token "
        "than softmax does."
      )
      id = f"less_sink_{name}"
      found.append(_claim(trained, id, text, source, paper, "softmax", name))
  for id, text, source, paper, more, less, key in _others():
    if {more, less} <= known:
      found.append(_claim(trained, id, text, source, paper, more, less, key))
  return found


def _others() -> list[tuple[str, str, str, str, str, str, str]]:
  """Claims of other pairs: the arguments of `_claim`."""
  return [
    (
      "key_weakens_sink_more_than_value",
      "A learned key weakens the sink more than a learned value does.",
      GU,
      f"{PAPER['k_bias'].variant:g} % of heads with a key, "
      f"{PAPER['v_bias'].variant:g} % with a value",
      "v_bias",
      "k_bias",
      FIRST,
    ),
    (
      "normalised_sigmoid_stronger_sink",
      "Normalised sigmoid attention has a stronger sink than sigmoid attention "
      "without normalisation.",
      GU,
      f"{PAPER['sigmoid'].variant:g} to "
      f"{PAPER['normalized_sigmoid'].variant:g} % of heads",
      "normalized_sigmoid",
      "sigmoid",
      FIRST,
    ),
    (
      "softpick_lower_kurtosis",
      "Softpick attention gives activations of lower kurtosis than softmax "
      "does.",
      ZUHRI,
      "kurtosis 6453 to 282",
      "softmax",
      "softpick",
      "kurtosis",
    ),
    (
      "element_gate_smaller_activations",
      "Attention with an element-wise gate has a smaller largest activation, "
      "relative to the median, than attention without a gate.",
      QIU,
      "1053 to 94",
      "softmax",
      "element_gate",
      "massive_ratio",
    ),
  ]


def _claim(
  trained: Trained,
  id: str,
  text: str,
  source: str,
  paper: str,
  more: str,
  less: str,
  key: str = FIRST,
) -> Claim:
  """That one variant has less of a quantity than another, and is no worse.

  Args:
    trained: the models.
    id: of the claim.
    text: the claim.
    source: of it.
    paper: what the source reports.
    more: the variant that has more of it.
    less: the variant that has less.
    key: of the quantity.
  """
  a, b = trained.as_trained(more), trained.as_trained(less)
  compared = _shares if key == FIRST else _values
  effect, words, how = compared(trained, more, less, key)
  other = less if more == "softmax" else more
  plain = trained.as_trained("softmax")["loss"]
  cost = mean(trained.as_trained(other)["loss"] - plain)
  return Claim(
    id,
    text,
    source,
    paper,
    f"{words}; loss of {other} {cost} nats above softmax",
    effect,
    f"{how}worse models have weaker sinks and smaller activations",
    () if effect is None else (no_worse(b["loss"], a["loss"], less, more),),
    UNDEFINED if effect is None else "",
  )


def _shares(
  trained: Trained, more: str, less: str, key: str
) -> tuple[Effect | None, str, str]:
  """(effect, what was measured, how) of the share of the first token."""
  a, b = (masses(name, trained.as_trained(name)) for name in (more, less))
  weights = f"its weight {a.text()} ({more}) and {b.text()} ({less})"
  if a.share is None or b.share is None:
    return None, f"for the first token, {weights}", ""
  effect = seed_effect(
    b.share - a.share,
    f"the first token's share of what a row gives with {less}, less that with "
    f"{more},",
    SHARE,
    Expect.LESS,
  )
  words = (
    f"the first token's share of what a row gives {mean(a.share)} ({more}) and "
    f"{mean(b.share)} ({less}); {weights}"
  )
  by_row = b.weight is None or "first_share" in trained.as_trained(less)
  how = "shares of every row" if by_row else "mean weight over mean sum of rows"
  return effect, words, f"{how}; "


def _values(
  trained: Trained, more: str, less: str, key: str
) -> tuple[Effect, str, str]:
  """(effect, what was measured, how) of the ratio of a positive quantity."""
  a, b = (trained.as_trained(name)[key] for name in (more, less))
  what, form = MEASURES[key]
  effect = seed_effect(
    np.log(b / a),
    f"the {what} with {less} over that with {more}",
    LOG_RATIO,
    Expect.LESS,
  )
  return (
    effect,
    f"{what} {mean(a, form)} ({more}) and {mean(b, form)} ({less})",
    "",
  )
