"""What noise in training does to sinks and robustness, and what sinks do."""

from collections.abc import Mapping, Sequence

import numpy as np

from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.effects import LOG_RATIO, SHARE, Effect, Expect
from sinkjax.experiments.harness.stats import (
  format_ratio,
  mean,
  mean_of,
  slopes,
)
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.experiments.shared.sink_slopes import Row, sink_slope
from sinkjax.experiments.training.noise_training.experiment import (
  ADVERSARIAL,
  OWN,
  REGULARISED,
)
from sinkjax.experiments.training.noise_training.robustness_score import KINDS

PAPER, CRITICS = "2504.02732", "2501.15269; 2510.17021"

CHANGES = {
  "noise": "noise on its tokens",
  "swap": "a swapped token",
  "attack_first": "an attack on its first token",
  "attack": "an attack on a token other than the first",
}
"""`KINDS` in words."""

HOW = "predictions of a model that has learnt less change less"
"""Why the model that is changed less must be no worse."""


def claims(rows: Sequence[Row]) -> list[Claim]:
  """Of variants with two seeds or more each, as `rows_of` gives them."""
  own = {r["variant"]: r for r in rows if r["experiment"] == OWN}
  set_ = {r["variant"]: r for r in rows if r["experiment"] == REGULARISED}
  # An interval needs two seeds.
  if any(len(row["seeds"]) < 2 for row in rows):
    return []
  return [*_trained_under_noise(own), *_without_sink(set_), *_by_sink(set_)]


def _in_id(variant: str) -> str:
  return variant.replace(".", "_")


def _gap(one: Row, other: Row, key: str, *, log: bool = False) -> np.ndarray:
  """[S] one variant's number minus another's, by seeds that both have."""
  # Divergences of different models differ by factors, so they are compared as
  # ratios.
  f = np.log if log else np.asarray
  seeds = [seed for seed in one["seeds"] if seed in other["seeds"]]
  return np.array(
    [
      f(one[key][one["seeds"].index(s)])
      - f(other[key][other["seeds"].index(s)])
      for s in seeds
    ]
  )


def _no_worse(one: Row, other: Row, name: str, than: str) -> Effect:
  cost = _gap(one, other, "loss")
  return no_worse(cost, np.zeros_like(cost), name, than)


def _times(logs: np.ndarray) -> str:
  return format_ratio(mean_of(logs))


def _trained_under_noise(own: Mapping[str, Row]) -> list[Claim]:
  """Each variant against the plain model: its sink and its robustness."""
  if "plain" not in own:
    return []
  plain, found = own["plain"], []
  for name, row in own.items():
    if name == "plain":
      continue
    kind, _, share = name.partition("_")
    noise = "adversarial" if kind == ADVERSARIAL else "random"
    training = (
      f"Training under {noise} noise of {share} times each embedding's norm"
    )
    loss = f"loss {mean(_gap(row, plain, 'loss'), '+.3f')} nats"
    found.append(
      Claim(
        f"stronger_sink_{_in_id(name)}",
        f"{training} leads to a stronger sink.",
        PAPER,
        "sinks are said to keep changes from spreading; not tried",
        f"attention on the first token {mean(row['first_mass'])} against "
        f"{mean(plain['first_mass'])}; {loss}",
        seed_effect(
          _gap(row, plain, "first_mass"),
          f"attention on the first token of {name}, less that of plain,",
          SHARE,
          Expect.MORE,
        ),
        "a model that has learnt less has a weaker sink",
        (_no_worse(plain, row, "plain", name),),
      )
    )
    found += [
      _more_robust(name, training, row, plain, change)
      for change in ("noise", "attack")
    ]
  return found


def _more_robust(
  name: str, training: str, row: Row, plain: Row, change: str
) -> Claim:
  """That a variant is changed less than the plain model."""
  cost = _gap(row, plain, "loss")
  ratio = _gap(row, plain, f"{change}_kl", log=True)
  spread = _gap(row, plain, f"{change}_spread", log=True)
  return Claim(
    f"more_robust_to_{change}_{_in_id(name)}",
    f"{training} makes a model more robust to {CHANGES[change]}.",
    "our question",
    "not tried",
    f"KL divergence {_times(ratio)} that of the plain model, relative change "
    f"of later tokens {_times(spread)}; loss {mean(cost, '+.3f')} nats",
    seed_effect(
      ratio,
      f"the KL divergence of {name} over that of plain",
      LOG_RATIO,
      Expect.LESS,
    ),
    HOW,
    (_no_worse(row, plain, name, "plain"),),
  )


