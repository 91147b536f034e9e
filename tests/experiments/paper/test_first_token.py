"""The benchmark experiment: conditions, what is compared, the page."""

import dataclasses

import numpy as np
import pytest

from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.first_token import EXPERIMENT
from sinkjax.experiments.paper.first_token import experiment as module
from sinkjax.experiments.paper.first_token.experiment import Config, measure
from sinkjax.experiments.shared.benchmark_tasks import Item

pytestmark = pytest.mark.thorough

CONFIG = Config(lengths=(220, 600), needles=8, from_layer=1)


@pytest.fixture(scope="module")
def tasks(items):
  return {"one": items(6), "two/three": items(5)}


@pytest.fixture(scope="module")
def result(reader, tasks):
  return measured(reader, CONFIG, tasks)


def measured(subject, config, items):
  """The result as its files hold it."""
  return measure(subject, config, items=items).as_stored(config, "tiny")


def test_conditions_are_what_they_say(reader, tasks, result, monkeypatch):
  asked = []

  def watched(subject, items, prefix, edits, progress):
    hidden = [(int(e.key), int(e.from_layer)) for e in edits.values()]
    asked.append((prefix, hidden))
    return np.arange(len(items)) < 3

  monkeypatch.setattr(module, "grade", watched)
  short = Config(lengths=(), from_layer=1)
  measure(reader, short, items={"one": tasks["one"]})
  assert asked == [([1], []), ([], []), ([], [(0, 1)]), ([], [(1, 1)])]
  asked.clear()
  measure(reader._replace(prefix=[9]), short, items={"one": tasks["one"]})
  assert asked == [
    ([1], []),
    ([], []),
    ([9], []),
    ([9], [(0, 1)]),
    ([9], [(1, 1)]),
  ]


def test_numbers_are_of_the_items(result, tasks):
  assert result.numbers["lengths"] == [220]
  assert result.numbers["left_out"] == [600]
  right = [result.arrays[f"right {task}, no BOS"] for task in tasks]
  mean = result.numbers["tasks"]["no BOS"]["value"]
  assert mean == pytest.approx(np.concatenate(right).mean())
  assert result.numbers["chance"] == pytest.approx(1 / 3)
  texts = module.ROW // 220
  assert result.arrays["found 220, sink hidden"].shape == (8 * texts,)
  rows = result.tables["needles.csv"][1]
  assert [row[1] for row in rows] == [
    "BOS first",
    "no BOS",
    "sink hidden",
    "next token hidden",
  ]


def planted(reader, tasks, monkeypatch, shares, prefix=(1,)):
  """The claims where every condition has a given share of right answers."""

  def by_share(subject, items, prefix, edits, progress):
    key = int(edits["scores"].key) if edits else ("bos" if prefix else "none")
    return np.arange(len(items)) < shares[key] * len(items)

  monkeypatch.setattr(module, "grade", by_share)
  many = {"one": tasks["one"] * 40}
  config = Config(lengths=(), from_layer=1)
  subject = reader._replace(prefix=list(prefix))
  return judge(EXPERIMENT.claims(measured(subject, config, many)))


@pytest.mark.slow
def test_verdicts(reader, tasks, monkeypatch):
  def verdicts(prefix=(1,), **shares):
    names = {"own": "bos", "none": "none", "sink": 0, "next": 1}
    shares = {names[name]: share for name, share in shares.items()}
    claims = planted(reader, tasks, monkeypatch, shares, prefix)
    return [claim.verdict for claim in claims]

  held, not_here = Verdict.SUPPORTED, Verdict.NOT_TESTABLE
  assert verdicts(own=0.9, none=0.35, sink=0.4, next=0.9) == [
    held,
    held,
    not_here,
  ]
  contradicted = Verdict.CONTRADICTED
  assert verdicts(own=0.9, none=0.85, sink=0.9, next=0.9)[0] == contradicted
  # A model that only guesses has nothing to lose; chance is a third.
  guessing = verdicts(own=0.33, none=0.1, sink=0.4, next=0.4)
  assert guessing[0] == Verdict.INCONCLUSIVE
  # No worse than hiding another token is no effect of the sink.
  same = verdicts(own=0.9, none=0.3, sink=0.4, next=0.4)
  assert same[1] == Verdict.INCONCLUSIVE
  assert verdicts(own=0.4, none=0.3, sink=0.6, next=0.9)[1] == contradicted
  unchanged = verdicts(own=0.9, none=0.3, sink=0.9, next=0.9)
  assert unchanged[1] == Verdict.NO_EFFECT
  # BOS is not how this model's texts start.
  shares = {"bos": 0.9, "none": 0.3, 0: 0.3, 1: 0.3}
  claims = planted(reader, tasks, monkeypatch, shares, prefix=())
  assert claims[0].verdict == not_here


