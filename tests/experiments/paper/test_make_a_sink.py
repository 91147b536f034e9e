"""Verdicts on rates made by hand, a run, and its page."""

import numpy as np
import pytest

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.make_a_sink import EXPERIMENT
from sinkjax.experiments.paper.make_a_sink import experiment as module
from sinkjax.experiments.paper.make_a_sink.experiment import (
  Case,
  Config,
  measure,
  moved,
)
from sinkjax.experiments.shared.prompt_corpus import Text

YES, NO, SAME = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT


def verdicts(large=(3,), alone_loss=0.0, **rates):
  """Of 12 texts, by rates (first, token) of cases, 0.8 and 0 else."""
  rng, arrays = np.random.default_rng(0), {}
  for case in Case:
    first, token = rates.get(case.name.lower(), (0.8, 0.0))
    found = np.abs(0.001 * rng.normal(size=(12, 20)))
    found[:, 0] += first
    found[:, 5] += token
    arrays[f"rates, {case}"] = found
    arrays[f"loss, {case}"] = 3 + 0.001 * rng.normal(size=12)
  arrays[f"loss, {Case.ALONE}"] += alone_loss
  numbers = {
    "templates": list(range(12)),
    "dimensions": list(large),
    "rise": 1,
    "written_over_other": [2.0, 3.0, 1.0],
  }
  config = Config(tokens=20, at=5)
  made = Result(numbers, {}, arrays).as_stored(config)
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  sink = (0.4, 0.6)
  made = dict.fromkeys(("alone", "variance", "norm", "state", "dims"), sink)
  assert set(verdicts(average=(0.1, 0.0), **made).values()) == {YES}
  none = verdicts()
  assert set(none.values()) == {SAME, Verdict.INCONCLUSIVE}
  # No sink was made, so its cost is not known.
  assert none["second_sink_costs_nothing"] == Verdict.INCONCLUSIVE
  # What the control does as well is not the property's.
  like = verdicts(neighbour=sink, others=sink, control=(0.1, 0), **made)
  assert like["alone_makes_sink"] == Verdict.INCONCLUSIVE
  assert like["large_dimensions_make_sink"] == Verdict.INCONCLUSIVE
  assert like["variance_makes_sink"] == YES
  both = verdicts(average=(0.1, 0), control=(0.1, 0), alone_loss=0.3, **made)
  assert both["average_takes_sink"] == Verdict.INCONCLUSIVE
  assert both["second_sink_costs_nothing"] == NO
  assert verdicts(large=())["large_dimensions_make_sink"] == (
    Verdict.NOT_TESTABLE
  )


def test_other_dimensions_meet_no_large_one():
  dims, values = np.zeros(6, bool), np.zeros(6)
  dims[[0, 1, 3]], values[[0, 1, 3]] = True, [7, 8, 9]
  to, new = moved(dims, values)
  assert not (to & dims).any() and to.sum() == 3
  assert sorted(new[to]) == [7, 8, 9] and not new[~to].any()


@pytest.mark.thorough
def test_run_and_page(reader, monkeypatch):
  # In this model the norm rises most in the last layer, after which nothing
  # reads a state that is changed.
  monkeypatch.setattr(module, "life_of", lambda first: (0, 2))
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [
    Text("a", f"{i}", "first " + " ".join(rng.choice(words, 30)))
    for i in range(5)
  ]
  # Dimension 3 of the first word is massive from the embedding on.
  params = dict(reader.params)
  first = reader.encode(["first"])[0][0]
  params["embed"] = params["embed"].at[first, 3].set(1e4)
  config = Config(tokens=20, at=5, eps=0.15)
  seen = []
  done = measure(
    reader._replace(params=params),
    config,
    texts=texts,
    progress=lambda *at: seen.append(at),
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(config, "tiny")
  assert found.numbers["dimensions"] == [3]
  loss = {case: found.arrays[f"loss, {case}"] for case in Case}
  assert set(loss) == set(Case)
  for case in Case:
    if case is not Case.PLAIN:  # each edit reached the model
      assert np.abs(loss[case] - loss[Case.PLAIN]).max() > 1e-4, case
  assert all(found.arrays[f"rates, {x}"].shape == (5, 20) for x in Case)
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"cases.png", "keys.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 8


@pytest.mark.parametrize("at", [1, 12])
def test_a_token_that_does_not_count_is_refused(reader, at):
  with pytest.raises(ValueError, match=r"at must be in \[2, 12\)"):
    measure(reader, Config(tokens=20, at=at))
