"""Heads that carry the map: against the transform, and planted verdicts."""

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper import carriers
from sinkjax.experiments.paper.carriers.claims import beside_others


@pytest.fixture(scope="module")
def ran(subject, text):
  config = carriers.Config(
    texts=text, count=2, tokens=5, long_tokens=8, from_layer=1
  )
  return carriers.measure(subject, config).as_stored(config, "tiny")


@pytest.mark.slow
def test_measured_is_the_transform_s(subject, text, ran):
  whole = text.split("\n\n")[1].replace("{north|south}", "north")
  ids = jnp.asarray(subject.tokenizer.encode(whole)[:8])
  f = sinkjax.forward(subject.cfg)
  for at, edits in enumerate(
    ({}, *({"scores": sinkjax.knockout(k, from_layer=1)} for k in (0, 1)))
  ):
    g = sinkjax.intervene(f, edits)
    some = {"rows": [-1], "cols": [2, 3]}
    got = sinkjax.carriers(g, subject.params, ids[:5], **some)
    relative = got.norms["head"] / got.whole
    want = np.sqrt((relative**2).mean((-2, -1)))
    mine = ran.arrays["head"][1, at]
    np.testing.assert_allclose(mine, want, rtol=1e-3)
    share = got.shares["attention"].mean((-2, -1))
    found = ran.arrays["shares"][1, at, :, 2]
    np.testing.assert_allclose(found, share, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(ran.arrays["shares"].sum(-1), 1, rtol=1e-3)
  watch = {"a": ("pattern", sinkjax.sink_score)}
  alpha = sinkjax.capture(f, watch)(subject.params, ids[None]).trace["a"][:, 0]
  np.testing.assert_allclose(ran.arrays["alpha"][1], alpha, rtol=1e-5)
  drawn = carriers.EXPERIMENT.draw(ran)
  assert len(carriers.EXPERIMENT.sections(ran, drawn)) == 3
  assert len(ran.tables["heads.csv"][1]) == subject.cfg.n_heads * 3


def test_sink_heads_beside_the_others_of_their_layer():
  sinks = np.array([[True, False], [True, True], [False, True]])
  sizes = np.array([[1.0, 4.0], [9.0, 9.0], [8.0, 2.0]])
  got = beside_others(sizes[None], sinks)
  np.testing.assert_allclose(np.exp(got), 0.25)


def planted(sink, hidden, control, scores=0.5, eps=0.3):
  """Eight texts, two layers, two heads, the second of which has a sink."""
  rng = np.random.default_rng(0)
  alpha = np.tile([0.1, 0.9], (8, 2, 1))
  head = np.ones((8, 3, 2, 2)) * np.exp(0.01 * rng.normal(size=(8, 3, 2, 2)))
  head[..., 1] *= np.array([sink, hidden, control])[:, None]
  numbers = {
    "texts": 8,
    "tokens": 8,
    "long_tokens": 46,
    "from_layer": 1,
    "control_position": 1,
    "sink_heads": 2,
    "heads": 4,
  }
  arrays = {"alpha": alpha, "head": head, "size": head}
  arrays |= {"values": head, "scores": scores * head}
  config = carriers.Config(eps=eps)
  result = carriers.experiment.Result(numbers, {}, arrays, config, "tiny")
  return judge(carriers.claims(result))


@pytest.mark.parametrize(
  ("given", "verdicts"),
  [
    ((0.5, 1.0, 0.5), (Verdict.SUPPORTED,) * 2),
    # Small whatever they attend to: not because of the sink.
    ((0.5, 0.5, 0.5), (Verdict.INCONCLUSIVE, Verdict.NO_EFFECT)),
    ((2.0, 1.0, 2.0), (Verdict.CONTRADICTED,) * 2),
    # Any hidden token does as much.
    ((0.5, 1.0, 1.0), (Verdict.INCONCLUSIVE,) * 2),
  ],
)
def test_verdicts(given, verdicts):
  *about_sinks, by_values = planted(*given)
  assert tuple(claim.verdict for claim in about_sinks) == verdicts
  assert by_values.verdict == Verdict.SUPPORTED
  assert planted(*given, scores=2.0)[-1].verdict == Verdict.CONTRADICTED


def test_without_sink_heads_or_scores():
  first, second, third = planted(0.5, 1.0, 0.5, scores=0.0, eps=0.95)
  assert {first.verdict, second.verdict, third.verdict} == {
    Verdict.NOT_TESTABLE
  }


def test_refusals(subject, text):
  config = carriers.Config(texts=text, tokens=3)
  with pytest.raises(ValueError, match="tokens must be at least 4"):
    carriers.measure(subject, config)
