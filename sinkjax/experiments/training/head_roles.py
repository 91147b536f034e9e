"""Do heads that are given a role keep it, and does the loss suffer?

    python -m launch.reproduce --experiment=head_roles --scale=cpu --out=DIR

In trained models some heads rest on the first token and others carry what
tokens have to say. Here a share of the heads of every layer is for resting:
softmax heads without positions that have a learned key without a value
(`ModelConfig.control_heads`). The others have a normaliser without sinks,
softpick (2504.20966), whose loss was that of softmax where others lost a nat in
`attention_variants`. Shares are compared with softmax attention in all heads.

The cpu scale is a screen: 5 variants at one seed, in the regime of
`configs/train/strong.py`, some half an hour each on two CPU cores. It has no
verdicts, since one seed has no interval; `seeds` takes more. A learned key has
32 parameters, so that all variants have the same number within 0.1 %, and they
see equal tokens.
"""

import dataclasses
from typing import Any

import numpy as np

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import NATS, SHARE, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Sweep, Trained
from sinkjax.experiments.harness.sweep_config import text_run
from sinkjax.experiments.harness.sweep_figures import STANDARD, Chart, Panel
from sinkjax.experiments.shared.controlled import (
  DEMO,
  ControlConfig,
  by_variant,
  controlled,
  firsts,
  positions_for,
  rates,
)
from sinkjax.experiments.shared.controlled import SCALES as BY_SCALE
from sinkjax.experiments.shared.controlled_figures import rates_chart
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.train.run_config import TrainConfig

TITLE = "Heads with roles"
BASE = "softmax"
NO_NUMBER = "no number; a proposal"


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
  """What is trained: softmax attention and every share, with every seed.

  Attributes:
    shares: of the heads of each layer that control mixing, whole heads each.
    normalizer: of the other heads.
  """

  shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
  normalizer: str = "softpick"


SCALES = BY_SCALE | {
  "demo": DEMO | {"shares": (0.0, 0.5)},
  # Twelve heads of 32 dimensions have quarters, six have none.
  "gpu": BY_SCALE["gpu"] | {"head_dim": 32},
}
"""Fields of `Config` by --scale."""


def name_of(share: float) -> str:
  """The variant with a share of its heads for control."""
  return f"share_{share:g}"


