"""Streaming: which tokens count, what is compared, a run on a tiny model."""

import dataclasses

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.streaming import EXPERIMENT
from sinkjax.experiments.applications.streaming.config import (
  Config,
  fresh,
  runs_of,
  sample,
  starts,
)
from sinkjax.experiments.applications.streaming.experiment import measure
from sinkjax.experiments.applications.streaming.losses import (
  Losses,
  Streams,
  compare,
  mean_from,
)
from sinkjax.experiments.applications.streaming.results import Times, result_of
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import Mean, mean_of, pooled
from sinkjax.inference import kv_policy
from sinkjax.inference.scoring import stream_nats
from sinkjax.models.cache import split_layers

pytestmark = pytest.mark.thorough

SMALL = Config(
  tokens=130,
  total=16,
  totals=(12, 24),
  fewer_sinks=(1,),
  fewer=50,
  dense=110,
  room=128,
  recomputed=30,
  block=10,
  chunk=8,
  batch=4,
  rounds=3,
  steps=2,
)


@pytest.fixture(scope="module")
def text():
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night . \n"
  return " ".join(rng.choice(words.split(" "), 140))


@pytest.fixture(scope="module")
def short(reader):
  """With a context shorter than what is dense."""
  return reader._replace(cfg=reader.cfg.replace(max_len=64))


@pytest.fixture(scope="module")
def ran(short, text):
  seen = []
  done = measure(short, SMALL, text=text, progress=lambda *at: seen.append(at))
  assert seen[-1][0] == seen[-1][1]
  assert all(a[0] < b[0] for a, b in zip(seen, seen[1:], strict=False))
  return done.as_stored(SMALL, "tiny")


def stream(subject, ids, sinks, total):
  policy = kv_policy.sinks(sinks, total - sinks, chunk=1)
  params = split_layers(subject.params)
  return stream_nats(subject.cfg, params, ids, policy=policy)