def test_needles_count_by_haystack(result):
  """Nine haystacks of eight needles are nine units."""
  texts = module.ROW // 220
  found = {name: np.zeros((texts, 8)) for name in ("own", "sink", "next")}
  found["own"][:] = found["next"][:] = np.arange(8) < 6
  found["sink"][:] = np.arange(8) < 2
  found["sink"][0] = 1  # in one haystack all needles are found
  keys = {"own": "no BOS", "sink": "sink hidden", "next": "next token hidden"}
  arrays = result.arrays | {
    f"found 220, {keys[name]}": values.ravel() > 0
    for name, values in found.items()
  }
  planted = dataclasses.replace(result, arrays=arrays)
  claim = judge(EXPERIMENT.claims(planted))[-1]
  assert claim.effect.n == texts and claim.effect.per == "haystack"
  assert claim.effect.mean.value == pytest.approx((-0.5 * 8 + 0.25) / 9)
  assert "75.0 (75.0 to 75.0) % unchanged" in claim.ours
  # One of nine with the other sign: the sign-flip test is at 2 * 2 / 2^9.
  assert claim.verdict == Verdict.SUPPORTED
  (few,) = (
    x
    for x in EXPERIMENT.claims(
      dataclasses.replace(
        planted,
        arrays={
          k: v[:8] if k.startswith("found") else v for k, v in arrays.items()
        },
      )
    )
    if x.id == "needles_without_sink"
  )
  assert few.effect is None and "single haystack" in few.untested


def test_the_layer_is_found_where_none_is_given(reader, tasks, monkeypatch):
  seen = []

  def found(subject, config):
    seen.append(config.from_layer)
    return Config(**{**config.__dict__, "from_layer": 2})

  monkeypatch.setattr(module, "resolve_from_layer", found)
  got = measure(reader, Config(lengths=(), needles=4), items=tasks)
  assert seen == [None]
  assert got.numbers["from_layer"] == 2


def test_the_page(result):
  drawn = EXPERIMENT.draw(result)
  assert set(drawn) == {"tasks.png", "needles.png", "depth.png"}
  sections = EXPERIMENT.sections(result, drawn)
  assert "600" in sections[1].body


def test_items_beyond_the_context_are_left_out_and_counted(reader, tasks):
  words = " ".join(["word"] * reader.cfg.max_len)
  long = Item(words, (" a", " b"), (True, False))
  one = [*tasks["one"], long]
  got = measured(reader, Config(lengths=(), from_layer=1), {"one": one})
  assert got.numbers["items"] == {"one": len(tasks["one"])}
  assert got.numbers["items_too_long"] == {"one": 1}
  first, *_ = EXPERIMENT.sections(got, EXPERIMENT.draw(got))
  assert "context: 1 more" in first.body
  with pytest.raises(ValueError, match="items of one fit the model's context"):
    measure(reader, Config(lengths=()), items={"one": [one[0], long, long]})


def test_a_table_of_chance_stands_in_for_that_of_each_item(reader, tasks):
  """As in files that were recorded before chance was kept by item."""
  config = Config(lengths=(), from_layer=1)
  new = measured(reader._replace(prefix=[1]), config, tasks)
  arrays = {k: v for k, v in new.arrays.items() if "chance" not in k}
  assert len(arrays) == len(new.arrays) - len(tasks)
  old = dataclasses.replace(new, arrays=arrays)
  assert EXPERIMENT.claims(old) == EXPERIMENT.claims(new)
  assert EXPERIMENT.claims(old)[0].effect is not None
