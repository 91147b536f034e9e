"""Gradient sinks: against the analysis, and planted verdicts."""

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.gradient_norms import gradient_norms
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper import gradient_sinks
from sinkjax.experiments.paper.gradient_sinks.experiment import (
  MEASURED,
  first_over_rest,
)


@pytest.mark.slow
def test_measured_is_the_analysis_s(subject, text):
  config = gradient_sinks.Config(texts=text, tokens=8)
  ran = gradient_sinks.measure(subject, config).as_stored(config, "tiny")
  whole = text.split("\n\n")[1].replace("{north|south}", "north")
  ids = jnp.asarray(subject.tokenizer.encode(whole)[:8])
  f = sinkjax.forward(subject.cfg)
  want = gradient_norms(f, subject.params, ids)
  for name in MEASURED:
    got = ran.arrays[name][1]
    np.testing.assert_allclose(got, getattr(want, name), rtol=1e-5)
  watched = sinkjax.capture(f, {"a": ("pattern", sinkjax.sink_score)})
  alpha = watched(subject.params, ids[None]).trace["a"][:, 0].mean(-1)
  np.testing.assert_allclose(ran.arrays["alpha"][1], alpha, rtol=1e-5)
  logs = np.log(want.attn_in[:, :-1])
  gap = logs[:, 0] - logs[:, 2:].mean(1)
  other = first_over_rest(ran.arrays["attn_in"][0], 1)
  ends = ran.arrays["by_layer"][0, :, 0]
  np.testing.assert_allclose(ends, (gap + other) / 2, rtol=1e-4)
  drawn = gradient_sinks.EXPERIMENT.draw(ran)
  assert len(gradient_sinks.EXPERIMENT.sections(ran, drawn)) == 2
  assert len(ran.tables["layers.csv"][1]) == 3
  assert len(judge(gradient_sinks.claims(ran))) == 3


def test_the_first_over_the_rest():
  norms = np.array([8.0, 5.0, 1.0, 4.0, 0.0])
  got = np.exp(first_over_rest(norms, 1))
  assert got == pytest.approx(8 / 2)
  assert np.exp(first_over_rest(norms, 1, 1)) == pytest.approx(5 / 2)


def planted(first, control, kept, alpha):
  """Eight texts, four layers, six tokens; layers differ by `alpha`."""
  rng = np.random.default_rng(0)
  read = np.exp(0.02 * rng.normal(size=(8, 4, 6)))
  layers = np.array([0.5, 0.8, 1.25, 2.0])
  read[..., 0] *= first * layers
  read[..., 1] *= control
  through = read * np.exp(0.02 * rng.normal(size=read.shape))
  through[..., 0] *= kept
  read[..., -1] = through[..., -1] = 0
  arrays = {
    "attn_in": read,
    "attn_through": through,
    "attn_factor": np.ones_like(read),
    "alpha": np.tile(np.array(alpha), (8, 1)),
  }
  numbers = {"texts": 8, "tokens": 6, "control_position": 1}
  result = Result(numbers, {}, arrays, gradient_sinks.Config(), "tiny")
  return tuple(c.verdict for c in judge(gradient_sinks.claims(result)))


RISING, FALLING = (0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)
YES, NO = Verdict.SUPPORTED, Verdict.CONTRADICTED


@pytest.mark.parametrize(
  ("given", "verdicts"),
  [
    ((4.0, 1.0, 0.2, RISING), (YES, YES, YES)),
    ((0.3, 1.0, 3.0, FALLING), (NO, NO, NO)),
    # The token after the first has as much: not because of the sink.
    ((4.0, 5.0, 1.0, RISING), (Verdict.INCONCLUSIVE, Verdict.NO_EFFECT, YES)),
    ((4.0, 1.0, 0.2, (0.2,) * 4), (YES, YES, Verdict.NOT_TESTABLE)),
  ],
)
def test_verdicts(given, verdicts):
  assert planted(*given) == verdicts


def test_refusals(subject, text):
  config = gradient_sinks.Config(texts=text, tokens=3)
  with pytest.raises(ValueError, match="tokens must be at least 4"):
    gradient_sinks.measure(subject, config)
