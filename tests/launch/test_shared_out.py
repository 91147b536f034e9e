"""What several processes make together that share --out."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.slow

FLAGS = (
  "--config=configs/reproduce/training.py:demo",
  "--experiment=bigram_backcopy",
  "--config.bigram_backcopy.steps=400",
  "--config.bigram_backcopy.warmup=2",
  "--config.bigram_backcopy.batch=4",
  "--config.bigram_backcopy.d_model=16",
  "--config.bigram_backcopy.length=20",
  "--config.bigram_backcopy.normalizers=('softmax','relu')",
  "--config.bigram_backcopy.seeds=(0,1,2)",
)


def start(out, flags=FLAGS):
  return subprocess.Popen(
    [sys.executable, "-m", "launch.reproduce", *flags, f"--out={out}"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  said, _ = process.communicate(timeout=1500)
  assert process.returncode == 0, said
  return said


def outcomes(out):
  """All that a run came to, without what differs between any two."""
  found = {}
  for path in sorted((out / "bigram_backcopy" / "runs").glob("*.json")):
    one = json.loads(path.read_text())
    del one["seconds"]
    found[path.stem] = one
  return found


def test_three_processes_and_a_kill_end_as_one_process_does(tmp_path):
  """Bit for bit; and the run of a host that has died is taken over."""
  alone, shared = tmp_path / "alone", tmp_path / "shared"
  finish(start(alone))
  runs = shared / "bigram_backcopy" / "runs"
  runs.mkdir(parents=True)
  # Of a host that never comes back: it expires while the rest is trained.
  (runs / "softmax-0.lease-000001").write_text(
    json.dumps({"host": "far", "process": 7, "token": "x", "beat": 3})
  )
  processes = [start(shared) for _ in range(3)]
  until = time.monotonic() + 600
  while True:
    held = [
      json.loads(path.read_text() or "{}").get("process")
      for path in runs.glob("*.lease-*")
    ]
    if processes[0].pid in held:
      break
    assert time.monotonic() < until
    time.sleep(0.01)
  processes[0].kill()
  processes[0].wait()
  said = [finish(process) for process in processes[1:]]
  assert any("waiting for process 7 of host far" in text for text in said)
  assert outcomes(shared) == outcomes(alone) and len(outcomes(alone)) == 6
  assert not list(runs.glob("*.lease-*"))
  results = [
    json.loads((out / "bigram_backcopy" / "result.json").read_text())
    for out in (alone, shared)
  ]
  assert results[0]["numbers"] == results[1]["numbers"]
  assert results[0]["claims"] == results[1]["claims"]
  assert results[1]["complete"] is True
  arrays = [
    np.load(out / "bigram_backcopy" / "arrays.npz") for out in (alone, shared)
  ]
  assert arrays[0].files == arrays[1].files
  for name in arrays[0].files:
    np.testing.assert_array_equal(arrays[0][name], arrays[1][name])


def test_two_processes_share_out_experiments(tmp_path, glassllm_path):
  """Each is measured once; both processes end when all are there."""
  names = ("model_size", "perturbation")
  flags = ["--model=glassllm-en", f"--experiment={','.join(names)}"]
  processes = [start(tmp_path, flags) for _ in range(2)]
  said = [finish(process) for process in processes]
  for name in names:
    result = json.loads((tmp_path / name / "result.json").read_text())
    assert result["complete"] is True
    # Whoever has not measured it finds it done.
    done = [f"{name}: already done" in text for text in said]
    assert sorted(done) == [False, True], said
  assert not list(tmp_path.glob("*.lease-*"))
