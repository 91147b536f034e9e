"""Kinds of query in a run, verdicts on values made by hand, and refusals."""

import dataclasses

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.which_queries import EXPERIMENT
from sinkjax.experiments.paper.which_queries.experiment import (
  Config,
  Hidden,
  Kind,
  measure,
)
from sinkjax.experiments.shared.prompt_corpus import Text

SMALL = Config(
  tokens=24,
  lengths=(12, 20, 9999),
  width=4,
  haystack_tokens=220,
  haystacks=2,
  needles=4,
)


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  words = "the old man, saw a red bird. and went (to) his garden by night!"
  words = words.split()  # noqa: SIM905
  return [Text("a", f"{i}", " ".join(rng.choice(words, 40))) for i in range(9)]


def by_hand(nats=None, matched=None, units=None, answered=0.0):
  """A result of 12 texts, by values of each kind and of each condition."""
  rng, matched = np.random.default_rng(0), matched or {}
  units = list(range(12)) if units is None else units
  noise = 0.001 * rng.normal(size=(12, 63))
  arrays = {
    f"nats, {kind}": 3 + (nats or {}).get(kind, np.zeros(63)) + noise * i
    for i, kind in enumerate(Hidden)
  }
  every = np.arange(12)
  for kind in (*Kind, "all"):
    values = matched.get(kind, 0.0) + 0.01 * rng.normal(size=12)
    arrays |= {f"ratio, {kind}": np.exp(values), f"in, {kind}": every}
    arrays |= {f"matched, {kind}": values, f"matched in, {kind}": every}
  ends = np.exp(0.01 * rng.normal(size=(2, 12, 8)))
  arrays |= {"answered": np.exp(answered) * ends[0], "unanswered": ends[1]}
  numbers = {"templates": units, "long_templates": units, "lengths": [16, 64]}
  numbers["haystacks"] = 12
  made = Result(numbers, {}, arrays).as_stored(Config())
  found = {claim.id: claim for claim in judge(EXPERIMENT.claims(made))}
  assert len(found) == 8
  return found


def verdicts(found):
  return {id: claim.verdict for id, claim in found.items()}


def test_verdicts():
  yes, no, same = (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT)
  start = np.where(np.arange(63) < 4, 1.0, 0.0)
  signs = {Kind.SURPRISING: -0.5, Kind.COPYABLE: 0.5, Kind.WORD: 0.02}
  found = by_hand(
    {Hidden.FIRST: start}, signs | {Kind.PUNCTUATION: 0.5}, answered=-0.5
  )
  assert verdicts(found) == {
    "surprising_less_sink": yes,
    "copyable_less_sink": no,
    "word_start_more_sink": same,
    "punctuation_more_sink": yes,
    "answer_less_sink": yes,
    # 4 nats at the start are 0.06 nats of 63 tokens: not within the margin.
    "loss_same_without_first": no,
    "cost_falls_with_length": yes,
    "cost_is_at_the_start": yes,
  }
  assert "+0.267 at 16, +0.063 at 64" in found["cost_falls_with_length"].ours
  assert by_hand(answered=0.3)["answer_less_sink"].verdict == no
  lasting = by_hand({Hidden.FIRST: np.full(63, 0.1)})
  assert lasting["cost_is_at_the_start"].verdict == no
  assert lasting["cost_falls_with_length"].verdict == same
  nothing = by_hand()
  assert nothing["loss_same_without_first"].verdict == yes


def test_texts_of_one_template_are_one_unit():
  found = by_hand(units=[0, 1, 2, 3, 4, 5, *[6] * 6])
  # Haystacks are units of their own.
  assert found.pop("answer_less_sink").effect.n == 12
  assert {claim.effect.n for claim in found.values()} == {7}


@pytest.mark.thorough
def test_run_and_page(reader, texts):
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  seen = []
  done = measure(
    reader, SMALL, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(SMALL, "tiny")
  # 9,999 tokens are beyond the model's context.
  assert found.numbers["lengths"] == [12, 20]
  # Of a causal model, the loss of a cut text is that of the text's beginning.
  ids = np.array([reader.encode([text.text])[0][:12] for text in texts])
  f = sinkjax.intervene(
    sinkjax.forward(reader.cfg), {"scores": sinkjax.knockout(0)}
  )
  logits = np.asarray(jax.jit(f)(reader.params, ids).logits, np.float64)[:, :-1]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  want = -np.take_along_axis(logs, ids[:, 1:, None], -1)[..., 0]
  have = found.arrays[f"nats, {Hidden.FIRST}"][:, :11]
  # The logits are up to 30, of which float32 keeps seven digits.
  np.testing.assert_allclose(have, want, rtol=2e-5)
  assert np.abs(have - found.arrays["nats, nothing"][:, :11]).max() > 1e-3
  rows = {row["kind"]: row for row in found.records("kinds.csv")}
  # A quarter of the 23 tokens that have a loss, but for those of the start.
  assert 0 < rows["surprising"]["queries"] <= 6 * len(texts)
  assert rows["all"]["queries"] == 16 * len(texts)
  assert rows["punctuation"]["queries"] > 0
  claims = EXPERIMENT.claims(found)
  assert len({claim.id for claim in claims}) == 8
  assert found.arrays["answered"].shape == (2, 4)
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"kinds.png", "lengths.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  one = dataclasses.replace(found, numbers=found.numbers | {"lengths": [20]})
  untested = {claim.id: claim.untested for claim in EXPERIMENT.claims(one)}
  assert "one length only" in untested["cost_falls_with_length"]
  none = dataclasses.replace(found, numbers=found.numbers | {"haystacks": 0})
  untested = {claim.id: claim.untested for claim in EXPERIMENT.claims(none)}
  assert "shorter than the haystacks" in untested["answer_less_sink"]


def test_refusals(reader, texts):
  with pytest.raises(ValueError, match="1 texts have 24 tokens"):
    measure(reader, SMALL, texts=texts[:1])
  long = dataclasses.replace(SMALL, lengths=(9999,))
  with pytest.raises(ValueError, match="at least 2 texts that begin apart"):
    measure(reader, long, texts=texts)

  def kept(what, *args):
    raise AssertionError(f"{what} was measured")

  crowded = dataclasses.replace(SMALL, haystack_tokens=60, haystacks=1)
  with pytest.raises(ValueError, match="do not fit 60 tokens"):
    measure(reader._replace(kept=kept), crowded, texts=texts)
