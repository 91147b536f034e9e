"""Which norms and which optimiser give sinks, and which massive activations?

    python -m launch.reproduce --experiment=norms_and_optimisers --scale=cpu \\
      --out=DIR

By arXiv 2603.05498 massive activations come of norms before the branches, and
sinks and they come apart without these; by arXiv 2506.19697 Muon and norms of a
single scale, which leave no dimension apart, give models without outliers. Here
norms before and behind
the branches, on the residual stream ("post-norm"), of one scale, and Muon in
place of AdamW are each trained with softmax attention, which has sinks, and
with softpick, which has none.

The cpu scale is a screen: 12 runs of one seed, in the regime of
`configs/train/strong.py`, some half an hour each on two CPU cores. It has no
verdicts, since one seed has no interval; `seeds` takes more. All variants have
the same parameters but for scales of norms, and see equal tokens; Muon takes
the learning rate of AdamW, as its updates are as large (2502.16982).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, SHARE, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import chosen, text_run
from sinkjax.experiments.harness.sweep_figures import STANDARD, Chart
from sinkjax.experiments.shared.controlled import (
  DEMO,
  ControlConfig,
  controlled,
  positions_for,
)
from sinkjax.experiments.shared.controlled import SCALES as BY_SCALE
from sinkjax.experiments.shared.controlled_figures import INSIDE, rates_chart
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.train.run_config import TrainConfig

TITLE = "Norms, optimisers and sinks"
SPIKES, OUTLIERS = "2603.05498", "2506.19697"
BASE = "pre"
WITHOUT = "_sink_free"
"""Behind the name of a recipe whose attention has no sinks."""


class Recipe(NamedTuple):
  """Where norms stand, and what trains.

  Attributes:
    subject: it in words, as a sentence has it.
    model: fields of `ModelConfig` in which it differs from the base.
    optimizer: likewise, of `OptimizerConfig`.
  """

  subject: str
  model: Mapping[str, Any] = {}
  optimizer: Mapping[str, Any] = {}


ONE_SCALE, MUON = {"one_scale": True}, {"name": "muon"}
RECIPES = {
  BASE: Recipe("norms before the branches"),
  "sandwich": Recipe(
    "norms before and behind the branches", {"post_norms": True}
  ),
  "post": Recipe(
    "norms on the residual stream", {"pre_norms": False, "stream_norms": True}
  ),
  "one_scale": Recipe("norms of a single scale", ONE_SCALE),
  "muon": Recipe("Muon", {}, MUON),
  "muon_one_scale": Recipe("Muon and norms of a single scale", ONE_SCALE, MUON),
}
"""A new recipe is one entry here."""


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
  """What is trained: every recipe, with sinks and without, with every seed.

  Attributes:
    recipes: names of `RECIPES`; the others are compared with `BASE`.
    normalizers: "softmax", and one without sinks.
  """

  recipes: tuple[str, ...] = tuple(RECIPES)
  normalizers: tuple[str, ...] = ("softmax", "softpick")


SCALES = BY_SCALE | {
  "demo": DEMO
  | {"recipes": (BASE, "post", "muon"), "normalizers": ("softmax",)}
}
"""Fields of `Config` by --scale."""


def name_of(recipe: str, normalizer: str) -> str:
  """The variant of a recipe and a normaliser."""
  return recipe if normalizer == "softmax" else recipe + WITHOUT


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each recipe and normaliser.

  Raises:
    ValueError: for a name that is no recipe.
  """
  runs = {}
  for normalizer in config.normalizers:
    own = positions_for(config) | {"normalizer": normalizer}
    each = {
      name: text_run(
        config, model=own | dict(recipe.model), optimizer=recipe.optimizer
      )
      for name, recipe in RECIPES.items()
    }
    found = chosen(each, config.recipes, "norms_and_optimisers")
    runs |= {name_of(name, normalizer): run for name, run in found.items()}
  return runs


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Every recipe against norms before the branches, with softmax and without.

  And sinks with none before them.
  """
  known = trained.probes
  found = []
  for normalizer in result.config.normalizers:
    base = name_of(BASE, normalizer)
    for recipe in RECIPES:
      name = name_of(recipe, normalizer)
      if recipe != BASE and {name, base} <= set(known):
        found.append(_smaller(trained, recipe, name, base))
  for recipe in RECIPES:
    without = recipe + WITHOUT
    if {recipe, without} <= set(known):
      found.append(_of_sinks(trained, recipe, without))
  if {"post", BASE} <= set(known):
    found.append(_still_a_sink(trained))
  return found


def _smaller(trained: Trained, recipe: str, name: str, base: str) -> Claim:
  """That the largest activation is smaller than the base's."""
  a, b = trained.as_trained(name), trained.as_trained(base)
  attention = "softpick" if name.endswith(WITHOUT) else "softmax"
  return Claim(
    f"smaller_activations_{name}",
    f"A model with {attention} attention and {RECIPES[recipe].subject} has a "
    "smaller largest activation, relative to the median, than one with AdamW "
    "and norms before the branches.",
    OUTLIERS if recipe not in ("post", "sandwich") else SPIKES,
    "no number for models of this size",
    f"{mean(a['massive_ratio'], '.1f')} ({name}) and "
    f"{mean(b['massive_ratio'], '.1f')} ({base}) times the median",
    seed_effect(
      np.log(a["massive_ratio"] / b["massive_ratio"]),
      f"the largest activation over median of {name} over that of {base}",
      LOG_RATIO,
      Expect.LESS,
    ),
    "in the layer where it is the largest",
    (no_worse(a["loss"], b["loss"], name, base),),
  )


