"""Verdicts on curves made by hand, a run, and its page."""

import numpy as np
import pytest

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.graded_sink import EXPERIMENT
from sinkjax.experiments.paper.graded_sink.experiment import (
  MAPPED,
  Config,
  measure,
)
from sinkjax.experiments.shared.prompt_corpus import Text

FACTORS = (0.5, 1.0, 2.0)
YES, NO, SAME = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT


def verdicts(sink=(0.0, 0.0), control=(0.0, 0.0), slope=0.0, mixing=(1, 1)):
  """Of 12 texts, by nats at half and twice the attention, and so on."""
  rng = np.random.default_rng(0)
  loss = 3 + 0.001 * rng.normal(size=(2, 3, 12))
  for k, (few, many) in enumerate((sink, control)):
    loss[k] += np.array([few, 0.0, many])[:, None]
  logs = 0.01 * rng.normal(size=(2, len(MAPPED), 12))
  logs[:, -1] += np.log(mixing)[:, None]
  arrays = {
    "loss": loss,
    "slopes": slope + 0.001 * rng.normal(size=(12, 1, 1)),
    "mixing": np.exp(logs),
  }
  numbers = {
    "texts": 12,
    "map_texts": 12,
    "templates": list(range(12)),
    "control_position": 1,
  }
  made = Result(numbers, {}, arrays).as_stored(Config(factors=FACTORS))
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  assert verdicts(sink=(0.1, 0.2), mixing=(0.5, 1)) == {
    "trained_amount_is_best": YES,
    "less_raises_loss": YES,
    "more_raises_loss": YES,
    "more_sink_mixes_less": YES,
  }
  assert verdicts(sink=(-0.1, 0.0), slope=0.1, mixing=(2, 1)) == {
    "trained_amount_is_best": NO,
    "less_raises_loss": NO,
    "more_raises_loss": SAME,
    "more_sink_mixes_less": NO,
  }
  # What the control does as well is not the sink's.
  like = verdicts((0.1, 0.1), (0.1, 0.1), mixing=(0.5, 0.5))
  assert set(like.values()) == {YES, Verdict.INCONCLUSIVE}


@pytest.mark.thorough
def test_run_and_page(reader):
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(5)]
  config = Config(tokens=12, factors=(0, 0.5, 1, 2), map_texts=2, map_tokens=6)
  seen = []
  done = measure(
    reader, config, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(config, "tiny")
  curves = {(r["key"], r["g"]): r for r in found.records("curves.csv")}
  assert curves["sink", 1]["change"] == 0 == curves["control", 1]["change"]
  at = [curves["sink", g]["attention"] for g in config.factors]
  # The first row is the first token's own, of twelve.
  assert at[0] == pytest.approx(1 / 12, abs=1e-5) and at == sorted(at)
  # Of this model's sharp heads a step of 0.02 is off by 11 % and of 0.01 by 3:
  # by the square of the step, as finite differences of a smooth loss are.
  for one in found.numbers["checked"]:
    assert one["finite"] == pytest.approx(one["derivative"], rel=0.05, abs=2e-5)
  assert found.arrays["slopes"].shape[0] == 5
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"curves.png", "heads.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 4


@pytest.mark.parametrize("factors", [(0, 1, 2), (-1, 0.5, 1, 2)])
def test_factors_that_claims_need(reader, factors):
  with pytest.raises(ValueError, match="factors must be at least 0, with 0.5"):
    measure(reader, Config(factors=factors))
