"""No-op heads: what is said of a head, kinds of sinks, claims, the page."""

import numpy as np
import pytest

from sinkjax.experiments.paper.noop_heads import experiment as module
from sinkjax.experiments.paper.noop_heads import figures as report
from sinkjax.experiments.paper.noop_heads.experiment import (
  Config,
  describe,
  kinds,
  run,
)
from sinkjax.experiments.paper.noop_heads.triggers import Head, Seen, parts
from sinkjax.experiments.shared.prompt_corpus import Text


@pytest.fixture(scope="module")
def seen():
  """One head of two KV heads' worth of values, all numbers known."""
  texts, length = 8, 5
  mass = np.full((1, texts, 2, length), 0.9)
  mass[:, :, 1, 3] = 0.2  # head 1 acts at position 3
  goes = np.ones((1, texts, 2, length), int)
  goes[:, :, 1, 3] = 2
  value = np.ones((1, texts, 2, length)) * 4.0
  value[:, :, 1] = [1.0, 4.0, 10.0, 4.0, 2.0]
  output = np.where(mass > 0.5, 0.5, 6.0)
  ranks = np.full((1, texts, 2), 1.5)
  return Seen(np.zeros((texts, length), int), mass, goes, output, value, ranks)


def test_a_head_is_described_by_what_it_did(seen):
  head = Head(0, 1, "this token", [], 0.9, 0.9, 0.5, np.ones(2))
  told = describe(seen, head, group=1)
  count = len(range(*parts(8)[2].indices(8)))
  assert told["rests"] == pytest.approx(3 / 4)
  assert told["value_sink"] == 1.0 and told["value_acted"] == 10.0
  assert told["value_rest"] == pytest.approx(5.0)
  assert told["output_acting"] == 6.0 and told["output_resting"] == 0.5
  assert told["to_previous"] == 1.0 and told["to_itself"] == 0.0
  assert told["sink_ratio"].tolist() == pytest.approx([0.2] * count)
  assert told["acted_ratio"].tolist() == pytest.approx([2.0] * count)
  quiet = describe(seen, head._replace(head=0), group=1)
  assert quiet["value_acted"] is None and np.isnan(quiet["acted_ratio"]).all()


def test_kinds_are_of_heads_with_a_sink(seen):
  found = kinds(seen, 0.5, group=1)
  assert found["ratio"][0, 0].tolist() == pytest.approx([1.0, 0.2])
  assert found["broadcast"].tolist() == [0.5] * 8
  assert found["no-op"].tolist() == [0.0] * 8  # 0.2 is not below 0.2
  shared = seen._replace(mass=np.repeat(seen.mass, 2, axis=2))
  pairs = kinds(shared, 0.5, group=2)["ratio"][0, 0]
  assert pairs.tolist() == pytest.approx([1.0, 1.0, 0.2, 0.2])
  none = kinds(seen._replace(mass=0 * seen.mass), 0.5, group=1)
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
  return (
    run(reader, loose, texts=texts),
    run(reader, Config(tokens=30), texts=texts),
  )


def test_run_and_page(ran):
  loose, strict = ran
  assert len(loose.tables["heads.csv"][1]) == loose.numbers["found"] > 2
  assert len(loose.numbers["drawn"]) == 2
  drawn = report.draw(loose)
  assert len(drawn) == 3 and "kinds.png" in drawn
  assert len(report.sections(loose, drawn)) == 4
  for i in range(2):  # rows are what the head gives to the keys that are drawn
    pattern = loose.arrays[f"pattern {i}"]
    assert pattern.shape == (module.DRAWN, module.DRAWN + 1)
    assert (pattern.sum(axis=1) <= 1 + 1e-5).all()
    assert not np.triu(pattern, 2).any()
  assert strict.claims[0].verdict == "disagrees"
  assert strict.claims[1].verdict == "cannot be tested"
  report.sections(strict, report.draw(strict))


def test_refusals(reader):
  with pytest.raises(ValueError, match="at least 10 are needed"):
    run(reader, Config(), texts=[Text("a", "b", "too short")])