def forward_nats(subject, ids):
  """nats[i] of token i + 1, by one pass."""
  logits = sinkjax.forward(subject.cfg)(subject.params, np.array([ids[:-1]]))
  logs = jax.nn.log_softmax(logits.logits[0])
  return -np.asarray(logs)[np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.slow
def test_the_same_tokens_count_whatever_comes_before(ran, short, text):
  ids = short.tokenizer.encode(text)[:131]
  rows = {row[0]: row for row in ran.tables["starts.csv"][1]}
  assert list(rows) == [
    r"4 times '\n'",
    "4 times '.'",
    "the text from token 80 on",
  ]
  own = stream(short, ids, 4, 16)  # own[i] is the loss of token i + 1
  dots = stream(short, short.tokenizer.encode(".") * 4 + ids, 4, 16)[4:]
  late = stream(short, ids[80:], 4, 16)

  row = rows["4 times '.'"]
  assert row[1:3] == [16, 50]
  assert row[3] == pytest.approx(dots[16:50].mean(), abs=1e-4)
  assert row[4] == pytest.approx(own[16:50].mean(), abs=1e-4)
  assert row[5] == pytest.approx(row[3] - row[4], abs=1e-6)
  row = rows["the text from token 80 on"]
  assert row[1:3] == [96, 130]
  assert row[3] == pytest.approx(late[16:].mean(), abs=1e-4)
  assert row[4] == pytest.approx(own[96:].mean(), abs=1e-4)


@pytest.mark.slow
def test_losses_by_cache(ran, short, text):
  ids = short.tokenizer.encode(text)[:131]
  rows = {tuple(row[:5]): row[5:] for row in ran.tables["sinks.csv"][1]}
  assert len(rows) == 5 + 5 + 2 + 1
  for sinks, total, low, high in (
    (0, 16, 16, 130),
    (8, 16, 24, 50),
    (1, 12, 24, 50),
    (1, 24, 24, 50),
  ):
    nats = stream(short, ids, sinks, total)
    want = nats[low:high].mean()
    got = rows[total, sinks, total - sinks, low, high]
    assert got[0] == pytest.approx(want, abs=1e-4)
    assert got[3] == pytest.approx(np.exp(want), rel=1e-4)
  assert rows[None, None, None, 24, 50][0] == pytest.approx(
    forward_nats(short, ids[:51])[24:].mean(), abs=1e-4
  )
  for at, nats in zip(
    ran.arrays["recomputed_at"], ran.arrays["recompute"], strict=True
  ):
    window = forward_nats(short, ids[at - 16 : at + 1])
    assert nats == pytest.approx(window[-1], abs=1e-3)
  above = rows[16, 1, 15, 16, 130][4:]
  assert above[1] < above[0] < above[2]
  assert above[0] == pytest.approx(
    rows[16, 1, 15, 16, 130][0] - rows[16, 4, 12, 16, 130][0], abs=1e-6
  )
  assert rows[12, 1, 11, 24, 50][4:] == [None] * 3
  losses = {round(row[0], 6) for row in rows.values()}
  assert len(losses) == len(rows), "the caches do not differ"


@pytest.mark.slow
def test_run_and_page(ran):
  claims = {claim.id: claim for claim in judge(EXPERIMENT.claims(ran))}
  assert len(claims) == 8
  for id in ("four_suffice", "newlines"):
    (needed,) = claims[id].provided
    assert not needed.p_holds() < 0.05, "it needs no first tokens"
    assert claims[id].verdict != Verdict.SUPPORTED
  assert ran.numbers["context"] == 64
  assert "with every token kept, after 70 tokens" in claims["past_context"].ours
  assert "on all 46 after 64 " in claims["past_context"].ours
  position = ran.records("positions.csv")
  dense = [row for row in position if row["curve"] == "dense"]
  assert max(row["to"] for row in dense) == 110
  assert sum(row["tokens"] for row in dense) == 46
  alone = [row for row in position if row["curve"] == "window alone"]
  assert sum(row["tokens"] for row in alone) == 66
  times = ran.tables["time.csv"][1]
  assert [row[0] for row in times] == [12, 16, 24]
  # keys and values of 4 + (total - 4) tokens, 3 layers, 2 heads of 8
  assert [row[6] for row in times] == [
    2 * 4 * 3 * 2 * 8 * total for total in (12, 16, 24)
  ]
  drawn = EXPERIMENT.draw(ran)
  assert set(drawn) == {"positions.png", "sinks.png", "time.png", "starts.png"}
  assert len(EXPERIMENT.sections(ran, drawn)) == 5


@pytest.mark.slow
def test_pairs_come_again_from_their_blocks(ran):
  """The arrays hold every block, so an interval can be made anew."""
  assert len(ran.numbers["pairs"]) == 8
  for name, pair in ran.numbers["pairs"].items():
    tokens, first, second = ran.arrays[f"pair, {name}"].T
    assert tokens.sum() == pair["tokens"]
    assert tokens @ first / tokens.sum() == pytest.approx(pair["first"])
    each = np.repeat(first - second, tokens.astype(int))
    blocks = np.repeat(np.arange(len(tokens)), tokens.astype(int))
    again = pooled(each, blocks)
    assert again == pytest.approx(Mean(**pair["gap"]), rel=1e-4, abs=1e-6)


def whole_blocks(ran, pair, limit):
  """The mean over blocks of all their tokens, from the newest form."""
  tokens, first, second = ran.arrays[f"pair, {pair}"].T
  return mean_of((first - second)[tokens == SMALL.block] - limit)


@pytest.mark.slow
def test_older_files_have_most_claims_in_their_tables(ran):
  """Blocks were kept last, the comparisons before them."""
  numbers = {k: v for k, v in ran.numbers.items() if k != "pairs"}
  arrays = {k: v for k, v in ran.arrays.items() if not k.startswith("pair, ")}
  means = dataclasses.replace(ran, arrays=arrays)
  tables = dataclasses.replace(means, numbers=numbers)
  new = {claim.id: claim for claim in EXPERIMENT.claims(ran)}
  # Without the comparisons' blocks these are over whole blocks alone.
  doubled = whole_blocks(ran, "window_alone", np.log(2))
  one = whole_blocks(ran, "one_first", 0)
  for old, whole in (
    (means, {"window_alone": doubled}),
    (tables, {"window_alone": doubled, "one_not_enough": one}),
  ):
    for claim in EXPERIMENT.claims(old):
      if claim.id in ("past_context", "as_recomputed") and old is tables:
        assert claim.effect is None and "run it again" in claim.untested
        continue
      assert claim.ours == new[claim.id].ours
      want = whole.get(claim.id, new[claim.id].effect.mean)
      near = {"rel": 1e-4, "abs": 1e-5}  # stored means have seven digits
      got = claim.effect.mean
      assert got[:4] == pytest.approx(want[:4], **near), claim.id
      if claim.effect.sided() and got.groups >= 8:
        assert got.p == pytest.approx(want.p, abs=1e-3), claim.id


def test_compare_by_hand():
  config = Config(block=10)
  a = Losses(np.arange(1, 41), np.arange(1.0, 41))
  b = Losses(np.array([8, 12, 19, 20, 21, 40, 90]), np.zeros(7))
  pair = compare(a, b, config, 8)  # 11 to 20 is a block, 21 to 40 are two
  assert pair.gap.groups == 3 and pair.tokens == 5
  assert pair.first == pytest.approx((12 + 19 + 20 + 21 + 40) / 5)
  assert pair.second == 0 and pair.gap.value == pytest.approx(pair.first)
  assert pair.blocks.tolist() == [[3, 17, 0], [1, 21, 0], [1, 40, 0]]
  assert compare(a, b, config, 21) is None
  assert compare(a, b, config, 8, 21).tokens == 4
  mean = mean_from(a, config, 5, 20)
  assert mean.groups == 2
  assert mean.value == pytest.approx(13)


def test_one_recomputed_token_in_each_part():
  config = Config(tokens=1000, total=100, recomputed=90)
  at = sample(config)
  assert ((at - 101) // 10 == np.arange(90)).all()
  assert len({int(x) % 10 for x in at}) > 5


def made(**gaps):
  """Verdicts on losses that differ so much, with a little noise a block."""
  config = Config(tokens=6000, dense=3600, fewer=2500, recomputed=40)
  rng, at = np.random.default_rng(0), np.arange(1, 6001)
  level = 3 + rng.normal(0, 0.5, 12).repeat(500)

  def found(name, at=at):
    noise = rng.normal(0, 1e-3, 12).repeat(500)
    return Losses(at, (level + gaps.get(name, 0.0) + noise)[at - 1])

  runs = {one: found(f"s{one.sinks}") for one in runs_of(config)}
  runs[starts(config)["\n"]] = found("newline", at[:2500])
  runs[fresh(config)] = found("fresh", at[3500:])
  dense = found("dense", at[:3600])
  dense.nats[1600:] += gaps.get("late", 0.0)
  streams = Streams(runs, dense, found("anew", at[300::100]))
  cached = gaps.get("cached", np.ones((2, 6)))
  anew = gaps.get("anew_time", np.array([[5, 6, 7] * 2, [9, 11, 10.0] * 2]))
  times = Times([128, 256], cached, anew, [1, 2], [(1, 1)] * 2)
  about = {"text": "", "context": 1000, "prefix": []}
  result = result_of(config, about, streams, times).as_stored(config)
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(result))}


