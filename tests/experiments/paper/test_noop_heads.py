"""No-op heads: what is said of a head, kinds of sinks, claims, the page."""

import numpy as np
import pytest

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
  first, second, *_ = EXPERIMENT.claims(strict)
  assert first.verdict == "disagrees"
  assert second.verdict == "cannot be tested"
  EXPERIMENT.sections(strict, EXPERIMENT.draw(strict))


def test_refusals(reader):
  with pytest.raises(ValueError, match="at least 10 are needed"):
    measure(reader, Config(), texts=[Text("a", "b", "too short")])