def control_heads(config: Config, share: float) -> int:
  """How many heads a share is.

  Raises:
    ValueError: for a share that is no whole number of heads, or not below 1.
  """
  heads = max(config.d_model // config.head_dim, 1)
  count = share * heads
  if not 0 <= share < 1 or count != int(count):
    raise ValueError(
      f"shares: each must be in [0, 1) and a whole number of {heads} heads, "
      f"got {share:g}"
    )
  return int(count)


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of softmax attention, and of each share.

  Raises:
    ValueError: as `control_heads`.
  """
  longest = positions_for(config)
  runs = {BASE: text_run(config, model=longest)}
  for share in config.shares:
    own = {
      "control_heads": control_heads(config, share),
      "normalizer": config.normalizer,
      "attention": "einsum",
    }
    runs[name_of(share)] = text_run(config, model=longest | own)
  return runs


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Every share against softmax, and the two roles against each other."""
  found = []
  for share in result.config.shares:
    name, count = name_of(share), control_heads(result.config, share)
    found += [_no_cost(trained, share, name), _no_sink(result, share, count)]
    if count:
      found.append(_roles_hold(result, share, count))
  return found


def _id(what: str, share: float) -> str:
  return f"{what}_{share:g}".replace(".", "_")


def _percent(share: float) -> str:
  return f"{100 * share:g} % of the heads for control"


def _no_cost(trained: Trained, share: float, name: str) -> Claim:
  a, b = trained.as_trained(name)["loss"], trained.as_trained(BASE)["loss"]
  return Claim(
    _id("no_worse", share),
    f"A model with {_percent(share)} predicts no worse than one with softmax "
    "attention.",
    "ours",
    NO_NUMBER,
    f"loss {mean(a)} and {mean(b)} (softmax) nats",
    seed_effect(
      a - b, f"the loss of {name}, less that of softmax,", NATS, Expect.NOT_MORE
    ),
  )


def _no_sink(result: Result, share: float, count: int) -> Claim:
  """That heads for information have no sink where softmax heads have one."""
  rows = by_variant(result)
  a = firsts(rows[name_of(share)])[..., count:].mean(axis=(1, 2, 3))
  b = firsts(rows[BASE]).mean(axis=(1, 2, 3))
  losses = (
    np.mean(rows[name]["losses"], axis=1) for name in (name_of(share), BASE)
  )
  return Claim(
    _id("information_heads_less_sink", share),
    f"In a model with {_percent(share)} the other heads put less of their "
    "attention on the first token than the heads of a softmax model.",
    "2504.20966",
    "34.89 % to 0 % of heads, without heads for control",
    f"{mean(a)} and {mean(b)} (softmax) of their attention",
    seed_effect(
      a - b,
      "the first token's share of a row of the other heads, less that of "
      "softmax heads",
      SHARE,
      Expect.LESS,
    ),
    "mean over texts of all lengths, layers and heads",
    (no_worse(*losses, name_of(share), BASE),),
  )


def _roles_hold(result: Result, share: float, count: int) -> Claim:
  """That heads for control rest, and the others do not."""
  found = rates(by_variant(result)[name_of(share)])
  a = found[..., :count].mean(axis=(1, 2, 3))
  b = found[..., count:].mean(axis=(1, 2, 3))
  return Claim(
    _id("control_heads_rest", share),
    f"In a model with {_percent(share)} these give less of their weight to "
    "tokens than the other heads do.",
    "ours",
    NO_NUMBER,
    f"{mean(a)} to tokens by heads for control and {mean(b)} by the others",
    seed_effect(
      a - b,
      "the weight on tokens of heads for control, less that of the others",
      SHARE,
      Expect.LESS,
    ),
    "the rest goes to the learned key, or, with softpick, to nothing; mean "
    "over texts of all lengths, layers and heads",
  )


def _by_role(values: Any, which: slice) -> Any:
  """A panel's number of some heads, by seed; `None` for no such head."""
  found = values[..., which]
  return found.mean(axis=(1, 2, 3)) if found.size else None


def _role_panel(title: str, of: Any, control: bool) -> Panel:
  def value(row: Any, numbers: Any) -> Any:
    rows = {one["variant"]: one for one in numbers["controls"]}
    count = numbers["control_heads"][row["variant"]]
    which = slice(count) if control else slice(count, None)
    return _by_role(of(rows[row["variant"]]), which)

  return Panel(title, value)


ROLES = (
  _role_panel("Weight on tokens, heads for control", rates, True),
  _role_panel("Weight on tokens, other heads", rates, False),
  _role_panel("First token's share, heads for control", firsts, True),
  _role_panel("First token's share, other heads", firsts, False),
)
INSIDE = (
  Panel("First value's norm over others'", "value_ratio"),
  Panel("Largest activation over median", "massive_ratio"),
  Panel("Kurtosis of activations", "kurtosis"),
)


def _counts(config: Config, trained: Trained) -> dict[str, Any]:
  counts = {name_of(s): control_heads(config, s) for s in config.shares}
  return {"control_heads": {BASE: 0, **counts}}


def _shares(result: Result) -> bytes:
  return sweep_figures.bars(result, (*STANDARD, *INSIDE))


def _roles(result: Result) -> bytes:
  return sweep_figures.bars(result, ROLES)


def _heads(result: Result, name: str) -> slice | None:
  count = result.numbers["control_heads"][name]
  return slice(count) if count else None


SWEEP = Sweep(
  TITLE,
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "shares.png",
      _shares,
      "Of every layer's heads a share is for the control of mixing; the others "
      "have a normaliser without sinks. Softmax has neither. A screen of one "
      "seed orders variants and decides nothing.",
      sweep_figures.bar_caption,
      lambda result: sweep_figures.table(result, INSIDE),
    ),
    Chart(
      "roles.png",
      _roles,
      "What heads of each role do: how much of a query's weight goes to "
      "tokens, and how much of that to the first one.",
      lambda result: (
        sweep_figures.seeds_caption(result, "Bars", "ticks")
        + " A dash: no such heads."
      ),
      lambda result: sweep_figures.table(result, ROLES),
      title="Do the roles hold?",
    ),
    rates_chart(
      "How much do heads for control mix?",
      "The weight that heads for control give to tokens; the rest goes to "
      "their learned key, which has no value.",
      _heads,
    ),
  ],
  numbers=_counts,
)

EXPERIMENT = controlled(SWEEP)
