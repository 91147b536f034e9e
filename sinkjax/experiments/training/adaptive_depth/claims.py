"""Claims about which tokens stop early, and what that costs."""

from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import NATS, SHARE, Effect, Expect
from sinkjax.experiments.harness.stats import mean
from sinkjax.experiments.harness.sweep import Trained
from sinkjax.experiments.shared.controlled import Row, by_variant
from sinkjax.experiments.shared.seed_effects import no_worse, seed_effect
from sinkjax.experiments.training.adaptive_depth.experiment import (
  FULL,
  SHALLOW,
  work,
)

SUBJECTS = {
  "halting": "tokens that halt",
  "routed": "layers that route around half of the tokens",
}
SOURCES = {"halting": "2107.05407", "routed": "2404.02258"}
NO_NUMBER = "no number for models of this size"


def claims(trained: Trained, result: Result) -> list[Claim]:
  """Each way against the full and the shallow model, and which tokens stop."""
  rows, found = by_variant(result), []
  for name in SUBJECTS:
    if name not in rows:
      continue
    if FULL in rows:
      found += [_no_cost(trained, name), _weaker_sink(trained, rows, name)]
    if SHALLOW in rows:
      found.append(_equal_compute(trained, rows, name))
    found.append(_first_stops(rows, name))
    found += _of_tokens(rows[name], name)
  return found


def _claim(
  id: str, name: str, claim: str, ours: str, effect: Effect, **more: Any
) -> Claim:
  id = f"{id}_{name}"
  return Claim(id, claim, SOURCES[name], NO_NUMBER, ours, effect, **more)


def _losses(trained: Trained, *names: str) -> list[np.ndarray]:
  return [trained.as_trained(name)["loss"] for name in names]


def _no_cost(trained: Trained, name: str) -> Claim:
  a, b = _losses(trained, name, FULL)
  return _claim(
    "no_worse_equal_parameters",
    name,
    f"A model with {SUBJECTS[name]} predicts no worse than one of as many "
    "parameters, all of whose layers every token takes.",
    f"loss {mean(a)} ({name}) and {mean(b)} (full) nats",
    no_worse(a, b, name, FULL),
  )


def _equal_compute(trained: Trained, rows: dict[str, Row], name: str) -> Claim:
  a, b = _losses(trained, name, SHALLOW)
  mine, other = work(rows[name]), work(rows[SHALLOW])
  depth = np.asarray(rows[FULL if FULL in rows else name]["taken"]).shape[1]
  return _claim(
    "better_equal_compute",
    name,
    f"A model with {SUBJECTS[name]} predicts better than one with so few "
    "layers that every token takes as many.",
    f"loss {mean(a)} ({name}) and {mean(b)} (shallow) nats, with {mean(mine)} "
    f"and {mean(other)} layers a token",
    seed_effect(
      a - b, f"the loss of {name}, less that of shallow,", NATS, Expect.LESS
    ),
    how="layers that tokens take in use; training computes all of them",
    provided=(
      seed_effect(
        (mine - other) / depth,
        f"the share of the layers that a token of {name} takes, less that of "
        "shallow",
        SHARE,
        Expect.NOT_MORE,
      ),
    ),
  )


def _weaker_sink(trained: Trained, rows: dict[str, Row], name: str) -> Claim:
  a, b = (np.array(rows[x]["first_share"], float) for x in (name, FULL))
  return _claim(
    "weaker_sink",
    name,
    f"In a model with {SUBJECTS[name]} tokens put less of their attention on "
    "the first token than where every token takes all layers.",
    f"{mean(a)} ({name}) and {mean(b)} (full) of their attention",
    seed_effect(
      a - b,
      f"the first token's share of a row with {name}, less that of full",
      SHARE,
      Expect.LESS,
    ),
    how="mean over heads and over the layers that each token takes",
    provided=(no_worse(*_losses(trained, name, FULL), name, FULL),),
  )


def _first_stops(rows: dict[str, Row], name: str) -> Claim:
  taken = np.asarray(rows[name]["taken"], float).mean(axis=1)  # [S, T]
  first, others = taken[:, 0], taken[:, 1:].mean(axis=1)
  return _claim(
    "first_stops_early",
    name,
    f"In a model with {SUBJECTS[name]} the first token takes fewer layers than "
    "the others do.",
    f"{mean(first)} of the layers by the first token, {mean(others)} by others",
    seed_effect(
      first - others,
      f"the share of the layers that the first token of {name} takes, less "
      "that of others",
      SHARE,
      Expect.LESS,
    ),
    how="held-out texts of the trained length; BOS is first in each",
  )


def _of_tokens(row: Row, name: str) -> list[Claim]:
  """What tokens that stop are like; none where all take the same layers."""
  found = []
  if None not in row["stops"]:
    a, b = np.array(row["stops"], float), np.array(row["goes"], float)
    found.append(
      _claim(
        "resting_stop",
        name,
        f"In a model with {SUBJECTS[name]} tokens that leave out the next "
        "layer attend more to the first token than tokens that take it.",
        f"{mean(a)} (stop) and {mean(b)} (go on) of their attention",
        seed_effect(
          a - b,
          "the first token's share of a row of tokens that stop, less that of "
          "those that go on",
          SHARE,
          Expect.MORE,
        ),
        how="in layers that both take; where in the text they stand is not "
        "held equal",
      )
    )
  if None not in row["nats_few"]:
    a, b = np.array(row["nats_few"], float), np.array(row["nats_many"], float)
    found.append(
      _claim(
        "stop_where_easy",
        name,
        f"In a model with {SUBJECTS[name]} tokens that take few layers predict "
        "the next token better than those that take many.",
        f"loss {mean(a)} (few) and {mean(b)} (many) nats",
        seed_effect(
          a - b,
          "the loss at tokens that take few layers, less that at others,",
          NATS,
          Expect.LESS,
        ),
        how="few: fewer than the median token",
      )
    )
  return found
