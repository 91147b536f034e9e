"""Pruning: shares read off curves, a run on a random model, its page."""

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.pruning import EXPERIMENT
from sinkjax.experiments.applications.pruning.claims import share_text
from sinkjax.experiments.applications.pruning.config import Config, Skip
from sinkjax.experiments.applications.pruning.experiment import measure, split
from sinkjax.experiments.harness import timing
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.share_at import share_at
from sinkjax.inference.prune import lowest

pytestmark = pytest.mark.thorough


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


@pytest.mark.slow
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


@pytest.mark.slow
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
  assert ran.numbers["templates"] == list(range(7))
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


def verdicts(numbers=None, noise=1e-4, **change):
  """On losses and correct tokens made by hand, of 12 texts.

  Args:
    numbers: more than shares at one per cent.
    noise: between texts.
    change: of single arrays, by `NAMES`.
  """
  rng, names = np.random.default_rng(0), dict(NAMES)
  shares, arrays = (0.04, 0.14), {}
  for name, (array, mean) in names.items():
    mean = np.broadcast_to(change.get(name, mean), 2)
    arrays[array] = mean[:, None] + noise * rng.normal(size=(2, 12))
  rounds = 1 + 0.01 * rng.normal(size=9)
  faster = "without 14% of heads, unrolled"
  arrays["seconds, whole, unrolled"] = rounds
  arrays[f"seconds, {faster}"] = rounds / change.get("faster", 1.5)
  arrays[f"loss, {faster}"] = np.zeros(12)
  some = {"value": 0.1, "low": 0.1, "high": 0.1, "passes": True}
  at_one = [f"{x}, zero" for x in ("beside_sink", "random", "weights")]
  at_one += [*Skip]
  saved = {"value": 0.3, "low": 0.3, "high": 0.3, "groups": 9, "p": 0.1}
  numbers = (numbers or {}) | {
    "share_at_one_percent": dict.fromkeys(at_one, some),
    "saved": {faster: saved},
  }
  tables = {"time.csv": (["model", "heads_left"], [[faster, 0.86]])}
  config = Config(shares=shares, thresholds=(0.5, 0.9), unrolled=(0.14,))
  found = judge(
    EXPERIMENT.claims(Result(numbers, tables, arrays).as_stored(config))
  )
  assert len(found) == 7
  return {claim.id: claim for claim in found}


NAMES = {
  "right": ("right, dormant, zero", 0.0),
  "dormant": ("loss, dormant, zero", 0.0),
  "own": ("loss, beside_sink, zero", 0.05),
  "norm": ("loss, beside_norm, zero", 0.5),
  "random": ("loss, random, zero", 0.2),
  "weights": ("loss, weights, zero", 0.3),
  "term": ("loss, sink's part kept", 0.002),
  "chance": ("loss, random queries", 0.3),
  "predicted": ("loss, foretold", 0.05),
  "chance_value": ("loss, random queries, sink alone", 0.3),
  "skipped": ("skipped, sink's part kept", 0.2),
  "foretold": ("skipped, foretold", 0.1),
}
"""Array, and what is in it unless it is changed, at both shares or
thresholds."""


def test_verdicts():
  assert {x.verdict for x in verdicts().values()} == {Verdict.SUPPORTED}
  no, same = Verdict.CONTRADICTED, Verdict.NO_EFFECT
  # A fall of 0.7 % is within one per cent and not equal.
  fallen = verdicts(right=-0.007)
  assert fallen["remove_4_percent"].verdict == no
  assert fallen["remove_14_percent"].verdict == Verdict.SUPPORTED
  assert verdicts(right=-0.02)["remove_14_percent"].verdict == no
  # Few heads removed do not decide: 14 % do.
  for name in ("random", "weights"):
    id = f"nonsink_over_{name}"
    assert verdicts(**{name: [0.3, 0.01]})[id].verdict == no
    assert verdicts(**{name: [0.3, 0.055]})[id].verdict == same
  assert verdicts(term=[0.0, 0.05])["skip_dormant"].verdict == no
  assert verdicts(term=[0.05, 0.0])["skip_dormant"].verdict != no
  assert verdicts(predicted=[0.0, 0.4])["predict_dormant"].verdict == no
  # Random pairs that keep the sink's weight are another comparison.
  assert verdicts(chance_value=0.0)["predict_dormant"].verdict == no
  assert verdicts(faster=0.8)["faster_without"].verdict == no
  assert verdicts(faster=1.02)["faster_without"].verdict == same
  # The spread between texts is twice the difference.
  noisy = verdicts(noise=0.3)
  assert noisy["nonsink_over_random"].verdict == Verdict.INCONCLUSIVE


NOTE = "does not tell which texts share a template"


def test_texts_of_one_template_are_one_unit():
  alike = {"templates": [0, 1, 2, 3, 4, *[5] * 7]}
  found = verdicts(alike)
  units = {id: claim.effect.n for id, claim in found.items()}
  assert units.pop("faster_without") == 9
  assert set(units.values()) == {6}
  own, mean = (x["skip_dormant"].effect.mean.value for x in (verdicts(), found))
  assert own != mean
  # Older files name no templates, and may name the texts' origins.
  origins = {"origins": ["a", "pydoc: ast", *"bcdefgh", "pydoc: enum", *"ij"]}
  named = verdicts(origins)
  assert named["skip_dormant"].effect.n == 11
  silent = [id for id, claim in verdicts().items() if NOTE in claim.how]
  assert len(silent) == 6 and "faster_without" not in silent
  for one in (found, named):
    assert not any(NOTE in claim.how for claim in one.values())
  assert verdicts()["skip_dormant"].effect.n == 12


def test_no_share_is_given_below_the_least_that_was_measured():
  one = share_at([0.04, 0.1], np.full((2, 5), 0.03))
  assert one["value"] < 0.04
  assert share_text(one, 0.04) == "less than 4 %"
  assert share_text(one).startswith("1.3 (")
