"""The experiment `sink_birth` over revisions of a repository on loopback."""

import csv
import json
import pathlib

import pytest
from hub_server import Hub, serving
from launcher import run
from variants import scaled

import sinkjax

STRONG = pathlib.Path(__file__).parents[2] / "docs" / "models" / "strong"
STEPS = (0, 8, 64, 512)


def revision(folder, by):
  """The files of a model whose blocks have their parameters scaled."""
  params, cfg, tokenizer = sinkjax.load(str(STRONG))
  sinkjax.save(str(folder), scaled(params, by), cfg, tokenizer)
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_sink_is_born_over_revisions(tmp_path):
  """The same model with weights from near 0 to its own: attention sharpens."""
  files = {
    f"step{step}": (f"{step:040d}", revision(tmp_path / f"{step}", by))
    for step, by in zip(STEPS, (0.1, 0.4, 0.7, 1.0), strict=True)
  }
  hub, out = Hub(files), tmp_path / "out"
  with serving(hub) as url:
    ran = run(
      "reproduce",
      "--experiment=sink_birth",
      "--model=hf:org/tiny@step512",
      "--config.sink_birth.checkpoints=hf:org/tiny@step{0,8,64}",
      f"--out={out}",
      env={
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
      },
    )
  assert ran.returncode == 0, ran.stderr
  with (out / "sink_birth" / "checkpoints.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [int(row["step"]) for row in rows] == list(STEPS)
  entropy = [float(row["entropy"]) for row in rows]
  assert entropy == sorted(entropy, reverse=True) and entropy[0] > 0.99
  rate = [float(row["rate"]) for row in rows]
  assert rate[0] < 0.01 and rate[-1] > 0.3
  about = json.loads((out / "sink_birth" / "result.json").read_text())
  # The record says of which bytes each checkpoint is.
  known = {f"hf:org/tiny@step{step}" for step in STEPS}
  assert set(about["weights"]) == known
  assert len({x["sha256"] for x in about["weights"].values()}) == len(STEPS)
