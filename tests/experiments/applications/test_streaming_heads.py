"""Orders of heads, verdicts on values made by hand, and a run."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from sinkjax.experiments.applications.streaming_heads import EXPERIMENT, memory
from sinkjax.experiments.applications.streaming_heads.claims import on_caches
from sinkjax.experiments.applications.streaming_heads.experiment import (
  ALL,
  FULL,
  Config,
  Order,
  answers_of,
  measure,
  opened,
  orders_of,
)
from sinkjax.experiments.applications.streaming_heads.memory import Cached
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.asked_needles import find_needles
from sinkjax.experiments.shared.needles import haystack
from sinkjax.inference.streaming_heads import hidden_states
from sinkjax.models.transformer import logits_of

SMALL = Config(
  tokens=220,
  needles=8,
  training=2,
  steps=3,
  measured=9,
  window=24,
  shares=(0.5,),
)


CACHES = "by_head_finds_more"


def verdicts(signs=0, found=0.5, caches=None, **nats):
  """Of 10 haystacks, by nats over those of the unchanged model.

  `caches` are shares found, `None` for a file without them.
  """
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
  if caches is not None:
    sizes = memory.Sizes(6, 400, 250, 16)._asdict()
    numbers["memory"] = {"refused": "", **sizes}
    for name, share in zip(Cached, caches, strict=True):
      arrays[f"found, {name}"] = share + 0.01 * rng.normal(size=10)
  made = Result(numbers, {}, arrays).as_stored(Config())
  judged = judge(EXPERIMENT.claims(made))
  assert len({claim.id for claim in judged}) == 6 + (caches is not None)
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


def test_verdict_on_caches():
  """More than first tokens with a window, and not by any heads."""
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  assert verdicts(caches=(0.8, 0.2, 0.3, 0.3, 0.3))[6] == yes
  assert verdicts(caches=(0.2, 0.1, 0.6, 0.3, 0.3))[6] == no
  assert verdicts(caches=(0.8, 0.8, 0.3, 0.3, 0.3))[6] != yes
  made = Result({"memory": {"refused": "no room"}}, {}, {})
  (claim,) = on_caches(made)
  assert claim.id == CACHES and "no room" in claim.untested
  assert on_caches(Result({}, {}, {})) == []


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
  piles = [haystack(reader, [], 220, 8, seed) for seed in range(2, 11)]
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
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  # A cache with room for everything, in heads or all of them, is the model.
  assert found.numbers["memory"]["full"] == (gate > 0.5).sum() == gate.size
  for name in Cached:
    for what in ("found", "nats"):
      near = found.arrays[f"{what}, {FULL}"]
      got = found.arrays[f"{what}, {name}"]
      np.testing.assert_allclose(got, near, atol=1e-3)
  assert {claim.id for claim in EXPERIMENT.claims(found)} >= {CACHES}


GATES = np.array([[1.0, 0.2], [0.0, 0.1], [0.6, 0.0]])
"""Of the reader's KV heads, two open."""


@pytest.mark.slow
def test_caches_by_head_answer_as_the_model_with_heads_closed(reader):
  """Questions asked one by one, against all in one row, of masks."""
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  piles = [haystack(reader, [], 220, 8, seed) for seed in range(3)]
  control, counts = np.roll(GATES > 0.5, 1, axis=1).astype(float), []
  ends = {"sinks": 4, "window": 24}
  found = memory.compare(
    reader, piles, GATES, control, **ends, step=counts.append
  )
  assert counts == [3] * len(Cached)
  run = jax.jit(lambda *a: logits_of(reader.cfg, *a))
  states, told = hidden_states(reader.cfg), found.told
  for name, gates in ((Cached.HEADS, GATES), (Cached.RANDOM, control)):
    gate = np.asarray(gates > 0.5, np.float32)
    for pile, got in zip(piles, told[name], strict=True):
      x = states(reader.params, answers_of(pile), gate, 4, 24)
      want = memory.told_by(
        np.asarray(run(x, reader.params))[0][:, pile.choices]
      )
      np.testing.assert_allclose(got, want, atol=1e-3)
  # Caches of one size answer differently.
  nats = [x[:, 0] for x in told.values()]
  gaps = [np.abs(a - b).max() for a, b in itertools.combinations(nats, 2)]
  assert min(gaps) > 0.01
  size = found.size
  assert size[Cached.HEADS] == size[Cached.RANDOM]
  rivals = [size[name] for name in (Cached.SINKS, Cached.WINDOW, Cached.HEAVY)]
  assert size[Cached.HEADS] <= min(rivals)


def test_sizes_are_rounded_up_for_the_rivals(reader):
  """By hand, and against what JAX would allocate."""
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  piles = [haystack(reader, [], 220, 8, seed) for seed in range(2)]
  lengths = [np.bincount(pile.row.branch) for pile in piles]
  sizes = memory.sizes_of(piles, 2, 6, 28)
  assert sizes.chunk == max(8, *(x[1:].max() for x in lengths)) == 8
  assert sizes.capacity == max(x[0] + x[1:].max() for x in lengths)
  assert sizes.each == -(-(2 * sizes.capacity + 4 * (28 + 7)) // 6)
  made = memory.policies_of(sizes, GATES, GATES, 4, 24)
  size = {k: memory.size_in_bytes(reader.cfg, x) for k, x in made.items()}
  slot = 4 * (reader.cfg.head_dim + reader.cfg.value_dim)
  assert size[Cached.HEADS] == slot * (2 * sizes.capacity + 4 * (28 + 7))
  for name in (Cached.SINKS, Cached.WINDOW):
    assert made[name].capacity == sizes.each
    assert size[name] == slot * 6 * (sizes.each + 7)
  # Beside them a score and a rank, of four bytes each.
  assert size[Cached.HEAVY] == (slot + 8) * 6 * sizes.each


def test_models_that_a_cache_refuses_are_measured_without(reader):
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  piles = [haystack(reader, [], 220, 8, 0)]
  assert memory.refusal(reader.cfg, piles, 4, 24) == ""
  learned = reader.cfg.replace(positions="learned")
  assert "use the full cache" in memory.refusal(learned, piles, 4, 24)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"tokens": 600}, "at most the model's context of 512, got 600"),
    ({"window": 216}, "fewer than tokens=220, got 4 and 216"),
    ({"shares": (0.5, 0.2)}, "increasing, got"),
    ({"share": 0.3}, "share must be one of"),
    ({"measured": 8}, "at least 9, got 8"),
  ],
)
def test_refusals(reader, change, said):
  with pytest.raises(ValueError, match=said):
    measure(reader, dataclasses.replace(SMALL, **change))
