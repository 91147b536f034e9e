"""What is already done is done for these bytes, by one process at a time."""

import json

import jax
import launcher
import pytest

import sinkjax
from sinkjax import artifacts, outputs
from sinkjax.experiments import BY_NAME
from sinkjax.experiments.harness import runner

FLAGS = {"analyze": ["--max_tokens=8"], "jacobian": ["--max_tokens=4"]}


@pytest.fixture
def model(tmp_path, glassllm_path):
  """A model that a person keeps in a folder."""
  sinkjax.save(tmp_path / "model", *sinkjax.load("glassllm-en"))
  return tmp_path / "model"


def change(model):
  """Other weights under the same path, as after one more step of training."""
  params, cfg, tokenizer = sinkjax.load(model)
  for file in model.iterdir():
    file.unlink()
  params = jax.tree.map(lambda x: 1.01 * x, params)
  sinkjax.save(model, params, cfg, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["analyze", pytest.param("jacobian", marks=pytest.mark.slow)]
)
def test_weights_that_were_replaced(model, tmp_path, name):
  out = tmp_path / "out"

  def run(*flags):
    command = [f"--model={model}", f"--out={out}", *FLAGS[name], *flags]
    return launcher.run(name, *command)

  def summary():
    return json.loads((out / "summary.json").read_text())

  first = run()
  assert first.returncode == 0, first.stderr
  assert "Already done" in run().stdout
  change(model)
  refused = run()
  assert refused.returncode == 1 and "has changed since" in refused.stderr
  before = summary()
  assert run("--overwrite").returncode == 0
  assert summary()["weights"]["sha256"] != before["weights"]["sha256"]
  # Written before summaries had this entry.
  old = {k: v for k, v in summary().items() if k != "weights"}
  artifacts.write_json(out / "summary.json", old)
  again = run()
  assert again.returncode == 0 and "measured again" in again.stdout
  assert "weights" in summary()


@pytest.mark.parametrize("name", list(FLAGS))
def test_two_at_once(tmp_path, name):
  out = tmp_path / "out"
  out.mkdir()
  with outputs.alone(out):
    found = launcher.run(
      name, "--model=glassllm-en", f"--out={out}", *FLAGS[name]
    )
  assert found.returncode == 1 and found.stderr.count("\n") == 1
  assert "another process is writing to" in found.stderr
  assert not any(out.iterdir())


def test_experiments_on_other_weights(model, tmp_path):
  entry = BY_NAME["smoothing"]
  config = entry.load().config()
  request = runner.Request(entry, config, {"model": str(model), "prefix": ""})
  folder = tmp_path / "smoothing"

  def record(**more):
    about = {"request": request.plain(), "complete": True, **more}
    artifacts.write_json(folder / "result.json", about)

  weights = {name: runner.identity.of(name) for name in request.models()}
  record(weights=weights)
  assert not runner.is_missing(folder, request, overwrite=False)
  record()
  assert runner.is_missing(folder, request, overwrite=False)
  record(weights=weights)
  change(model)
  with pytest.raises(ValueError, match="has changed since"):
    runner.is_missing(folder, request, overwrite=False)
  assert runner.is_missing(folder, request, overwrite=True)


def test_every_model_that_is_read_counts():
  entry = BY_NAME["model_size"]
  config = entry.load().config(models=("a", "b"))
  request = runner.Request(entry, config, {"model": "b", "prefix": ""})
  assert request.models() == ["b", "a"]