def _targets(rows: Mapping[str, Row]) -> dict[float, Row]:
  """The variants of `sink_regulariser` that have a target, by target."""
  return {
    float(name.partition("_")[2]): row
    for name, row in rows.items()
    if name.startswith("target_")
  }


def _without_sink(rows: Mapping[str, Row]) -> list[Claim]:
  """The model of the lowest target against the one without a target."""
  targets = _targets(rows)
  if "free" not in rows or not targets:
    return []
  free, none, found = rows["free"], targets[min(targets)], []
  cost = _gap(none, free, "loss")
  for change in KINDS:
    more = _gap(none, free, f"{change}_kl", log=True)
    spread = _gap(none, free, f"{change}_spread", log=True)
    found.append(
      Claim(
        f"no_sink_changed_more_by_{change}",
        f"A model trained to have no sink is changed more by {CHANGES[change]} "
        "than a model trained without a sink target.",
        PAPER,
        "not tried",
        f"KL divergence {_times(more)} that of the model without a target, "
        f"relative change of later tokens {_times(spread)}; attention on the "
        f"first token {mean(none['first_mass'])} against "
        f"{mean(free['first_mass'])}, loss {mean(cost, '+.3f')} nats",
        seed_effect(
          more,
          f"the KL divergence of {none['variant']} over that without a target",
          LOG_RATIO,
          Expect.MORE,
        ),
        HOW,
        (_no_worse(free, none, "no target", none["variant"]),),
      )
    )
  return found


SLOPES = (
  (
    "stronger_sink_less_noise_spread",
    "noise_spread",
    "The stronger the sink that a model was trained to have, the less noise "
    "changes its later tokens.",
    "the relative change of later tokens under noise",
    Expect.MORE,
    PAPER,
  ),
  (
    "stronger_sink_less_swap_spread",
    "swap_spread",
    "The stronger the sink that a model was trained to have, the less a "
    "swapped token changes its later tokens.",
    "the relative change of later tokens after a swap",
    Expect.MORE,
    PAPER,
  ),
  (
    "stronger_sink_weaker_first_token",
    "first_over_other",
    "The stronger the sink that a model was trained to have, the more an "
    "attack on its first token does, compared with an attack on another token.",
    "the KL divergence of an attack on the first token over that of one on "
    "another token",
    Expect.LESS,
    CRITICS,
  ),
)
"""(id, logarithm that is explained, claim, it in words, what is expected of it
from the strongest sink to the weakest, source)."""


def _by_sink(rows: Mapping[str, Row]) -> list[Claim]:
  """Slopes over the attention on the first token, of all targets and none."""
  if "free" not in rows or not _targets(rows):
    return []
  every = [
    {
      **row,
      "noise_spread": list(np.log(row["noise_spread"])),
      "swap_spread": list(np.log(row["swap_spread"])),
      "first_over_other": list(
        np.subtract(np.log(row["attack_first_kl"]), np.log(row["attack_kl"]))
      ),
    }
    for row in rows.values()
  ]
  worst = max(every, key=lambda row: np.mean(row["loss"]))
  # A slope over sinks may come from the loss, which the reader then can judge.
  above = np.mean(worst["loss"]) - np.mean(rows["free"]["loss"])
  found = []
  for id, name, text, what, expect, source in SLOPES:
    if len(slopes(every, name)) < 2:
      continue
    made = sink_slope(every, name, what, LOG_RATIO, expect)
    found.append(
      Claim(
        id,
        text,
        source,
        "not tried",
        f"logarithm {mean(made.slope, '+.2f')} for each unit of attention on "
        f"the first token, over {len(every)} variants{made.without}",
        made.effect,
        "models differ in their loss, too: "
        f"{worst['variant']} is {above:.2f} nats above the model without a "
        "target",
        made.provided,
        made.untested,
      )
    )
  return found
