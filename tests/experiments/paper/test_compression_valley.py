"""Verdicts on valleys made by hand, a run, and its page."""

import numpy as np
import pytest

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.compression_valley import EXPERIMENT
from sinkjax.experiments.paper.compression_valley.experiment import (
  STATES,
  Config,
  Edit,
  in_life,
  measure,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.transforms.find_sinks import life_of

YES, NO, SAME = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT


def verdicts(middle=0.1, filled=(0.8, 0.1, 0.8, 0.1), sinks=(0.1, 0.9) * 2):
  """Of 12 texts and 6 layers, massive after layers 1 to 3.

  Args:
    middle: entropy there.
    filled: the same, by what is taken away.
    sinks: sink rates, likewise; 0.9 as the model is.
  """
  rng = np.random.default_rng(0)

  def noise(*shape):
    return 0.001 * rng.normal(size=shape)

  entropy = 0.8 + noise(len(Edit), 7, 12)
  entropy[:, 2:5] += (np.array([middle, *filled]) - 0.8)[:, None, None]
  norm = np.zeros((len(Edit), 7, 12)) + noise(7, 12)
  norm[:, 2:5] = 5 + noise(3, 12)
  arrays = {
    "entropy": entropy,
    "entropy of the rest": 0.8 + noise(len(Edit), 7, 12),
    "bound": entropy + 0.1,
    "norm": norm,
    "sink rate": np.array([0.9, *sinks])[:, None, None]
    + noise(len(Edit), 6, 12),
    "loss": 3 + noise(len(Edit), 12),
  }
  numbers = {
    "texts": 12,
    "templates": list(range(12)),
    "control_position": 1,
    "rise": 1,
    "fall": 4,
    "dimensions": [3],
    "share": 0.9,
  }
  made = Result(numbers, {}, arrays).as_stored(Config())
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  assert verdicts() == {
    "valley": YES,
    "valley_is_first_token": YES,
    "bound_holds": YES,
    "entropy_follows_norm": YES,
    "dimensions_make_valley": YES,
    "mlp_makes_valley": YES,
    "dimensions_make_sinks": YES,
    "mlp_makes_sinks": YES,
  }
  flat = verdicts(middle=0.8, filled=(0.8,) * 4, sinks=(0.9,) * 4)
  assert flat["valley"] == flat["valley_is_first_token"] == SAME
  assert flat["dimensions_make_valley"] == flat["mlp_makes_sinks"] == SAME
  hill = verdicts(middle=0.95, filled=(0.8,) * 4)
  assert hill["valley"] == hill["valley_is_first_token"] == NO
  # What the control does as well is nothing of theirs.
  alike = verdicts(filled=(0.8,) * 4, sinks=(0.1,) * 4)
  made = {alike[x] for x in alike if "make" in x}
  assert made == {Verdict.INCONCLUSIVE}


def test_life_and_its_states():
  assert life_of(np.array([1.0, 2, 90, 91, 5, 9, 4])) == (1, 3)
  assert life_of(np.array([1.0, 2, 3, 9])) == (2, 3)
  # After layers 1 and 2 stand states 2 and 3.
  assert in_life(np.arange(7.0)[:, None], 1, 3).tolist() == [2.5]


@pytest.mark.thorough
def test_run_and_page(reader):
  """Dimension 3 of position 0 is massive from the embedding on."""
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  # One word of its own first, which has the massive dimension.
  texts = [
    Text("a", f"{i}", "first " + " ".join(rng.choice(words, 30)))
    for i in range(5)
  ]
  first = reader.encode(["first"])[0][0]
  params = dict(reader.params)
  params["embed"] = params["embed"].at[first, 3].set(1e6)
  config = Config(tokens=12)
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
  arrays = {k: found.arrays[k] for k in STATES}
  assert {x.shape for x in arrays.values()} == {(5, reader.cfg.n_layers + 1, 5)}
  entropy, rise = arrays["entropy"], found.numbers["rise"]
  assert (entropy[0] < 0.01).all() and (
    arrays["entropy of the rest"] > 0.3
  ).all()
  assert (entropy <= arrays["bound"] + 1e-4).all()
  # Without the dimension the states after the rise are like any other.
  edits = list(Edit)
  assert (entropy[edits.index(Edit.DIMS), rise + 1 :] > 0.3).all()
  assert (entropy[edits.index(Edit.OTHERS)] < 0.01).all()
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"layers.png", "edits.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 2
  assert len(EXPERIMENT.claims(found)) == 8


def test_short_texts_are_refused(reader):
  with pytest.raises(ValueError, match="tokens must be at least 4, got 3"):
    measure(reader, Config(tokens=3))