def _of_sinks(trained: Trained, recipe: str, without: str) -> Claim:
  """That activations are smaller where attention has no sinks."""
  a, b = trained.as_trained(without), trained.as_trained(recipe)
  return Claim(
    f"smaller_without_sinks_{recipe}",
    f"With {RECIPES[recipe].subject} a model whose attention has no sinks has "
    "a smaller largest activation, relative to the median, than one with "
    "softmax attention.",
    SPIKES,
    "no number for models of this size",
    f"{mean(a['massive_ratio'], '.1f')} (softpick) and "
    f"{mean(b['massive_ratio'], '.1f')} (softmax) times the median",
    seed_effect(
      np.log(a["massive_ratio"] / b["massive_ratio"]),
      f"the largest activation over median of {without} over that of {recipe}",
      LOG_RATIO,
      Expect.LESS,
    ),
    "in the layer where it is the largest",
    (no_worse(a["loss"], b["loss"], without, recipe),),
  )


def _still_a_sink(trained: Trained) -> Claim:
  """That sinks need no norms before the branches."""
  key = "first_share"
  a, b = trained.as_trained("post")[key], trained.as_trained(BASE)[key]
  return Claim(
    "sink_without_pre_norms",
    "A model with norms on the residual stream alone attends to the first "
    "token no less than one with norms before the branches.",
    SPIKES,
    "sinks stay where massive activations go",
    f"{mean(a)} (post) and {mean(b)} (pre) of a row",
    seed_effect(
      a - b,
      "the first token's share of a row with norms on the residual stream, "
      "less that with norms before the branches",
      SHARE,
      Expect.NOT_LESS,
    ),
    "mean over layers and heads",
  )


SWEEP = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "recipes.png",
      lambda result: sweep_figures.bars(result, (*STANDARD, *INSIDE)),
      "Each recipe with softmax attention, and, where the name says sink free, "
      "with softpick attention. A screen of one seed orders variants and "
      "decides nothing.",
      sweep_figures.bar_caption,
      lambda result: sweep_figures.table(result, INSIDE),
    ),
    rates_chart(
      "Weight on tokens, and exact mixing",
      "With softmax a query gives one in all; with softpick the rest goes to "
      "nothing.",
      lambda result, name: slice(None) if name.endswith(WITHOUT) else None,
    ),
  ],
)

EXPERIMENT = controlled(SWEEP)
