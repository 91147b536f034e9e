"""Orders of heads, verdicts on values made by hand, and a run."""

import dataclasses

import numpy as np
import pytest

from sinkjax.experiments.applications.streaming_heads import EXPERIMENT
from sinkjax.experiments.applications.streaming_heads.experiment import (
  ALL,
  FULL,
  Config,
  Order,
  measure,
  opened,
  orders_of,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.asked_needles import find_needles
from sinkjax.experiments.shared.needles import haystack

SMALL = Config(
  tokens=220,
  needles=8,
  training=2,
  steps=3,
  measured=8,
  window=24,
  shares=(0.5,),
)


def verdicts(signs=0, found=0.5, **nats):
  """Of 10 haystacks, by nats over those of the unchanged model."""
  rng = np.random.default_rng(0)
  gate = np.linspace(0, 1, 12).reshape(6, 2)
  arrays = {"gate": gate}
  for name in ("sink", "value", "reach"):
    noise = 0.01 * rng.normal(size=(10, 6, 2))
    sign = -signs if name == "sink" else signs
    arrays[name] = sign * gate + noise
  base = rng.normal(size=10)
  for name in (FULL, ALL, *(f"{order}, 0.5" for order in Order)):
    key = name.split(",")[0].replace(" ", "_")
    noise = 0.001 * rng.normal(size=10)
    arrays[f"nats, {name}"] = base + nats.get(key, 0.0) + noise
    arrays[f"found, {name}"] = found + noise
  numbers = {"heads": 12, "full": 0.5, "objective": [0.05, 0.04]}
  made = Result(numbers, {}, arrays).as_stored(Config())
  judged = judge(EXPERIMENT.claims(made))
  assert len({claim.id for claim in judged}) == 6
  return [claim.verdict for claim in judged]


def test_verdicts():
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  same, unsure = Verdict.NO_EFFECT, Verdict.INCONCLUSIVE
  others = {"random": 0.5, "most_attention_on_the_sink": 0.5}
  assert verdicts(1, all_streaming=1.0, **others) == [yes] * 6
  worse = {"lowest_gates": 0.5, "all_streaming": 1.0}
  assert verdicts(-1, **worse) == [no] * 6
  # Where all heads closed lose nothing, nothing was to be kept.
  assert verdicts(1)[:3] == [unsure, same, same]
  # Nor where no needle is found at all.
  chance = verdicts(1, found=1 / 16, all_streaming=1.0)
  assert chance[0] == unsure


def test_orders_close_their_own_heads():
  rng = np.random.default_rng(0)
  gate = rng.random((3, 2))
  gate[0] = 0
  seen = {name: rng.random((8, 3, 2)) for name in ("sink", "reach")}
  orders = orders_of(gate, seen, 0)
  for ranks in orders.values():
    assert sorted(ranks.ravel()) == list(range(6))
  assert set(orders[Order.GATE][0]) == {0, 1}
  most = np.unravel_index(seen["sink"].mean(0).argmax(), (3, 2))
  assert orders[Order.SINK][most] == 0
  least = np.unravel_index(seen["reach"].mean(0).argmin(), (3, 2))
  assert orders[Order.REACH][least] == 0
  assert opened(orders[Order.GATE], 1 / 3).tolist()[0] == [0, 0]
  assert opened(orders[Order.GATE], 1 / 3).sum() == 4


@pytest.mark.slow
def test_run_and_page(reader):
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  seen = []
  done = measure(reader, SMALL, progress=lambda *at: seen.append(at))
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(SMALL, "tiny")
  # With all heads full, needles are found as the model finds them.
  piles = [haystack(reader, [], 220, 8, seed) for seed in range(2, 10)]
  right = find_needles(reader, piles).mean(axis=1)
  np.testing.assert_allclose(found.arrays[f"found, {FULL}"], right)
  gate, sink = found.arrays["gate"], found.arrays["sink"]
  assert gate.shape == sink.shape[1:]
  assert ((gate >= 0) & (gate <= 1)).all() and (gate < 1).any()
  gap = found.arrays[f"nats, {ALL}"] - found.arrays[f"nats, {FULL}"]
  assert np.abs(gap).max() > 1e-3
  rows = {row["closed"]: row for row in found.records("closed.csv")}
  assert len(rows) == 2 + len(Order)
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"heads.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 1


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"tokens": 600}, "at most the model's context of 512, got 600"),
    ({"window": 216}, "fewer than tokens=220, got 4 and 216"),
    ({"shares": (0.5, 0.2)}, "increasing, got"),
    ({"share": 0.3}, "share must be one of"),
    ({"measured": 7}, "at least 8, got 7"),
  ],
)
def test_refusals(reader, change, said):
  with pytest.raises(ValueError, match=said):
    measure(reader, dataclasses.replace(SMALL, **change))
