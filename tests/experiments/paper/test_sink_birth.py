"""Names and steps, verdicts on curves made by hand, a run, and its page."""

import pathlib

import jax
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.runner import Request
from sinkjax.experiments.paper.sink_birth import EXPERIMENT
from sinkjax.experiments.paper.sink_birth.checkpoints import (
  Config,
  expand,
  read_history,
  steps_of,
)
from sinkjax.experiments.paper.sink_birth.experiment import QUANTITIES, measure
from sinkjax.experiments.shared.prompt_corpus import Text

STRONG = pathlib.Path(__file__).parents[3] / "docs" / "models" / "strong"
YES, NO, SAME = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.NO_EFFECT
STEPS = [0, 10, 100, 1000, 10_000]


def test_names_and_steps():
  assert expand("a{1,2}b{x, y}") == ["a1bx", "a1by", "a2bx", "a2by"]
  config = Config(checkpoints=("run/step{0,16}", "run/step128"))
  assert config.checkpoints == ("run/step0", "run/step16", "run/step128")
  assert Config(checkpoints="run/step{1,2}").checkpoints == (
    "run/step1",
    "run/step2",
  )
  assert steps_of(["hf:a/b-2@step7", "160m_step_8", "c/9"]) == [7, 8, 9]
  with pytest.raises(ValueError, match="have steps"):
    steps_of(["step9", "step9"])
  with pytest.raises(ValueError, match="'last' has no number"):
    steps_of(["last"])
  # The record has the bytes of every one of them.
  request = Request(None, config, {"model": "run/step500"})
  assert request.models() == ["run/step500", *config.checkpoints]


def test_history_of_a_run(tmp_path):
  found = read_history(str(STRONG), 0.3)
  assert found["steps"][0] == 0 and found["rate"][-1] > 0.3
  assert len(found["loss"]) == len(found["loss steps"])
  with pytest.raises(ValueError, match="no column sink_rate_0.4"):
    read_history(str(STRONG), 0.4)
  with pytest.raises(ValueError, match="probe.csv is not there"):
    read_history(str(tmp_path), 0.3)
  (tmp_path / "probe.csv").write_text("step,value_ratio\n1,x\n")
  with pytest.raises(ValueError, match="damaged"):
    read_history(str(tmp_path), 0.3)


def verdicts(steps=STEPS, **curves):
  """Of 12 texts, by curves over checkpoints."""
  rng, arrays = np.random.default_rng(0), {}
  of = {
    "rate": [0, 0, 0.1, 0.6, 0.7],
    "value": [1.1, 1, 0.9, 0.3, 0.2],
    "massive": [5, 6, 20, 80, 90],
    "entropy": [1, 0.9, 0.8, 0.7, 0.6],
    "loss": [7, 5, 3, 2.9, 2.8],
  } | curves
  for name, curve in of.items():
    curve = np.array(curve, float)[:, None]
    noise = 1 + 0.001 * rng.normal(size=(len(curve), 12))
    arrays[name] = curve * noise
  # Checkpoints without sinks have none in any text.
  numbers = {
    "texts": 12,
    "templates": list(range(12)),
    "names": [f"step{x}" for x in steps],
    "steps": steps,
  }
  made = Result(numbers, {}, arrays).as_stored(Config())
  return {claim.id: claim.verdict for claim in judge(EXPERIMENT.claims(made))}


