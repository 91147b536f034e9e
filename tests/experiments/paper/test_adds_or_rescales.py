"""Verdicts on losses made by hand, a run, and its page."""

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper.adds_or_rescales import EXPERIMENT
from sinkjax.experiments.paper.adds_or_rescales.experiment import (
  Config,
  Part,
  What,
  measure,
)
from sinkjax.experiments.shared.prompt_corpus import Text


def verdicts(takes=2.0, large=((3,), ()), **losses):
  """Of 12 texts, by loss added in each condition, `sink_size` and so on."""
  rng = np.random.default_rng(0)
  arrays = {"adds": np.ones(12), "takes": takes + 0.01 * rng.normal(size=12)}
  for what in What:
    for part in Part:
      key = f"{what.name}_{part.name}".lower()
      noise = 0.001 * rng.normal(size=12)
      arrays[f"loss, {what}, {part}"] = 3 + losses.get(key, 0.0) + noise
  numbers = {"templates": list(range(12)), "large": large}
  made = Result(numbers, {}, arrays).as_stored(Config())
  found = judge(EXPERIMENT.claims(made))
  assert len(found) == 7
  return {claim.id: claim.verdict for claim in found}


def test_verdicts():
  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  same, without = Verdict.NO_EFFECT, Verdict.NOT_TESTABLE
  found = verdicts(
    sink_neither=0.5,
    sink_content=0.4,
    large_neither=0.3,
    large_size=0.001,
    others_neither=0.01,
  )
  assert set(found.values()) == {yes}
  adds = verdicts(0.5, sink_size=0.4, sink_neither=0.4, large=((), ()))
  assert adds == {
    "takes_more_than_it_adds": no,
    "value_is_not_needed": no,
    # All of it comes from the value: the condition on the rest fails.
    "rows_need_the_sink": Verdict.INCONCLUSIVE,
    "sink_rescales": no,
    "dimensions_rescale": without,
    "dimensions_are_not_read": without,
    "large_over_next_largest": without,
  }
  assert verdicts()["rows_need_the_sink"] == same
  read = verdicts(large_size=0.3, large_neither=0.3, others_neither=0.5)
  assert read["dimensions_rescale"] == same
  assert read["dimensions_are_not_read"] == no
  assert read["large_over_next_largest"] == no


@pytest.mark.thorough
def test_run_and_page(reader):
  """Dimension 3 is large on every token but the first."""
  # Ids of its own, whatever other tests have read.
  reader = reader._replace(tokenizer=type(reader.tokenizer)())
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  texts = [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(5)]
  params = dict(reader.params)
  params["embed"] = params["embed"].at[:, 3].set(20.0)
  config = Config(tokens=12, ratio=4.0)
  seen = []
  done = measure(
    reader._replace(params=params),
    config,
    texts=texts,
    progress=lambda *at: seen.append(at),
  )
  assert seen[-1][0] == seen[-1][1]
  found = done.as_stored(config, "tiny")
  assert 3 in found.numbers["large"][0]
  plain = found.arrays["loss, sink, as it is"]
  np.testing.assert_allclose(
    plain, found.arrays["loss, large dimensions, as it is"], rtol=1e-5
  )
  # Renormalised rows without the value: key 0 hidden from all others.
  ids = np.array([reader.encode([one.text])[0][:12] for one in texts])
  f = sinkjax.forward(reader.cfg)
  hidden = sinkjax.intervene(f, {"scores": sinkjax.knockout(0)})
  logits = np.asarray(jax.jit(hidden)(params, ids).logits, np.float64)[:, :-1]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  want = -np.take_along_axis(logs, ids[:, 1:, None], -1)[..., 0].mean(-1)
  np.testing.assert_allclose(
    found.arrays["loss, sink, both removed"], want, rtol=1e-4
  )
  assert np.abs(want - plain).max() > 1e-2
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"parts.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 1
  assert len(EXPERIMENT.claims(found)) == 7


def test_few_texts_are_refused(reader):
  with pytest.raises(ValueError, match="0 texts have 64 tokens"):
    measure(reader, Config(), texts=[Text("a", "a", "the old man")])
