"""Variants of attention against softmax and each other, seed by seed."""

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.stats import compare, mean, unless_worse
from sinkjax.experiments.harness.sweep import Trained
from sinkjax.experiments.training.attention_variants.experiment import VARIANTS
from sinkjax.experiments.training.attention_variants.papers import (
  EXPECT_WEAKER,
  GU,
  PAPER,
  QIU,
  UNCOUNTED,
  ZUHRI,
)

MEASURES = {
  "first_mass": ("attention on the first token", ".3f"),
  "kurtosis": ("kurtosis", ".1f"),
  "massive_ratio": ("largest activation over median", ".1f"),
}
"""What claims compare: {key of a row: (in words, format)}."""


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
        f"{VARIANTS[name].subject} puts less weight on the first token than "
        "softmax does."
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
      "first_mass",
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
      "first_mass",
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
  key: str = "first_mass",
) -> Claim:
  """That one variant has more of a quantity than another, no worse one."""
  a, b = trained.as_trained(more), trained.as_trained(less)
  what, form = MEASURES[key]
  other = less if more == "softmax" else more
  plain = trained.as_trained("softmax")["loss"]
  cost = mean(trained.as_trained(other)["loss"] - plain)
  made = compare(
    id,
    text,
    source,
    paper,
    a[key] - b[key],
    f"{what} {mean(a[key], form)} ({more}) and {mean(b[key], form)} ({less}); "
    f"loss of {other} {cost} nats above softmax",
  )
  why = (
    f"but {less} is a worse model, and worse models have weaker sinks and "
    "smaller activations"
  )
  return unless_worse(made, b["loss"] - a["loss"], why)
