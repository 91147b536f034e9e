"""Swapped words: what is run, and that the numbers are of that."""

import dataclasses

import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.effects import Count
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.perturbation import EXPERIMENT
from sinkjax.experiments.paper.perturbation import experiment as module
from sinkjax.experiments.paper.perturbation.experiment import (
  Condition,
  Config,
  measure,
)
from sinkjax.experiments.paper.perturbation.pairs import pairs_of
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS, parse_swaps


@pytest.fixture(scope="module")
def result(subject, text):
  config = Config(texts=text, from_layer=1, batch=2)
  return measure(subject, config).as_stored(config, "tiny")


def test_built_in_texts():
  swaps = parse_swaps(SWAP_TEXTS)
  assert len(swaps) > 130 and len({s.text for s in swaps}) == 12
  assert ("greatest", "best") in [s.words for s in swaps]
  for swap in swaps:
    before, after = swap.before.split(), swap.after.split()
    assert len(before) == len(after)
    differ = [
      a.strip(".,") for a, b in zip(before, after, strict=True) if a != b
    ]
    assert differ == [swap.words[0]]
    assert not set("{}|") & set(swap.before + swap.after)


def test_pairs_keep_the_count_and_the_place(subject, text):
  pairs, others = pairs_of(subject, text)
  assert [p.words for p in pairs] == [("red", "green"), ("north", "south")]
  assert others == 2  # too early, and one token more
  for pair in pairs:
    differ = np.flatnonzero(np.array(pair.ids) != np.array(pair.changed))
    assert (pair.first, pair.last) == (differ[0], differ[-1])


@pytest.mark.slow
def test_numbers_are_of_two_runs_each(subject, text, result):
  """By hand, unpadded and one by one."""
  f = sinkjax.forward(subject.cfg)
  watch = {"x": ("resid_post", lambda x: x)}
  edits = {
    "with the sink": {},
    "sink hidden": {"scores": sinkjax.knockout(0, from_layer=1)},
    "control hidden": {"scores": sinkjax.knockout(1, from_layer=1)},
  }
  header, rows = result.tables["swaps.csv"]
  for row, pair in zip(rows, pairs_of(subject, text)[0], strict=True):
    row = dict(zip(header, row, strict=True))
    for name, mine in edits.items():
      g = sinkjax.capture(sinkjax.intervene(f, mine), watch)
      a, b = (
        np.asarray(g(subject.params, np.array([ids])).trace["x"])[-1, 0]
        for ids in (pair.ids, pair.changed)
      )
      gap = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(a, axis=-1)
      later = gap[pair.last + 1 :]
      assert row[f"change, {name}"] == pytest.approx(later.mean(), rel=1e-4)
      assert row[f"reached, {name}"] == pytest.approx((later > 0.1).mean())


def test_hiding_changes_nothing_before_its_layer(subject, text):
  found = measure(subject, Config(texts=text, from_layer=2)).arrays["by_layer"]
  np.testing.assert_allclose(found[1, :2], found[0, :2], rtol=1e-5)
  assert np.abs(found[1, 2] - found[0, 2]).max() > 1e-6


@pytest.mark.thorough
def test_batches_change_nothing(subject, text, result):
  again = measure(subject, Config(texts=text, from_layer=1, batch=5))
  for name, array in result.arrays.items():
    np.testing.assert_allclose(array, again.arrays[name], rtol=1e-4, atol=1e-6)


def test_claims(result):
  first, more, *_, bos = judge(EXPERIMENT.claims(result))
  assert first.verdict == Verdict.SUPPORTED
  assert isinstance(first.effect, Count) and first.effect.cases == 2
  assert "exactly 0 in 2 swaps" in first.ours
  found = result.numbers["contrasts"]["log_change_last_layer"]
  value = found["over_sink"]["sink hidden"]["value"]
  assert more.ours.startswith(f"{np.exp(value):.2f} (")
  log = result.arrays["log_ratio"] - result.arrays["log_ratio_control"]
  assert found["beyond_control"]["value"] == pytest.approx(log.mean(), rel=1e-5)
  assert bos.verdict == Verdict.NOT_TESTABLE


@pytest.mark.parametrize(
  ("hidden", "control", "verdict"),
  [
    (1.0, 0.0, Verdict.SUPPORTED),
    (1.0, 1.0, Verdict.INCONCLUSIVE),
    (1.0, 2.0, Verdict.INCONCLUSIVE),
    (-1.0, -2.0, Verdict.CONTRADICTED),
    (0.0, 0.0, Verdict.NO_EFFECT),
  ],
)
def test_more_than_the_sink_and_more_than_the_control(
  result, hidden, control, verdict
):
  """What hiding any token does is not the sink's doing."""
  groups = np.repeat(np.arange(12), 2)
  names = [Condition.SINK, Condition.HIDDEN, Condition.CONTROL]
  noise = 0.01 * np.random.default_rng(0).normal(size=(24, 3))
  found = module.contrast(
    noise + np.array([0.0, hidden, control]), names, groups
  )
  # The margin of a share is a fifth of that of a logarithm of a ratio.
  few = module.contrast(
    noise + np.array([0.0, hidden, control]) / 5, names, groups
  )
  numbers = result.numbers | {
    "contrasts": {
      "log_change_last_layer": found._asdict(),
      "log_change_all_layers": found._asdict(),
      "reached": few._asdict(),
    }
  }
  planted = dataclasses.replace(result, numbers=numbers).as_stored(
    result.config, "tiny"
  )
  _, *spread, _ = judge(EXPERIMENT.claims(planted))
  assert {claim.verdict for claim in spread} == {verdict}
  assert {claim.effect.n for claim in spread} == {12}


def test_the_page(result):
  drawn = EXPERIMENT.draw(result)
  assert set(drawn) == {"map.png", "swap.png", "layers.png", "swaps.png"}
  sections = EXPERIMENT.sections(result, drawn)
  assert "2 swaps of one word in 2 texts" in sections[0].body


@pytest.mark.slow
def test_without_bos(subject, text):
  """The text without its first token, run for itself."""
  with_bos = subject._replace(prefix=[1])
  config = Config(texts=text, from_layer=1)
  found = measure(with_bos, config).as_stored(config, "tiny")
  assert found.numbers["conditions"][-1] == "without BOS"
  plain = measure(subject, config)
  np.testing.assert_allclose(
    found.arrays["by_layer"][3], plain.arrays["by_layer"][0], rtol=1e-4
  )
  claims = EXPERIMENT.claims(found)
  change = np.array(
    [
      [row["change, with the sink"], row["change, without BOS"]]
      for row in found.records("swaps.csv")
    ]
  )
  ratio = np.log(change[:, 1] / change[:, 0]).mean()  # one swap in each text
  assert claims[-1].effect.mean.value == pytest.approx(ratio, rel=1e-4)
  assert "position 2 hidden instead" in claims[1].ours


def test_refusals(subject, text, monkeypatch):
  with pytest.raises(ValueError, match="from_layer must be in"):
    measure(subject, Config(texts=text, from_layer=3))
  with pytest.raises(ValueError, match="keep the number of tokens"):
    measure(subject, Config(texts="the old {cat|dog} saw the bird"))
  with pytest.raises(ValueError, match="places like"):
    parse_swaps("no places here")
  with pytest.raises(ValueError, match="places like"):
    parse_swaps("one {place} here")

  def leaky(conditions):
    return lambda params, ids, changed: np.ones((3, 3, *ids.shape))

  monkeypatch.setattr(module, "gaps_of", leaky)
  with pytest.raises(ArithmeticError, match="not causal"):
    measure(subject, Config(texts=text))
