"""No-op heads: what is said of a head, kinds of sinks, claims, the page."""

import dataclasses

import numpy as np
import pytest

from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.paper.noop_heads import EXPERIMENT
from sinkjax.experiments.paper.noop_heads.examples import WIDTH
from sinkjax.experiments.paper.noop_heads.experiment import Config, measure
from sinkjax.experiments.paper.noop_heads.kinds import describe, kinds
from sinkjax.experiments.paper.noop_heads.triggers import (
  Head,
  Observed,
  Trigger,
  parts,
)
from sinkjax.experiments.shared.prompt_corpus import Text


@pytest.fixture(scope="module")
def observed():
  """One head of two KV heads' worth of values, all numbers known."""
  texts, length = 8, 5
  mass = np.full((1, texts, 2, length), 0.9)
  mass[:, :, 1, 3] = 0.2  # head 1 acts at position 3
  target = np.ones((1, texts, 2, length), int)
  target[:, :, 1, 3] = 2
  value = np.ones((1, texts, 2, length)) * 4.0
  value[:, :, 1] = [1.0, 4.0, 10.0, 4.0, 2.0]
  output = np.where(mass > 0.5, 0.5, 6.0)
  ranks = np.full((1, texts, 2), 1.5)
  ids = np.zeros((texts, length), int)
  return Observed(ids, mass, target, output, value, ranks)


def test_a_head_is_described_by_what_it_did(observed):
  head = Head(0, 1, Trigger.THIS, [], 0.9, 0.9, 0.5, np.ones(2))
  described = describe(observed, head, group=1)
  count = len(range(*parts(8)[2].indices(8)))
  assert described["rests"] == pytest.approx(3 / 4)
  assert described["value_sink"] == 1.0 and described["value_acted"] == 10.0
  assert described["value_rest"] == pytest.approx(5.0)
  assert (
    described["output_acting"] == 6.0 and described["output_resting"] == 0.5
  )
  assert described["to_previous"] == 1.0 and described["to_itself"] == 0.0
  assert described["sink_ratio"].tolist() == pytest.approx([0.2] * count)
  assert described["acted_ratio"].tolist() == pytest.approx([2.0] * count)
  quiet = describe(observed, head._replace(head=0), group=1)
  assert quiet["value_acted"] is None and np.isnan(quiet["acted_ratio"]).all()


def test_kinds_are_of_heads_with_a_sink(observed):
  found = kinds(observed, 0.5, group=1)
  assert found["ratio"][0, 0].tolist() == pytest.approx([1.0, 0.2])
  assert found["broadcast"].tolist() == [0.5] * 8
  assert found["no-op"].tolist() == [0.0] * 8  # 0.2 is not below 0.2
  shared = observed._replace(mass=np.repeat(observed.mass, 2, axis=2))
  pairs = kinds(shared, 0.5, group=2)["ratio"][0, 0]
  assert pairs.tolist() == pytest.approx([1.0, 1.0, 0.2, 0.2])
  none = kinds(observed._replace(mass=0 * observed.mass), 0.5, group=1)
  assert np.isnan(none["no-op"]).all()


@pytest.fixture(scope="module")
def ran(reader):
  """A random model has no such heads unless the conditions are waived."""
  rng = np.random.default_rng(0)
  words = [
    "the",
    "old",
    "man",
    "saw",
    "a",
    "red",
    "bird",
    "and",
    "went",
    "to",
    "his",
    "garden",
    "by",
    "night",
  ]
  texts = [
    Text("a", f"{i}", " ".join(rng.choice(words, 40))) for i in range(24)
  ]
  reader.tokenizer.decode([0])
  loose = Config(
    tokens=30, resting=(0.0, 1.0), auroc=0.0, output=100.0, drawn=2
  )
  return [
    measure(reader, config, texts=texts).as_stored(config, "tiny")
    for config in (loose, Config(tokens=30))
  ]


