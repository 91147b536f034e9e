"""The numbers, tables and arrays of the experiment `robustness`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.applications.robustness.config import (
  CHANGES,
  SITES,
  Condition,
  Config,
  Defence,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import Mean, ends_of, logs, mean_of
from sinkjax.experiments.shared.perturb import (
  MEASURES,
  NOISE,
  SWAP,
  by_name,
  header,
)

KL, LOSS, SPREAD = (MEASURES.index(x) for x in ("kl", "loss", "spread"))

Effects = Mapping[tuple[str, str], np.ndarray]
"""[P, C, draws, M] by kind and place."""

Levels = dict[str, np.ndarray]
"""[P, C] by measure: means of logarithms of "kl" and "spread", of "loss"."""


def effects_of(result: Result) -> Effects:
  """The effect of every perturbation, from the stored arrays."""
  found = {tuple(name.split(" ", 1)): x for name, x in result.arrays.items()}
  return {name: x for name, x in found.items() if name[0] in (NOISE, SWAP)}


def levels(effects: Effects) -> dict[str, Levels]:
  """Means over draws and places, by `Change`, and of noise by place."""
  groups = {
    place: (NOISE, (place,)) for kind, place in effects if kind == NOISE
  }
  scales = (
    ("kl", KL, logs),
    ("spread", SPREAD, logs),
    ("loss", LOSS, np.array),
  )
  return {
    change: {
      name: np.mean(
        [scale(effects[kind, x][..., m]).mean(-1) for x in some], axis=0
      )
      for name, m, scale in scales
    }
    for change, (kind, some) in (CHANGES | groups).items()
  }


def gap(level: np.ndarray, one: Condition, other: Condition) -> np.ndarray:
  """[P] one condition less another, from [P, C]."""
  order = list(Condition)
  return level[:, order.index(one)] - level[:, order.index(other)]


def between(level: np.ndarray, one: Condition, other: Condition) -> Mean:
  """Mean over texts of one condition less another, from [P, C]."""
  return mean_of(gap(level, one, other))


def ratios(found: Mapping[str, Levels]) -> dict[str, Any]:
  """{change: {measure: {condition: log ratio to that with the sink}}}."""
  return {
    change: {
      name: {
        condition: between(level, condition, Condition.SINK)
        for condition in Condition
        if condition != Condition.SINK
      }
      for name, level in one.items()
    }
    for change, one in found.items()
  }


def gains_of(attacks: np.ndarray, defence: Defence) -> np.ndarray:
  """[P, S] nats that a defence takes from the loss under attack.

  Args:
    attacks: [P, S, D, 3, M] of `Defended.evaluate`.
    defence: one of them.
  """
  # Every text is its own control: differences are taken within a text.
  none, mine = (
    attacks[:, :, list(Defence).index(x), 1, LOSS]
    for x in (Defence.NONE, defence)
  )
  return none - mine


def left_of(attacks: np.ndarray, defence: Defence) -> np.ndarray:
  """[P, S] KL, defended under attack, from the plain model without one."""
  return np.abs(attacks[:, :, list(Defence).index(defence), 1, KL])


def balance(attacks: np.ndarray) -> dict[str, dict[str, Any]]:
  """What each defence gains and costs, in nats.

  Args:
    attacks: [P, S, D, 3, M] of `Defended.evaluate`.

  Returns:
    By defence `cost`, what it adds to the loss where nothing attacks; `gain`,
    what it takes from the loss under attack, mean of sites, and "gain, SITE";
    `kl`, the mean log ratio of the KL of the attack in the defended model to
    that in the plain one; and `left`, the greatest KL of the attacked and
    defended model against the plain one without an attack.
  """
  order, found = list(Defence), {}
  none = attacks[:, :, order.index(Defence.NONE)]
  for d, defence in enumerate(order):
    mine = attacks[:, :, d]
    gain = gains_of(attacks, defence)
    ratio = logs(mine[:, :, 2, KL]) - logs(none[:, :, 2, KL])
    found[defence] = {
      # Without an attack all sites are the same run: the first is as good.
      "cost": mean_of(mine[:, 0, 0, LOSS]),
      "gain": mean_of(gain.mean(axis=1)),
      "kl": mean_of(ratio.mean(axis=1)),
      "left": float(left_of(attacks, defence).max()),
    } | {f"gain, {site}": mean_of(gain[:, s]) for s, site in enumerate(SITES)}
  return found


def result_of(
  config: Config,
  about: dict[str, Any],
  names: Sequence[tuple[str, str]],
  effects: np.ndarray,
  losses: np.ndarray,
  attacks: np.ndarray,
) -> Result:
  """Numbers, tables and arrays.

  Args:
    config: what was run.
    about: numbers that say on what.
    names: kind and place of each perturbation.
    effects: [P, C, R, M].
    losses: [P, C] without a perturbation.
    attacks: [P, S, D, 3, M].
  """
  named = by_name(effects, names)
  return Result(
    numbers=about
    | {
      "tokens": config.tokens,
      "measured_from": config.tokens // 2,
      "noise": config.noise,
      "draws": config.draws,
      "share": config.share,
      "candidates": config.candidates,
      "steps": config.steps,
      "eps": config.eps,
      "from_layer": config.from_layer,
      "ratios": ratios(levels(named)),
      "defences": balance(attacks),
    },
    tables={
      "disturbed.csv": _effect_table(named, losses),
      "defences.csv": _defence_table(attacks),
    },
    arrays={"loss": losses, "defences": attacks}
    | {" ".join(name): x for name, x in named.items()},
  )


def _ends(values: np.ndarray) -> list[float]:
  """Mean, low and high of each measure, from [P, M]."""
  return [x for one in values.T for x in ends_of(one)]


def _effect_table(
  named: Effects, losses: np.ndarray
) -> tuple[list[str], list[list[Any]]]:
  rows = []
  for (kind, place), values in named.items():
    for c, condition in enumerate(Condition):
      loss, each = float(losses[:, c].mean()), values[:, c].mean(axis=1)
      rows.append([kind, place, condition, loss, *_ends(each)])
  return header(["change", "place", "condition", "clean_loss"]), rows


def _defence_table(attacks: np.ndarray) -> tuple[list[str], list[list[Any]]]:
  kinds = ("not attacked", "attacked", "attacked, beside itself")
  rows = [
    [site, defence, kind, *_ends(attacks[:, s, d, k])]
    for s, site in enumerate(SITES)
    for d, defence in enumerate(Defence)
    for k, kind in enumerate(kinds)
  ]
  return header(["site", "defence", "compared"]), rows