def test_verdicts():
  as_claimed = {"s0": 5.0, "s1": 0.2, "dense": 4.0, "newline": 0.03}
  assert set(made(**as_claimed).values()) == {Verdict.SUPPORTED}
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  # Where the window alone does as well, nothing shows that four tokens do.
  assert made() == {
    "window_alone": no,
    "four_suffice": Verdict.INCONCLUSIVE,
    "one_not_enough": Verdict.NO_EFFECT,
    "past_context": no,
    "as_recomputed": yes,
    "stable": yes,
    "newlines": Verdict.INCONCLUSIVE,
    "faster": yes,
  }
  late = made(late=0.8)
  assert late["past_context"] == yes, "0.62 on all tokens past the context"
  other = made(
    s0=0.5,
    s8=-0.1,
    s1=-0.1,
    dense=0.6,
    anew=-0.1,
    fresh=-0.1,
    newline=0.1,
    cached=np.full((2, 6), 20.0),
  )
  assert set(other.values()) == {no}
  # Below the margin of the cache, though within that of other ways.
  assert made(**as_claimed | {"fresh": -0.03})["stable"] == no
  assert made(**as_claimed | {"anew": -0.03})["as_recomputed"] == yes


def test_a_gain_that_does_not_grow_supports_nothing():
  same = np.array([[5, 6, 7] * 2, [6, 5, 7.0] * 2])
  assert made(anew_time=same)["faster"] == Verdict.INCONCLUSIVE


def test_refusals(short, text):
  for message, changed in (
    ("sinks must have", {"sinks": (0, 4)}),
    ("greater than the 8 first tokens", {"totals": (8,)}),
    ("leave two blocks of 10 after 24, got 40", {"fewer": 40}),
    ("at most tokens - total=114 and", {"fewer": 115}),
    (r"dense must be in \[2, tokens=130\]", {"dense": 131}),
    ("recomputed must be from 2", {"recomputed": 115}),
    ("the text has .* tokens, 1001 are needed", {"tokens": 1000}),
  ):
    config = dataclasses.replace(SMALL, **changed)
    with pytest.raises(ValueError, match=message):
      measure(short, config, text=text)
