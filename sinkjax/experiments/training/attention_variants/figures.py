"""The figures and sections of the variants of attention."""

import functools
from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep_figures import (
  STANDARD,
  Chart,
  Panel,
  Row,
)
from sinkjax.experiments.training.attention_variants.masses import (
  masses,
  relative_sinks,
)
from sinkjax.experiments.training.attention_variants.papers import PAPER

DRAWN = (
  "softmax",
  "k_bias",
  "softmax1",
  "softpick",
  "sigmoid",
  "relu",
  "element_gate",
  "qk_norm",
)
"""Variants whose curves are drawn: more of them cannot be told apart."""


def _theirs(row: Row, numbers: Mapping[str, Any]) -> float | None:
  """A paper's sink in percent of softmax's."""
  paper = PAPER.get(row["variant"])
  return paper.left if paper and _is_as_trained(row, numbers) else None


def _ours(row: Row, numbers: Mapping[str, Any]) -> list[float] | None:
  """Our sink in percent of softmax's, one a seed."""
  if _is_as_trained(row, numbers):
    return relative_sinks(sweep_figures.as_trained(numbers)).get(row["variant"])
  return None


def _is_as_trained(row: Row, numbers: Mapping[str, Any]) -> bool:
  # Papers report models in the form in which they were trained, so other rows
  # have no counterpart.
  return row is sweep_figures.as_trained(numbers)[row["variant"]]


RELATIVE = (
  Panel("Papers: sink in % of softmax's", _theirs),
  Panel("Ours: sink in % of softmax's", _ours),
)
INSIDE = (
  Panel("Sum of a row's weights", "row_sum"),
  Panel(
    "First token's share of it",
    lambda row, numbers: masses(row["variant"], row).share,
    uniform=True,
  ),
  Panel("First value's norm over others'", "value_ratio"),
  Panel("Kurtosis of activations", "kurtosis"),
  Panel("Largest activation over median", "massive_ratio"),
  Panel("Entropy of rows over maximum", "entropy_share"),
)
COLOURS = (
  "Orange: with BOS or registers in front; blue: without. A dash: no number."
)


def _relative_caption(result: Result) -> str:
  return (
    f"{sweep_figures.bar_caption(result)} In the second panel, a sink below "
    f"uniform attention is negative. {COLOURS}"
  )


def _inside_caption(result: Result) -> str:
  return f"{sweep_figures.seeds_caption(result, 'Bars', 'ticks')} {COLOURS}"


CHARTS = (
  Chart(
    "variants.png",
    functools.partial(sweep_figures.bars, panels=(*RELATIVE, *STANDARD)),
    "BOS is pinned at the start of every window, where it is a learned sink "
    "token, except in no bos and registers; with registers, the first token "
    "is the first of four. Rows of sigmoid, elu1 and relu attention need not "
    "have equal sums: their attention is counted as shares of the row's sum, "
    "the proxy of Gu et al. In the other variants, heads and attention are "
    "counted in weights, of which a query may give some to no token or to a "
    "learned key. The sink in percent of softmax's is, in the papers, the "
    "share of heads above 0.3 (for gates, of attention) and here the first "
    "token's share of what a row gives to tokens, above uniform attention: "
    "the same for all variants. The papers' models have 60M to 1.7B "
    "parameters and other data: compare signs.",
    _relative_caption,
    functools.partial(sweep_figures.table, columns=RELATIVE),
  ),
  Chart(
    "within.png",
    functools.partial(sweep_figures.bars, panels=INSIDE),
    "The sum of a row is the weight that a query gives to tokens; where it is "
    "below 1, the rest goes to no token or to a learned key. Models with sinks "
    "have a small first value and some activations far above the others.",
    _inside_caption,
    functools.partial(sweep_figures.table, columns=INSIDE),
    title="What else differs between the variants",
  ),
)
"""The bars of the sinks, and those of what else differs."""