@pytest.mark.thorough
def test_run_and_page(ran):
  loose, strict = ran
  assert len(loose.tables["heads.csv"][1]) == loose.numbers["found"] > 2
  assert len(loose.numbers["drawn"]) == 2
  drawn = EXPERIMENT.draw(loose)
  assert len(drawn) == 3 and "kinds.png" in drawn
  assert len(EXPERIMENT.sections(loose, drawn)) == 4
  for i in range(2):  # rows are what the head gives to the keys that are drawn
    pattern = loose.arrays[f"pattern {i}"]
    assert pattern.shape == (WIDTH, WIDTH + 1)
    assert (pattern.sum(axis=1) <= 1 + 1e-5).all()
    assert not np.triu(pattern, 2).any()
  first, second, *_ = judge(EXPERIMENT.claims(strict))
  assert first.verdict == Verdict.CONTRADICTED
  assert second.verdict == Verdict.NOT_TESTABLE
  EXPERIMENT.sections(strict, EXPERIMENT.draw(strict))


def test_effects_are_of_the_texts(ran):
  """Held-out texts count, those of one template as one."""
  loose, _ = ran
  trigger, dormant, active, kinds_claim = EXPERIMENT.claims(loose)
  held_out = len(range(*parts(24)[2].indices(24)))
  for claim, name, chance in (
    (trigger, "auroc", 0.5),
    (dormant, "sink_ratio", 1.0),
    (active, "acted_ratio", 1.0),
  ):
    values = loose.arrays[f"{name} by text"]
    assert len(values) == held_out and claim.effect.n <= held_out
    mean = loose.numbers[name]["value"] - chance
    assert claim.effect.mean.value == pytest.approx(mean, abs=1e-6)
  assert len(loose.arrays["no-op by text"]) == 24
  last = list(range(18)) + [18] * 2 + list(range(20, 24))
  numbers = loose.numbers | {"templates": last}
  again = EXPERIMENT.claims(dataclasses.replace(loose, numbers=numbers))
  assert again[1].effect.n == held_out - 1
  values = loose.arrays["sink_ratio by text"]
  grouped = [values[:2].mean(), *values[2:]]
  assert again[1].effect.mean.value == pytest.approx(np.mean(grouped) - 1)


@pytest.mark.parametrize("by_text", [True, False])
@pytest.mark.parametrize(
  ("auroc", "dormant", "active", "broadcast", "verdicts"),
  [
    (0.8, 0.2, 1.5, 0.3, ("supported",) * 4),
    (0.51, 0.97, 1.01, 0.001, ("no effect beyond the margin",) * 4),
    (0.3, 1.5, 0.6, 0.3, (*("contradicted",) * 3, "supported")),
  ],
)
def test_verdicts(ran, by_text, auroc, dormant, active, broadcast, verdicts):
  loose, _ = ran
  noise = 0.002 * np.random.default_rng(0).normal(size=(5, 12))
  noise -= noise.mean(axis=1, keepdims=True)
  names = ("auroc", "sink_ratio", "acted_ratio", "broadcast", "no-op")
  means = (auroc, dormant, active, broadcast, 0.5)
  values = {
    name: mean + part
    for name, mean, part in zip(names, means, noise, strict=True)
  }
  arrays = {k: v for k, v in loose.arrays.items() if "by text" not in k}
  if by_text:
    arrays |= {f"{name} by text": x for name, x in values.items()}
  planted = dataclasses.replace(
    loose,
    arrays=arrays,
    numbers=loose.numbers
    | {name: mean_of(x) for name, x in values.items()}
    | {"templates": list(range(12))},
  ).as_stored(loose.config, "tiny")
  claims = judge(EXPERIMENT.claims(planted))
  assert tuple(claim.verdict for claim in claims) == verdicts


def test_refusals(reader):
  with pytest.raises(ValueError, match="at least 10 are needed"):
    measure(reader, Config(), texts=[Text("a", "b", "too short")])
