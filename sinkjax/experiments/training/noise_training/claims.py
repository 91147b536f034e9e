"""What noise in training does to sinks and robustness, and what sinks do."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.stats import (
  compare,
  format_ratio,
  mean,
  mean_over,
  slopes,
  unless_worse,
)
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

Row = Mapping[str, Any]


def claims(rows: Sequence[Row]) -> list[Claim]:
  """Of variants with two seeds or more each, as `rows_of` gives them."""
  own = {r["variant"]: r for r in rows if r["experiment"] == OWN}
  set_ = {r["variant"]: r for r in rows if r["experiment"] == REGULARISED}
  if any(len(row["seeds"]) < 2 for row in rows):
    return []
  return [*_trained_under_noise(own), *_without_sink(set_), *_by_sink(set_)]


def _in_id(variant: str) -> str:
  return variant.replace(".", "_")


def _gap(one: Row, other: Row, key: str, *, log: bool = False) -> np.ndarray:
  """[S] one variant's number minus another's, by seeds that both have."""
  f = np.log if log else np.asarray
  seeds = [seed for seed in one["seeds"] if seed in other["seeds"]]
  return np.array(
    [
      f(one[key][one["seeds"].index(s)])
      - f(other[key][other["seeds"].index(s)])
      for s in seeds
    ]
  )


def _times(logs: np.ndarray) -> str:
  return format_ratio(mean_over(logs, range(len(logs))))


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
      compare(
        f"stronger_sink_{_in_id(name)}",
        f"{training} leads to a stronger sink.",
        PAPER,
        "sinks are said to keep changes from spreading; not tried",
        _gap(row, plain, "first_mass"),
        f"attention on the first token {mean(row['first_mass'])} against "
        f"{mean(plain['first_mass'])}; {loss}",
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
  less = _gap(plain, row, f"{change}_kl", log=True)
  spread = _gap(row, plain, f"{change}_spread", log=True)
  made = compare(
    f"more_robust_to_{change}_{_in_id(name)}",
    f"{training} makes a model more robust to {CHANGES[change]}.",
    "our question",
    "not tried",
    less,
    f"KL divergence {_times(-less)} that of the plain model, relative change "
    f"of later tokens {_times(spread)}; loss {mean(cost, '+.3f')} nats",
  )
  why = "but it is a worse model, and predictions of worse models change less"
  return unless_worse(made, cost, why)


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
      compare(
        f"no_sink_changed_more_by_{change}",
        f"A model trained to have no sink is changed more by {CHANGES[change]} "
        "than a model trained without a sink target.",
        PAPER,
        "not tried",
        more,
        f"KL divergence {_times(more)} that of the model without a target, "
        f"relative change of later tokens {_times(spread)}; attention on the "
        f"first token {mean(none['first_mass'])} against "
        f"{mean(free['first_mass'])}, loss {mean(cost, '+.3f')} nats",
      )
    )
  return found


SLOPES = (
  (
    "stronger_sink_less_noise_spread",
    "noise_spread",
    "The stronger the sink that a model was trained to have, the less noise "
    "changes its later tokens.",
    -1,
    PAPER,
  ),
  (
    "stronger_sink_less_swap_spread",
    "swap_spread",
    "The stronger the sink that a model was trained to have, the less a "
    "swapped token changes its later tokens.",
    -1,
    PAPER,
  ),
  (
    "stronger_sink_weaker_first_token",
    "first_over_other",
    "The stronger the sink that a model was trained to have, the more an "
    "attack on its first token does, compared with an attack on another token.",
    1,
    CRITICS,
  ),
)
"""(id, logarithm that is explained, claim, sign of its slope, source)."""


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
  above = np.mean(worst["loss"]) - np.mean(rows["free"]["loss"])
  found = []
  for id, name, text, sign, source in SLOPES:
    values = slopes(every, name)
    if len(values) < 2:
      continue
    made = compare(
      id,
      text,
      source,
      "not tried",
      sign * values,
      f"logarithm {mean(values, '+.2f')} for each unit of attention on the "
      f"first token, over {len(every)} variants",
    )
    why = (
      f"{made.why}; models differ in their loss, too: {worst['variant']} is "
      f"{above:.2f} nats above the model without a target"
    )
    found.append(dataclasses.replace(made, why=why))
  return found
