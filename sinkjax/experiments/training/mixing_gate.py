"""Does a model that may choose how much it mixes still build a sink?

    python -m launch.reproduce --experiment=mixing_gate --scale=cpu --out=DIR

A head that attends to the first token mixes less, at the price of a token whose
value is drained. Here heads may choose it: by a learned rate, a gate of each
token (`ModelConfig.mixing`) or a key without a value, beside what is known to
weaken sinks. Barbero et al. (2025, arXiv 2504.02732) hold that sinks are how
models keep from mixing too much; then the sink should go where there is another
way, and the rate be lower in deeper layers and on longer texts.

The cpu scale is a screen: the 8 variants at one seed, in the regime of
`configs/train/strong.py`, some half an hour each on two CPU cores. It has no
verdicts, since one seed has no interval. What follows it is the list

    --config.variants=softmax,rate,gate,null_key --config.seeds=0,1,2,3,4

of 16 runs more, as five seeds are the fewest that a verdict needs. Gates of the
token have 0.2 % more parameters than the base, and element-wise output gates
6 %; all see equal tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, SHARE, Expect, Unit
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import chosen, text_run
from sinkjax.experiments.harness.sweep_figures import STANDARD, Chart, Panel
from sinkjax.experiments.shared.controlled import (
  DEMO,
  ControlConfig,
  by_variant,
  controlled,
  positions_for,
  rates,
)
from sinkjax.experiments.shared.controlled import SCALES as BY_SCALE
from sinkjax.experiments.shared.controlled_figures import rates_chart
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.train.run_config import TrainConfig

TITLE = "Do models that control their mixing build sinks?"
SOURCE, NO_NUMBER = "2504.02732, section 3", "no number; an argument"
BASE = "softmax"


class Variant(NamedTuple):
  """One way to control mixing.

  Attributes:
    subject: it in words, as a sentence has it.
    model: fields of `ModelConfig` in which it differs from softmax.
    chosen: whether heads have a rate of their own choice.
  """

  subject: str
  model: Mapping[str, Any] = {}
  chosen: bool = False


VARIANTS = {
  BASE: Variant("softmax attention"),
  "rate": Variant("a learned rate of each head", {"mixing": "rate"}, True),
  "gate": Variant("a rate of each token", {"mixing": "gate"}, True),
  "null_key": Variant("a key without a value", {"attn_bias": "k"}, True),
  "head_gate": Variant("a gate on each head's output", {"gate": "head"}),
  "element_gate": Variant("an element-wise output gate", {"gate": "element"}),
  "softmax1": Variant("softmax1", {"normalizer": "softmax1"}, True),
  "sink_logit": Variant("a learned sink logit", {"sink_logit": True}, True),
}
"""A new variant is one entry here."""


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
  """What is trained: every variant with every seed.

  Attributes:
    variants: names of `VARIANTS`; the others are compared with softmax.
  """

  variants: tuple[str, ...] = tuple(VARIANTS)


RIVALS = "; in a longer text there are more tokens beside what takes weight"
"""Why a rate that is the rest of a softmax rises with length by itself."""

SCALES = BY_SCALE | {
  "demo": DEMO | {"variants": ("softmax", "rate", "gate", "null_key")}
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each variant.

  Raises:
    ValueError: for a name that is no variant.
  """
  runs = {
    name: text_run(config, model=positions_for(config) | dict(variant.model))
    for name, variant in VARIANTS.items()
  }
  return chosen(runs, config.variants, "mixing_gate")


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Every variant against softmax, and what rates are chosen."""
  known = by_variant(result)
  if BASE not in known:
    return []
  found = []
  for name in known:
    if name == BASE:
      continue
    found.append(_weaker_sink(trained, name))
    if VARIANTS[name].chosen:
      found += [
        _less_drained(trained, name),
        _mixes_less(trained, result, name),
        *_rates(result, name),
      ]
  return found


def _cost(trained: Trained, name: str) -> tuple[Any, ...]:
  """That a variant is no worse than softmax."""
  a, b = trained.as_trained(name)["loss"], trained.as_trained(BASE)["loss"]
  return (no_worse(a, b, name, BASE),)


def _claim(
  id: str,
  claim: str,
  ours: str,
  values: np.ndarray,
  what: str,
  unit: Unit,
  expect: Expect,
  how: str,
  provided: tuple[Any, ...] = (),
) -> Claim:
  effect = seed_effect(values, what, unit, expect)
  return Claim(id, claim, SOURCE, NO_NUMBER, ours, effect, how, provided)


def _weaker_sink(trained: Trained, name: str) -> Claim:
  key = "first_share"
  a, b = trained.as_trained(name)[key], trained.as_trained(BASE)[key]
  return _claim(
    f"weaker_sink_{name}",
    f"A model with {VARIANTS[name].subject} puts less of its attention on the "
    "first token than one with softmax attention alone.",
    f"{mean(a)} ({name}) and {mean(b)} (softmax)",
    a - b,
    f"the first token's share of a row with {name}, less that with softmax",
    SHARE,
    Expect.LESS,
    "shares of what a row gives to tokens, mean over layers and heads",
    _cost(trained, name),
  )


def _less_drained(trained: Trained, name: str) -> Claim:
  key = "value_ratio"
  a, b = trained.as_trained(name)[key], trained.as_trained(BASE)[key]
  return _claim(
    f"less_value_drain_{name}",
    f"In a model with {VARIANTS[name].subject} the first token's value has a "
    "larger norm, over those of other tokens, than with softmax attention "
    "alone.",
    f"{mean(a)} ({name}) and {mean(b)} (softmax) of the others' norm",
    np.log(a / b),
    f"the first value's relative norm with {name} over that with softmax",
    LOG_RATIO,
    Expect.MORE,
    "median over layers and heads",
    _cost(trained, name),
  )


def _mixes_less(trained: Trained, result: Result, name: str) -> Claim:
  rows = by_variant(result)
  a, b = (np.array(rows[x]["mixing_rest"]) for x in (name, BASE))
  return _claim(
    f"mixes_no_more_{name}",
    f"A model with {VARIANTS[name].subject} mixes tokens no more than one with "
    "softmax attention alone.",
    f"{mean(a)} ({name}) and {mean(b)} (softmax) of the squared Jacobian",
    a - b,
    f"the share of the squared Jacobian between tokens with {name}, less that "
    "with softmax",
    SHARE,
    Expect.NOT_MORE,
    "exact Jacobian from embedding to the last layer, without the first token",
    _cost(trained, name),
  )


def _rates(result: Result, name: str) -> list[Claim]:
  """How the chosen rate goes with depth and with the length of a text."""
  found = rates(by_variant(result)[name]).mean(axis=3)  # [S, N, L]
  lengths = result.numbers["lengths"]
  claims = []
  if found.shape[2] > 1:
    first, last = found[..., 0].mean(axis=1), found[..., -1].mean(axis=1)
    claims.append(
      _claim(
        f"lower_rate_in_depth_{name}",
        f"With {VARIANTS[name].subject} heads of the last layer mix at a lower "
        "rate than those of the first.",
        f"{mean(last)} in the last layer and {mean(first)} in the first",
        last - first,
        f"the rate of {name} in the last layer, less that in the first",
        SHARE,
        Expect.LESS,
        "mean over heads and over texts of all lengths",
      )
    )
  # A rate that is one number a head is the same on every text.
  if len(lengths) > 1 and name != "rate":
    short, long = found[:, 0].mean(axis=1), found[:, -1].mean(axis=1)
    claims.append(
      _claim(
        f"lower_rate_on_long_texts_{name}",
        f"With {VARIANTS[name].subject} heads mix at a lower rate on longer "
        "texts.",
        f"{mean(long)} on texts of {lengths[-1]} tokens and {mean(short)} on "
        f"texts of {lengths[0]}",
        long - short,
        f"the rate of {name} on the longest texts, less that on the shortest",
        SHARE,
        Expect.LESS,
        "mean over layers, heads and tokens"
        + ("" if VARIANTS[name].model.get("mixing") else RIVALS),
      )
    )
  return claims


INSIDE = (
  Panel("First value's norm over others'", "value_ratio"),
  Panel("Largest activation over median", "massive_ratio"),
  Panel("Kurtosis of activations", "kurtosis"),
  Panel("Sum of a row's weights", "row_sum"),
  Panel("Effective rank of the final states", "effective_rank"),
)


def _variants(result: Result) -> bytes:
  return sweep_figures.bars(result, STANDARD)


def _inside(result: Result) -> bytes:
  return sweep_figures.bars(result, INSIDE)


def _inside_table(result: Result) -> Any:
  return sweep_figures.table(result, INSIDE)


def _heads(result: Result, name: str) -> slice | None:
  return slice(None) if VARIANTS[name].chosen else None


SWEEP = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "variants.png",
      _variants,
      "Every variant is one option away from softmax attention, and sees the "
      "same tokens in the same order. Attention is counted in weights, of "
      "which a query may give some to no token. A screen of one seed orders "
      "variants and decides nothing.",
      sweep_figures.bar_caption,
      sweep_figures.table,
    ),
    Chart(
      "within.png",
      _inside,
      "What goes with a sink: a small value of the first token and activations "
      "far above the others.",
      lambda result: sweep_figures.seeds_caption(result, "Bars", "ticks"),
      _inside_table,
      title="Values, activations and rows",
    ),
    rates_chart(
      "At which rate do heads mix?",
      "The rate is g where a head keeps its own value for the rest, and else "
      "what a query gives to tokens in all: with a key without a value, one "
      "less what that key takes. Output gates have no rate.",
      _heads,
    ),
  ],
)

EXPERIMENT = controlled(SWEEP)
