"""Verdicts on sinks made by hand, kinds of token, a run, and its page."""

import numpy as np
import pytest

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.secondary_sinks import EXPERIMENT
from sinkjax.experiments.paper.secondary_sinks import experiment as module
from sinkjax.experiments.paper.secondary_sinks.experiment import (
  Config,
  Kind,
  as_numbers,
  column,
  measure,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.metrics.queries import first_seen, line_break
from sinkjax.transforms.find_sinks import FoundSinks, Sink

YES, NO, SAME = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT


def sink(
  text, position, *, layers=(1, 8), heads=60, value=0.2, kind="lasting", token=7
):
  return Sink(
    text, position, token, kind, *layers, heads, 0.9, 50.0, 0.99, value
  )


def verdicts(others=2, first=True, at=5, spread=True, **of):
  """Of 12 texts of 20 tokens, 10 layers and 100 heads.

  Args:
    others: secondary sinks of each text, two at most.
    first: whether the first token is a sink of layers 1 to 8.
    at: where the first of the others stands; delimiters are at 5 and 6, tokens
      seen for the first time up to 6.
    spread: texts differ a little, as texts do.
    **of: the other sinks.
  """
  of = {"layers": (4, 6), "heads": 9} | of
  sinks = []
  for t in range(12):
    if first:
      sinks.append(sink(t, 0))
    low, high = of["layers"]
    more = (spread and t % 2) and 1
    for i in range(others + (more if others else 0)):
      one = of | {"layers": (low, high + (more if high < 8 else 0))}
      one["value"] = of.get("value", 0.2) * (1 + 0.1 * more)
      sinks.append(sink(t, at + i % 2, **one))
  late = np.arange(20) < 0
  arrays = {
    "sinks": as_numbers(sinks),
    "life": np.tile([1, 8], (12, 1)),
    "first seen": np.tile(np.arange(20) < 7, (12, 1)),
    **{f"is {kind}": np.tile(late, (12, 1)) for kind in Kind},
  }
  arrays[f"is {Kind.PUNCTUATION}"][:, 5:7] = True
  numbers = {
    "texts": 12,
    "templates": list(range(12)),
    "layers": 10,
    "all_heads": 100,
    "template": 0,
  }
  made = Result(numbers, {}, arrays).as_stored(Config(tokens=20))
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  assert set(verdicts().values()) == {YES}
  assert len(verdicts()) == 7
  other = verdicts(at=12, layers=(0, 9), heads=90, value=3.0)
  assert other == {
    "secondary_sinks_exist": YES,
    "secondary_begin_later": NO,
    "secondary_last_less": NO,
    "secondary_have_fewer_heads": NO,
    "secondary_values_are_small": NO,
    "secondary_are_delimiters": NO,
    "secondary_are_first_seen": NO,
  }
  none = verdicts(others=0)
  assert none.pop("secondary_sinks_exist") == SAME
  assert set(none.values()) == {Verdict.NOT_TESTABLE}
  # Without a sink at the first token nothing can be compared with it.
  alone = verdicts(first=False)
  untested = {k for k, v in alone.items() if v == Verdict.NOT_TESTABLE}
  assert untested == {
    "secondary_begin_later",
    "secondary_last_less",
    "secondary_have_fewer_heads",
  }


def test_numbers_of_sinks():
  sinks = [sink(0, 0), sink(1, 4, kind="passing", value=0.5)]
  found = as_numbers(sinks)
  assert column(found, "kind").tolist() == [0, 1]
  assert column(found, "position").tolist() == [0, 4]
  assert column(found, "value").tolist() == [0.2, 0.5]
  assert as_numbers([]).shape == (0, 11)


def test_kinds_of_token_by_hand():
  ids = np.array([[4, 4, 5, 4], [1, 2, 3, 2]])
  want = [[True, False, True, False], [True, True, True, False]]
  assert first_seen(ids).tolist() == want
  assert line_break(["\r", "a\nb", "a"]).tolist() == [True, True, False]


@pytest.mark.thorough
def test_run_and_page(reader, monkeypatch):
  """With sinks that are found wherever a full stop or a line break stands."""
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [
    Text("a", f"{i}", " ".join(rng.choice(words, 8)) + ".\n " + "old man " * 9)
    for i in range(10)
  ]
  rows = np.array([reader.encode([one.text])[0][:20] for one in texts])
  stop, line = (reader.tokenizer.ids[x] for x in (".", "\n"))

  def find(fn, params, tokens, *, eps):
    tokens = np.asarray(tokens)
    at = np.argwhere((tokens == stop) | (tokens == line))
    found = [sink(t, 0) for t in range(len(tokens))]
    found += [
      sink(int(t), int(s), layers=(2, 2), token=int(tokens[t, s]))
      for t, s in at
    ]
    found.sort(key=lambda one: one[:2])
    life = np.tile([1, 2], (len(tokens), 1))
    return FoundSinks(found, np.zeros(tokens.shape, bool), life)

  config = Config(tokens=20)
  real = measure(reader, config, texts=texts).as_stored(config, "tiny")
  assert EXPERIMENT.draw(real) and len(EXPERIMENT.claims(real)) == 7
  monkeypatch.setattr(module, "find_sinks", find)
  seen = []
  done = measure(
    reader, config, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen == [(8, 10), (10, 10)]
  found = done.as_stored(config, "tiny")
  # The second batch is filled up with its own rows, which do not count twice.
  sinks = found.arrays["sinks"]
  assert len(sinks) == 30 and found.numbers["found"] == 20
  assert column(sinks, "text").tolist() == sorted(list(range(10)) * 3)
  at = column(sinks, "text"), column(sinks, "position")
  late = at[1] > 0
  assert set(rows[at][late]) == {stop, line}
  by_kind = {row["kind"]: row for row in found.records("kinds.csv")}
  assert [by_kind[x]["sinks"] for x in Kind] == [10, 10, 0, 0]
  assert [by_kind[x]["rate"] for x in Kind] == [1, 1, 0, None]
  assert sum(row["tokens"] for row in by_kind.values()) == 10 * 19
  tokens = {row["token"]: row for row in found.records("tokens.csv")}
  assert tokens["."]["times"] == 10 and tokens["\n"]["kind"] == Kind.BREAK
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"sinks.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
