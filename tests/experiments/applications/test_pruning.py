"""Pruning: shares read off curves, a run on a random model, its page."""

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.pruning import EXPERIMENT
from sinkjax.experiments.applications.pruning.claims import (
  share_text,
  skip_dormant,
)
from sinkjax.experiments.applications.pruning.config import Config
from sinkjax.experiments.applications.pruning.experiment import measure, split
from sinkjax.experiments.applications.pruning.results import share_at
from sinkjax.experiments.harness import timing
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.inference.prune import lowest


def test_shares_are_read_off_the_first_crossing():
  loss = np.array([[0.0, 0.01], [0.02, 0.02], [0.0, 0.0], [0.9, 0.9]])
  found = share_at([0.1, 0.2, 0.3, 0.4], loss)
  assert found["value"] == pytest.approx(0.1 + 0.1 / 3) and found["passes"]
  assert 0.1 <= found["low"] <= found["value"] <= found["high"] <= 0.15 + 1e-9
  never = share_at([0.1, 0.2], np.full((2, 3), 0.001))
  assert never["value"] == 0.2 and not never["passes"]
  assert share_at([0.5], np.full((1, 3), 0.1))["value"] == pytest.approx(0.05)


def test_interleaved_rounds_call_each_once_a_round():
  calls = []
  works = {name: lambda name=name: calls.append(name) for name in "abc"}
  found = timing.interleaved(works, 5)
  assert all(calls.count(name) == 6 for name in "abc")
  for i in range(6):
    assert sorted(calls[3 * i : 3 * i + 3]) == ["a", "b", "c"]
  assert all((x > 0).all() and len(x) == 5 for x in found.values())
  gain = timing.time_saved(np.array([1.0, 1.0, 3.0]), np.array([2.0, 2.0, 4.0]))
  assert gain.value == pytest.approx((0.5 + 0.5 + 0.25) / 3)
  with pytest.raises(ValueError, match="2 or more"):
    timing.interleaved(works, 1)


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  return [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(14)]


SMALL = Config(
  tokens=20,
  shares=(0.04, 0.14, 0.5),
  seeds=2,
  thresholds=(0.2, 0.9),
  shapes=((1, 2), (1, 1), (5, 5)),
  unrolled=(0.14, 0.5),
  timed=16,
  rounds=3,
  batch=4,
)


@pytest.fixture(scope="module")
def ran(reader, texts):
  seen = []
  done = measure(
    reader, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1] == len(seen)
  return done.as_stored(SMALL, "tiny")


def test_losses_are_those_of_the_ablated_model(ran, reader, texts):
  _, held = split(reader, SMALL, texts)
  order = ran.arrays["score, beside_sink"]
  gone = lowest(order, round(0.5 * order.size))
  f = sinkjax.forward(reader.cfg)

  def loss(f):
    logits = np.asarray(f(reader.params, jnp.asarray(held)).logits, float)
    logs = logits[:, :-1] - np.log(np.exp(logits[:, :-1]).sum(-1))[..., None]
    return -np.take_along_axis(logs, held[:, 1:, None], -1)[..., 0].mean(-1)

  plain = loss(f)
  got = loss(sinkjax.intervene(f, {"z": sinkjax.ablate_heads(gone)}))
  want = (got - plain) / plain.mean()
  assert np.abs(want).max() > 1e-3
  have = ran.arrays["loss, beside_sink, zero"][-1]
  np.testing.assert_allclose(have, want, atol=2e-5)
  assert ran.numbers["loss"]["value"] == pytest.approx(plain.mean(), abs=1e-4)


def test_ranking_and_measuring_texts_differ(reader, texts):
  ranking, held = split(reader, SMALL, texts)
  assert len(ranking) == len(held) == 7
  assert not {tuple(x) for x in ranking} & {tuple(x) for x in held}


def test_run_and_page(ran):
  low, high = ran.arrays["skipped, sink's part kept"]
  assert (low >= high).all() and low.mean() > 0
  by_chance = ran.arrays["skipped, random queries"][0].mean()
  assert by_chance == pytest.approx(low.mean(), abs=0.05)
  predicted = ran.arrays["skipped, foretold"][0].mean()
  alone = ran.arrays["skipped, random queries, sink alone"][0].mean()
  assert alone == pytest.approx(predicted, abs=0.05)
  models = {row["model"]: row for row in ran.records("time.csv")}
  for row in models.values():
    assert (row["saved"] is None) == (row["loss_change"] is None)
  assert models["1 group of 2"]["heads_left"] == 0.5
  assert "5 groups of 5" not in models
  claims = EXPERIMENT.claims(ran)
  assert len({claim.id for claim in claims}) == len(claims) == 7
  drawn = EXPERIMENT.draw(ran)
  assert set(drawn) == {"removal.png", "queries.png", "heads.png", "time.png"}
  assert len(EXPERIMENT.sections(ran, drawn)) == 4


def test_refusals(reader, texts):
  with pytest.raises(ValueError, match="at least 8 are needed"):
    measure(reader, Config(), texts=texts)
  with pytest.raises(ValueError, match="between 0 and 1"):
    measure(reader, Config(shares=(0.5, 0.2)), texts=texts)
  with pytest.raises(ValueError, match="unrolled must be some of shares"):
    measure(reader, Config(shares=(0.04, 0.14)), texts=texts)
  with pytest.raises(ValueError, match=r"shares=.*, got \(\)"):
    measure(reader, Config(unrolled=()), texts=texts)


@pytest.mark.parametrize(
  ("level", "verdict"), [(0.002, "agrees"), (0.05, "disagrees")]
)
def test_the_rest_of_a_row_is_judged_by_the_limit(level, verdict):
  rng = np.random.default_rng(0)
  cost = level + 1e-4 * rng.normal(size=(1, 6))
  arrays = {
    "skipped, sink's part kept": np.full((1, 6), 0.2),
    "loss, sink's part kept": cost,
    "loss, random queries": cost + 0.3,
  }
  at_one = {"sink's part kept": share_at([0.2], cost)}
  result = Result({"share_at_one_percent": at_one}, {}, arrays)
  result = result.as_stored(Config(thresholds=(0.9,)))
  assert skip_dormant(result).verdict == verdict


def test_no_share_is_given_below_the_least_that_was_measured():
  one = share_at([0.04, 0.1], np.full((2, 5), 0.03))
  assert one["value"] < 0.04
  assert share_text(one, 0.04) == "less than 4 %"
  assert share_text(one).startswith("1.3 (")