def test_verdicts():
  assert set(verdicts().values()) == {YES}
  other = verdicts(
    rate=[0, 0.5, 0.6, 0.7, 0.8],
    value=[0.2, 0.4, 0.5, 0.9, 1.1],
    massive=[90, 80, 20, 7, 5],
    entropy=[0.5, 0.6, 0.7, 0.8, 0.9],
    loss=[7, 7, 7, 7, 2],
  )
  assert other == {
    "sink_grows": YES,
    "values_drain_with_sink": NO,
    "massive_with_sink": NO,
    "entropy_falls_with_sink": NO,
    "sink_after_loss": NO,
    "sink_not_before_massive": NO,
  }
  # A model that grows no sink, and one without other checkpoints.
  none = verdicts(rate=[0] * 5)
  assert none.pop("sink_grows") == SAME
  assert set(none.values()) == {Verdict.NOT_TESTABLE}
  assert set(verdicts(steps=[]).values()) == {Verdict.NOT_TESTABLE}
  few = verdicts(steps=[0, 10])
  assert few.pop("sink_grows") != Verdict.NOT_TESTABLE
  assert set(few.values()) == {Verdict.NOT_TESTABLE}


@pytest.fixture(scope="module")
def texts():
  rng = np.random.default_rng(0)
  words = "the old man saw a red bird and went to his garden by night"
  words = words.split()  # noqa: SIM905
  return [Text("a", f"{i}", " ".join(rng.choice(words, 30))) for i in range(5)]


@pytest.mark.thorough
def test_run_and_page(reader, texts, tmp_path):
  reader = reader._replace(tokenizer=type(reader.tokenizer)(), name="step64")
  params = sinkjax.init_params(reader.cfg, jax.random.key(1))
  for step, by in ((0, 1.0), (2, 1.5), (16, 2.0)):
    folder = tmp_path / f"step{step}"
    sinkjax.save(str(folder), scaled(params, by), reader.cfg)
  config = Config(
    checkpoints=(str(tmp_path / "step{0,2,16}"),),
    history=str(STRONG),
    tokens=16,
    eps=0.1,
  )
  seen = []
  done = measure(
    reader, config, texts=texts, progress=lambda *at: seen.append(at)
  )
  assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
  found = done.as_stored(config, "tiny")
  assert found.numbers["steps"] == [0, 2, 16, 64]
  assert {found.arrays[x].shape for x in QUANTITIES} == {(4, 5)}
  # Each checkpoint is what it is alone.
  ids = np.array([reader.encode([one.text])[0][:16] for one in texts])
  f = sinkjax.capture(
    sinkjax.forward(reader.cfg),
    {"p": ("pattern", lambda x: x), "v": ("v", lambda x: x)},
  )
  out = jax.jit(f)(scaled(params, 1.5), ids)
  pattern = np.asarray(out.trace["p"], np.float64)
  rate = (pattern[..., 0].mean(axis=-1) > 0.1).mean(axis=(0, 2))
  np.testing.assert_allclose(found.arrays["rate"][1], rate, atol=0.1)
  assert np.abs(found.arrays["rate"][1] - rate).mean() < 0.02
  norms = np.linalg.norm(np.asarray(out.trace["v"], np.float64), axis=-1)
  ratio = norms[:, :, 0] / norms[:, :, 1:].mean(axis=2)  # [L, P, N]
  value = np.median(np.moveaxis(ratio, 1, 0).reshape(5, -1), axis=1)
  np.testing.assert_allclose(found.arrays["value"][1], value, rtol=1e-4)
  logits = np.asarray(out.logits, np.float64)[:, :-1]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nats = -np.take_along_axis(logs, ids[:, 1:, None], -1)[..., 0].mean(-1)
  np.testing.assert_allclose(found.arrays["loss"][1], nats, rtol=1e-4)
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"birth.png"}
  assert len(EXPERIMENT.sections(found, drawn)) == 1
  assert len(EXPERIMENT.claims(found)) == 6


@pytest.mark.thorough
def test_another_vocabulary_is_refused(reader, texts, tmp_path):
  cfg = sinkjax.TINY
  folder = tmp_path / "step1"
  params = sinkjax.init_params(cfg, jax.random.key(0))
  sinkjax.save(str(folder), params, cfg)
  reader = reader._replace(name="step2")
  config = Config(checkpoints=(str(folder),), tokens=16)
  with pytest.raises(ValueError, match="no checkpoints of one run"):
    measure(reader, config, texts=texts)
