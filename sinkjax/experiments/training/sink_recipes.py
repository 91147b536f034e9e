"""Sinks by design: which recipe is best at equal compute?

    python -m launch.reproduce --experiment=sink_recipes --scale=cpu --out=DIR

What controls sinks, put together: where BOS stands in a window (a first
position that is always the same, or one at the start of each document, or
none), a term of the loss that draws the first half of the heads of every layer
to the first token and the others away from it, rates of mixing, and heads with
roles. Every recipe sees equal tokens, and is compared with the first one: plain
softmax attention on windows whose BOS is at the start of each document.

The cpu scale is a screen: 9 recipes at one seed, in the regime of
`configs/train/strong.py`, some half an hour each on two CPU cores. It has no
verdicts, since one seed has no interval; `seeds` takes more. No recipe has more
than 1 % more parameters than another.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, NATS, Expect
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

TITLE = "Recipes for sinks by design"
SOURCE, NO_NUMBER = "ours", "no number; a proposal"
BASE = "document_bos"


class Recipe(NamedTuple):
  """What is put together.

  Attributes:
    subject: it in words, as a sentence has it.
    bos: where BOS stands, see `Packing`.
    model: fields of `ModelConfig` in which it differs from softmax.
    half_roles: half of the heads are `control_heads`, the others softpick.
    target: whether the loss draws heads to a sink or from it by their role.
  """

  subject: str
  bos: str = "pinned"
  model: Mapping[str, Any] = {}
  half_roles: bool = False
  target: bool = False


GATE = {"mixing": "gate"}
RECIPES = {
  BASE: Recipe("BOS at the start of each document", "document"),
  "no_bos": Recipe("no BOS", "none"),
  "pinned": Recipe("BOS pinned at the first position"),
  "target": Recipe(
    "a pinned BOS and a target of the sink for each half of the heads",
    target=True,
  ),
  "gate": Recipe("a pinned BOS and a rate of mixing of each token", model=GATE),
  "roles": Recipe("a pinned BOS and heads with roles", half_roles=True),
  "gate_roles": Recipe(
    "a pinned BOS, a rate of mixing and heads with roles",
    model=GATE,
    half_roles=True,
  ),
  "gate_no_bos": Recipe(
    "no BOS and a rate of mixing of each token", "none", GATE
  ),
  "roles_no_bos": Recipe(
    "no BOS and heads with roles", "none", half_roles=True
  ),
}
"""A new recipe is one entry here."""


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
  """What is trained: every recipe with every seed.

  Attributes:
    recipes: names of `RECIPES`; the others are compared with `BASE`.
    target: attention on the first token to which the first half of the heads
      are drawn, where a recipe has such a term.
    others: the same of the other half.
    weight: of that term in the loss, nats at a distance of 1.
  """

  recipes: tuple[str, ...] = tuple(RECIPES)
  target: float = 0.6
  others: float = 0.0
  weight: float = 10.0


SCALES = BY_SCALE | {"demo": DEMO | {"recipes": (BASE, "target", "gate_roles")}}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each recipe.

  Raises:
    ValueError: for a name that is no recipe, or a model of a single head.
  """
  half = config.d_model // config.head_dim // 2
  if not half:
    raise ValueError("recipes by role need two heads: a smaller head_dim")
  runs = {}
  for name, recipe in RECIPES.items():
    model = positions_for(config) | dict(recipe.model)
    if recipe.half_roles:
      model |= {
        "control_heads": half,
        "normalizer": "softpick",
        "attention": "einsum",
      }
    term = {}
    if recipe.target:
      term = {
        "sink_target": config.target,
        "sink_weight": config.weight,
        "sink_heads": half,
        "sink_others": config.others,
      }
    packing = {"bos": recipe.bos}
    runs[name] = text_run(config, model=model, packing=packing, **term)
  return chosen(runs, config.recipes, "sink_recipes")


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Of every recipe its loss and its largest activation against the base's."""
  known = trained.probes
  if BASE not in known:
    return []
  found = []
  for name in known:
    if name != BASE:
      found += [_no_cost(trained, name), _smaller(trained, name)]
  return found


def _no_cost(trained: Trained, name: str) -> Claim:
  a, b = trained.as_trained(name)["loss"], trained.as_trained(BASE)["loss"]
  return Claim(
    f"no_worse_{name}",
    f"A model with {RECIPES[name].subject} predicts no worse than one with "
    f"{RECIPES[BASE].subject}.",
    SOURCE,
    NO_NUMBER,
    f"loss {mean(a)} ({name}) and {mean(b)} ({BASE}) nats",
    seed_effect(
      a - b, f"the loss of {name}, less that of {BASE},", NATS, Expect.NOT_MORE
    ),
    "on the same tokens, each model reading them as in training",
  )


def _smaller(trained: Trained, name: str) -> Claim:
  a, b = trained.as_trained(name), trained.as_trained(BASE)
  key = "massive_ratio"
  return Claim(
    f"smaller_activations_{name}",
    f"A model with {RECIPES[name].subject} has a smaller largest activation, "
    f"relative to the median, than one with {RECIPES[BASE].subject}.",
    SOURCE,
    NO_NUMBER,
    f"{mean(a[key], '.1f')} ({name}) and {mean(b[key], '.1f')} ({BASE}) times "
    "the median",
    seed_effect(
      np.log(a[key] / b[key]),
      f"the largest activation over median of {name} over that of {BASE}",
      LOG_RATIO,
      Expect.LESS,
    ),
    "in the layer where it is the largest",
    (no_worse(a["loss"], b["loss"], name, BASE),),
  )


def _heads(result: Result, name: str) -> slice | None:
  recipe = RECIPES[name]
  if recipe.model:
    return slice(None)
  config = result.config
  half = config.d_model // config.head_dim // 2
  return slice(half) if recipe.half_roles else None


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
      "Every recipe sees equal tokens, and is read as it was trained. A screen "
      "of one seed orders recipes and decides nothing.",
      sweep_figures.bar_caption,
      lambda result: sweep_figures.table(result, INSIDE),
    ),
    rates_chart(
      "Rates, exact mixing and loss by length",
      "The rate is g where a head keeps its own value for the rest; with heads "
      "of roles alone, the weight that heads for control give to tokens.",
      _heads,
    ),
  ],
)

EXPERIMENT = controlled(SWEEP)
