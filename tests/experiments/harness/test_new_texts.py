"""New texts: drawn apart from those that were read, and what they confirm."""

import json
import pathlib

import numpy as np
import pytest

from sinkjax.experiments import BY_NAME, REGISTRY
from sinkjax.experiments.harness import protocol
from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.effects import NATS, Count, Expect, effect
from sinkjax.experiments.paper.which_queries.experiment import Config
from sinkjax.experiments.shared import prompt_corpus
from sinkjax.experiments.shared.prompt_corpus import EXPLORED, Text, gather

RESULTS = pathlib.Path(__file__).parents[3] / "docs" / "results"
SHIFTED = 1.0 + np.array([-0.2, 0.1, 0.15, -0.1, 0.2, -0.15, 0.05, -0.05])


@pytest.fixture
def corpus(monkeypatch):
  """90 articles, each under two names, and 30 speeches."""
  articles = [
    Text("prose", f"{name} {i}", f"{i} " * prompt_corpus.SHORTEST)
    for i in range(90)
    for name in ("one", "another")
  ]
  speeches = [
    Text("speeches", f"speech {i}", f"{i}, " * prompt_corpus.SHORTEST)
    for i in range(30)
  ]
  for name, texts in {
    "_wikipedia": articles,
    "_speeches": speeches,
    "_chats": [],
    "_python": [],
  }.items():
    monkeypatch.setattr(prompt_corpus, name, lambda texts=texts: texts)


def words(count, seed):
  return {text.text for text in gather(count, seed)}


@pytest.mark.parametrize("seed", [1, 2, 17])
def test_no_text_was_read_before(corpus, seed):
  new = [words(count, seed) for count in (3, 20, 500)]
  for count in range(1, EXPLORED + 1):
    assert not any(words(count, 0) & texts for texts in new)
  assert all(new)
  assert words(3, seed) == words(3, seed) != words(3, seed + 1)
  domains = {text.domain for text in gather(3, seed)}
  assert domains == {"prose", "speeches"}


def test_recorded_runs_read_no_more_than_is_left_out():
  """Else a text of a recorded run could count as new."""
  asked = [
    json.loads(path.read_text("utf-8"))["request"]["config"]
    for path in RESULTS.glob("*/*/result.json")
  ]
  known = [one for one in asked if one.get("seed") == 0]
  assert max(one.get("count", 0) for one in known) == EXPLORED


def test_records_of_new_texts_keep_what_was_said():
  for path in RESULTS.glob("*/*/result.json"):
    about = json.loads(path.read_text("utf-8"))
    experiment = BY_NAME[about["name"]].load()
    scale = about["request"].get("scale", "demo")
    config = experiment.configured(scale, about["request"]["config"])
    new = experiment.draws_new_texts(config) and "texts" not in about["request"]
    assert ("stated" in about) == new, path


def test_who_draws_new_texts():
  """Each such experiment hands its seed and count to the one that draws."""
  for entry in REGISTRY:
    experiment = entry.load()
    config = experiment.config()
    if not experiment.given_texts or not hasattr(config, "count"):
      assert not experiment.draws_new_texts(config)
      continue
    if not hasattr(config, "seed"):
      continue
    assert not experiment.draws_new_texts(config)
    new = experiment.configured("demo", {"seed": 1})
    assert experiment.draws_new_texts(new)
    module = experiment.measure.__module__
    source = pathlib.Path(
      __import__(module, fromlist=["measure"]).__file__
    ).read_text("utf-8")
    reads = ("texts_of_length(", "texts_for(", "text_rows(")
    assert any(name in source for name in reads), entry.name
  assert BY_NAME["which_queries"].load().draws_new_texts(Config(seed=3))


def claim(id="one", *, margin=0.02, expect=Expect.MORE, per="text"):
  made = effect(SHIFTED, "the loss", NATS, expect, margin=margin, per=per)
  return Claim(id, "A sentence.", "here", "no number", "said", made)


def status(claims, before):
  return {c.id: c.confirmatory for c in protocol.judge(claims, before)}


def test_only_what_was_said_before_is_confirmed():
  claims = [claim(), claim("haystacks", per="haystack")]
  claims.append(
    Claim("law", "A law.", "here", "none", "said", Count(0, 9, "swaps"))
  )
  before = json.loads(json.dumps(protocol.stated(claims)))
  assert set(before) == {"one"}
  assert status(claims, before) == {
    "one": True,
    "haystacks": False,
    "law": False,
  }
  assert not any(status(claims, None).values())
  # Made after the texts were read, or changed since.
  assert status([claim("late")], before) == {"late": False}
  assert status([claim(margin=0.03)], before) == {"one": False}
  assert status([claim(expect=Expect.LESS)], before) == {"one": False}


def test_verdicts_are_those_of_any_text():
  claims = [claim()]
  (new,) = protocol.judge(claims, protocol.stated(claims))
  (old,) = protocol.judge(claims)
  assert (new.verdict, new.p) == (old.verdict, old.p)
  assert new.record() == old.record() | {"confirmatory": True}
