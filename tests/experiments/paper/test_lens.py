"""The experiment on the Jacobian lens: against its parts, planted verdicts."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.paper import lens
from sinkjax.experiments.paper.lens.experiment import (
  CONTROL,
  METRICS,
  _layers,
  readings,
)
from sinkjax.experiments.shared.sink_removal import Condition, hide
from sinkjax.transforms.lens_shares import lens_probes

SKIPS = (0, 1, 4)


@pytest.mark.thorough
def test_measured_is_the_lens_s(subject, text):
  # Four texts: two to fit, two held out.
  text = text + "\n" + text.replace("old", "road").replace("bird", "garden")
  config = lens.Config(
    texts=text, fit=2, tokens=12, skips=SKIPS, every=1, samples=3, from_layer=1
  )
  ran = lens.measure(subject, config).as_stored(config, "tiny")
  assert ran.numbers["layers"] == [0, 1] and ran.numbers["held_out"] == 2
  whole = [
    part.replace("\n", " ")
    for part in text.replace("{cat|dog}", "cat")
    .replace("{red|green}", "red")
    .replace("{ran|walked}", "ran")
    .replace("{north|south}", "north")
    .split("\n\n")
  ]
  ids = np.array([subject.tokenizer.encode(x)[:12] for x in whole])
  f = hide(sinkjax.forward(subject.cfg), 1)
  probes = lens_probes(
    f, subject.params, ids[3], skips=SKIPS, layers=(0, 1), samples=3
  )
  hidden = Condition.HIDDEN
  for name, want in (
    ("across", probes.across().value),
    ("left out", probes.left_out().value),
  ):
    got = ran.arrays[f"{name}, {hidden}"][3]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  fitted = sinkjax.fit_lens(f, subject.params, ids[:2], skip=4, layers=(0, 1))
  want = sinkjax.lens_quality(
    f, subject.params, fitted, jnp.asarray(ids[2:]), centred=True
  )
  for metric in METRICS:
    got = ran.arrays[f"{metric}, {hidden}, skip 4, centred"]
    mean = getattr(want, metric)[..., 1:].mean(-1)
    np.testing.assert_allclose(got, mean, rtol=1e-4, atol=1e-6)
  drawn = lens.EXPERIMENT.draw(ran)
  assert len(lens.EXPERIMENT.sections(ran, drawn)) == 2
  assert len(judge(lens.claims(ran))) == 5
  assert len(ran.tables["shares.csv"][1]) == 3 * 3 * 2
  assert len(ran.tables["quality.csv"][1]) == 2 * 7 * 2


def planted(across, agree):
  """Twelve texts, eight held out; layers 0, 1, 2 of six, the middle is 2."""
  rng = np.random.default_rng(0)
  config = lens.Config(skips=SKIPS)

  def noisy(values):
    return values + 0.004 * rng.normal(size=np.shape(values))

  arrays = {}
  for name, by_skip in across.items():
    values = np.tile(np.array(by_skip)[None, :, None], (12, 1, 3))
    arrays[f"across, {name}"] = noisy(values)
  for reading in readings(SKIPS):
    value = agree.get(reading, 0.0)
    values = np.broadcast_to(np.atleast_1d(value)[:, None], (3, 8))
    for metric in METRICS:
      arrays[f"{metric}, {Condition.SINK}, {reading}"] = noisy(values)
  numbers = {
    "texts": 12,
    "fitted": 4,
    "held_out": 8,
    "tokens": 40,
    "layers": [0, 1, 2],
    "of_layers": 6,
    "from_layer": 2,
    "control_position": 1,
  }
  result = Result(numbers, {}, arrays, config, "tiny")
  return {c.id: c.verdict for c in judge(lens.claims(result))}


YES, NO = Verdict.SUPPORTED, Verdict.CONTRADICTED
SINK, HIDDEN = Condition


def test_verdicts():
  across = {
    SINK: (0.5, 0.3, 0.3),
    HIDDEN: (0.5, 0.6, 0.4),
    CONTROL: (0, 0.3, 0),
  }
  # Of the logit lens only the middle layer decides.
  agree = {"skip 0": 0.1, "skip 1": 0.4, "skip 4": 0.4}
  agree["logit lens"] = np.array([0.9, 0.9, 0.2])
  assert planted(across, agree) == {
    "first_source_is_across": YES,
    "hiding_raises_across": YES,
    "skipping_first_helps": YES,
    "skipping_more_is_the_same": YES,
    "beats_logit_lens": YES,
  }
  across = {
    SINK: (0.3, 0.5, 0.5),
    HIDDEN: (0.5, 0.4, 0.9),
    CONTROL: (0, 0.5, 0),
  }
  agree = {"skip 0": 0.5, "skip 1": 0.4, "skip 4": 0.7}
  agree["logit lens"] = np.array([0.1, 0.1, 0.6])
  assert set(planted(across, agree).values()) == {NO}


def test_the_control_must_do_less():
  across = {
    SINK: (0.5, 0.3, 0.3),
    HIDDEN: (0.5, 0.6, 0.4),
    CONTROL: (0, 0.7, 0),
  }
  assert planted(across, {})["hiding_raises_across"] is not YES


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"tokens": 5}, "tokens must be at least 6"),
    ({"skips": (0, 4)}, "skips must have 0, 1 and a larger number"),
    ({"samples": 1}, "samples must be at least 2"),
    ({"every": 0}, "every must be at least 1"),
    ({"every": 9}, "every=9 leaves no layer of 3"),
    ({"fit": 1, "from_layer": 1}, "fit must be 1 to 0"),
    ({"from_layer": 3}, r"from_layer must be in \[0, 3\)"),
  ],
)
def test_refusals(subject, text, given, message):
  config = lens.Config(texts=text, tokens=12, skips=SKIPS, every=1)
  with pytest.raises(ValueError, match=message):
    lens.measure(subject, dataclasses.replace(config, **given))


def test_layers_leave_out_the_last():
  assert _layers(30, 3) == (2, 5, 8, 11, 14, 17, 20, 23, 26)
  assert _layers(3, 1) == (0, 1)
