"""Shares against patterns in float64, costs, verdicts, a run and its page."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.applications.sink_compute import EXPERIMENT
from sinkjax.experiments.applications.sink_compute import (
  skipped_blocks as blocks,
)
from sinkjax.experiments.applications.sink_compute.config import (
  NO_SINK,
  ORACLE,
  ROWS_BOUND,
  ROWS_KNOWN,
  SCORES,
  SUMMARIES,
  Config,
  check_model,
)
from sinkjax.experiments.applications.sink_compute.experiment import (
  costs_of,
  measure,
  rows_of,
)
from sinkjax.experiments.applications.sink_compute.figures import TIMES
from sinkjax.experiments.applications.sink_compute.timing import (
  FUSED,
  KNOWN,
  LOOP,
  PROVEN,
  ROWS,
  SCORED,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge

pytestmark = pytest.mark.slow

SMALL = Config(
  lengths=(32, 48),
  counts=(3, 3),
  fitting=2,
  length=48,
  tolerances=(0.6, 0.3, 0.1),
  at=0.3,
  bits=(4, 8),
  best=8,
  slacks=(1.0,),
  block=8,
  timed=(32, 48),
  rounds=2,
)


@pytest.fixture(scope="module")
def texts(subject):
  words = [x for x in subject.tokenizer.ids if x != "walked"]
  rng = np.random.default_rng(0)
  return [" ".join(rng.choice(words, 60)) for _ in range(6)]


@pytest.fixture(scope="module")
def sharp(subject):
  """Attention that is not even."""
  params = jax.tree.map(jnp.asarray, subject.params)
  attn = dict(params["blocks"]["attn"])
  attn["q"] = jax.tree.map(lambda x: 6 * x, attn["q"])
  params = {**params, "blocks": {**params["blocks"], "attn": attn}}
  return subject._replace(params=params)


@pytest.fixture(scope="module")
def ran(sharp, texts):
  seen = []
  found = measure(
    sharp, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1] == len(seen)
  return found.as_stored(SMALL, "tiny")


def patterns(subject, ids):
  f = sinkjax.capture(
    sinkjax.forward(subject.cfg), {"p": ("pattern", lambda x: x)}
  )
  return np.asarray(f(subject.params, ids[None]).trace["p"], float)[:, 0]


def greedy(pattern, tolerance, block, sink=True):
  """Blocks of one head that an oracle skips, one after the other."""
  pattern = pattern.copy()
  if not sink:
    pattern[:, 0] = 0
    pattern /= np.maximum(pattern.sum(axis=1, keepdims=True), 1e-30)
  count = len(pattern) // block
  pattern[:, 0] = 0
  mass = pattern.reshape(count, block, count, block).sum(axis=-1)
  skipped = 0
  for i in range(count):
    lost = np.zeros(block)
    for j in np.argsort(mass[i, :, : i + 1].max(axis=0)):
      lost = lost + mass[i, :, j]
      if lost.max() >= tolerance:
        break
      skipped += 1
  return skipped / (count * (count + 1) / 2)


def test_the_oracle_is_the_patterns_own(ran, sharp, texts):
  _, held = rows_of(sharp, SMALL, texts)
  got = ran.arrays["share, 48"]
  ways = ran.numbers["ways"]
  for text in range(3):
    p = patterns(sharp, held[text][:48])
    for j, at in enumerate(SMALL.tolerances):
      for name, sink in ((ORACLE, True), (ORACLE + NO_SINK, False)):
        want = [[greedy(x, at, 8, sink) for x in layer] for layer in p]
        have = got[text, ways.index(name), ..., j]
        # a tie, or a mass at the tolerance, may fall either way
        assert np.mean(np.abs(have - want) > 1e-6) < 0.1
  assert 0.05 < got[:, ways.index(ORACLE)].mean() < 0.95


def test_no_bound_skips_more_than_is_allowed(ran):
  share = ran.arrays["share, 48"].mean(axis=(0, 2, 3))  # [way, E]
  by = dict(zip(ran.numbers["ways"], share, strict=True))
  order = [SUMMARIES, "4 bits", "8 bits", SCORES, ORACLE]
  for less, more in zip(order, order[1:], strict=False):
    assert np.all(by[less] <= by[more] + 0.01), (less, more)
  assert np.all(by["scores, 1 nats off"] < by[SCORES])
  assert by["8 bits"][0] > 0.5 * by[SCORES][0] > 0.02
  assert np.all(by[ROWS_BOUND] <= by[ROWS_KNOWN] + 1e-9)
  assert all((np.diff(x) <= 1e-9).all() for x in by.values())


def test_costs_are_those_of_the_edited_pattern(sharp, texts):
  fitting, held = rows_of(sharp, SMALL, texts)
  codecs = blocks.fit_codecs(sharp, fitting, 8)
  ids = held[0][:48]
  plain, _ = blocks.shares_of(sharp, ids, codecs, SMALL)
  f = sinkjax.forward(sharp.cfg)
  logits = np.asarray(f(sharp.params, ids[None]).logits[0], float)
  final, what = blocks.skip(sharp, ids, codecs, SMALL, 0.3, None)
  assert 0.05 < what.share.mean() < 0.9 and what.worst.max() <= 1
  assert np.all(what.error <= what.bound + 1e-6) and what.error.max() > 1e-3

  def cut(pattern, layer):  # the same choice, from the pattern itself
    q = pattern[0]
    mass = q.at[..., 0].set(0).reshape(4, 6, 8, 6, 8).sum(-1)
    free = jnp.tri(6, k=-2, dtype=bool)[None]
    worst = jnp.where(free, mass.max(axis=2), jnp.inf)
    order = jnp.argsort(worst, axis=-1)
    lost = jnp.take_along_axis(mass, order[:, :, None], axis=-1)
    lost = jnp.cumsum(lost, axis=-1).max(axis=2)
    many = (
      (lost < 0.3)
      & jnp.take_along_axis(jnp.broadcast_to(free, worst.shape), order, axis=-1)
    ).sum(-1)
    kept = jnp.argsort(order, axis=-1) >= many[..., None]
    kept = jnp.repeat(jnp.repeat(kept, 8, axis=1), 8, axis=2)
    kept = kept.at[..., 0].set(True)
    q = jnp.where(kept, q, 0)
    return (q / q.sum(axis=-1, keepdims=True))[None]

  edited = sinkjax.intervene(f, {"pattern": cut})
  want = np.asarray(edited(sharp.params, ids[None]).logits[0], float)

  def logs(x):
    return np.asarray(jax.nn.log_softmax(x), float)

  loss = [-logs(x)[np.arange(47), ids[1:]].mean() for x in (logits, want)]
  kl = (np.exp(logs(logits)) * (logs(logits) - logs(want))).sum(-1).mean()
  got = costs_of(sharp, plain, final, ids)
  np.testing.assert_allclose(got, [*loss, kl], atol=2e-4)
  assert kl > 1e-3


def test_run_and_page(ran):
  assert ran.numbers["worst_error_over_bound"] <= 1
  header, rows = ran.tables["errors.csv"]
  assert len(rows) == 6 and all(len(row) == len(header) for row in rows)
  by = {tuple(row[:2]): row for row in rows}
  assert by["8 bits", 0.6][2] > by["8 bits", 0.1][2]
  assert len(ran.tables["shares.csv"][1]) == 2 * len(ran.numbers["ways"]) * 3
  assert len(ran.tables["layers.csv"][1]) == 3 * 4
  # `ROWS` is in files recorded earlier alone.
  assert {row["way"] for row in ran.records("time.csv")} == {*TIMES} - {ROWS}
  for row in ran.records("errors.csv"):
    end = f"{row['way']}, {row['tolerance']:g}"
    for name, what in (("loss change", "loss_change"), ("kl", "kl")):
      one = ran.arrays[f"{name}, {end}"]
      assert one.shape == (3,) and one.mean() == pytest.approx(row[what])
  claims = EXPERIMENT.claims(ran)
  assert len({claim.id for claim in claims}) == len(claims) == 10
  drawn = EXPERIMENT.draw(ran)
  assert set(drawn) == {"shares.png", "slack.png", "layers.png", "time.png"}
  assert len(EXPERIMENT.sections(ran, drawn)) == 5


VALUES = {
  ROWS_KNOWN: 0.01,
  ROWS_BOUND: 0.0,
  SUMMARIES: 0.0,
  "4 bits": 0.2,
  "8 bits": 0.4,
  SCORES: 0.5,
  ORACLE: 0.5,
  ORACLE + NO_SINK: 0.4,
  "8 bits" + NO_SINK: 0.3,
}


MANY = dataclasses.replace(SMALL, counts=(12, 12))


def verdicts(
  change=None,
  worst=(0.9, 0.8, 0.7),
  loss=0.001,
  times=(1.0, 0.5, 2.0),
  longer=0.0,
  noise=1e-3,
):
  """On shares made by hand, of twelve texts.

  Args:
    change: shares of ways that differ.
    worst: error over its bound, by tolerance.
    loss: increase.
    times: of fused, known, proven.
    longer: how much more can be skipped in longer texts.
    noise: between texts.
  """
  rng, values = np.random.default_rng(0), dict(VALUES) | (change or {})
  shape = (12, len(values), 1, 1, len(MANY.tolerances))  # [P, way, L, H, E]
  means = np.array(list(values.values()))[:, None, None, None]
  long = means + noise * rng.normal(size=shape)
  share = {48: long, 32: long - longer}  # of the same texts
  change = [loss, loss - 1e-4, loss + 1e-4]
  rows = [
    ["8 bits", at, *change, one]
    for at, one in zip(MANY.tolerances, worst, strict=True)
  ]
  header = ["way", "tolerance", "loss_change"]
  header += ["loss_change_low", "loss_change_high", "worst_error_over_bound"]
  ones = 1 + 0.01 * rng.normal(size=6)
  names = {
    FUSED: times[0],
    ROWS: 1.3 * times[0],
    KNOWN: times[1],
    PROVEN: times[2],
    SCORED: times[2],
    LOOP: 2.0,
  }
  arrays = {f"share, {length}": x for length, x in share.items()}
  timed = []
  for layer in (2, 1):
    for name, x in names.items():
      arrays[f"seconds, layer {layer}, 48, {name}"] = x * ones
      timed.append([layer, 48, 0.5, name])
  numbers = {
    "ways": list(values),
    "worst_error_over_bound": max(worst),
    "layers_timed": [2, 1],
  }
  tables = {
    "errors.csv": (header, rows),
    "time.csv": (["layer", "tokens", "left_out", "way"], timed),
  }
  result = Result(numbers, tables, arrays).as_stored(MANY)
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(result))}


def test_verdicts():
  yes, no, same = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT
  assert verdicts() == {
    "dormant_rows": no,
    "summaries": same,
    "few_bits": yes,
    "sink_helps_proof": yes,
    "longer_texts": same,
    "loss": yes,
    "bound": yes,
    "faster_known": yes,
    "faster_scored": no,
    "faster_proven": no,
  }
  assert verdicts({ROWS_KNOWN: 0.2})["dormant_rows"] == yes
  assert verdicts({SUMMARIES: 0.05})["summaries"] == yes
  assert verdicts({"8 bits": 0.2})["few_bits"] == no
  other = verdicts({"8 bits" + NO_SINK: 0.35})
  assert other["sink_helps_proof"] == no
  nothing = verdicts({ORACLE: 0.0}, noise=0.0)
  assert nothing["sink_helps_proof"] == Verdict.NOT_TESTABLE
  assert verdicts(longer=0.1)["longer_texts"] == yes
  assert verdicts(longer=-0.1)["longer_texts"] == no
  assert verdicts(loss=0.02)["loss"] == no
  assert verdicts(worst=(0.9, 1.01, 0.9))["bound"] == no
  # Of the two fused ways the faster one is what skipping has to beat.
  slower = verdicts(times=(1.0, 1.2, 0.7))
  assert slower["faster_known"] == no
  assert slower["faster_scored"] == slower["faster_proven"] == yes
  assert verdicts(times=(1.0, 1.02, 0.7))["faster_known"] == same


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"lengths": (32, 50)}, r"multiples of block=8, four at least"),
    ({"timed": (16,)}, r"multiples of block=8, four at least"),
    ({"best": 6}, r"best one of \(4, 8\), got 48 and 6"),
    ({"counts": (3,)}, "counts must be 2 or more"),
    ({"at": 0.2}, "at one of them, got"),
    ({"lengths": (32, 48, 4096), "counts": (2, 2, 2)}, "at most"),
    ({"counts": (3, 9)}, "6 texts have 48 tokens; 11 are needed"),
  ],
)
def test_refusals(subject, texts, change, said):
  with pytest.raises(ValueError, match=said):
    measure(subject, dataclasses.replace(SMALL, **change), texts=texts)


def test_other_attention_is_refused(subject, texts):
  other = subject._replace(cfg=subject.cfg.replace(normalizer="sigmoid"))
  with pytest.raises(ValueError, match="a normalizer other than softmax"):
    measure(other, SMALL, texts=texts)
  other = subject._replace(cfg=subject.cfg.replace(attn_softcap=30.0))
  with pytest.raises(ValueError, match="a soft cap of the scores"):
    check_model(other.cfg)
