"""Experiments on one model that two real processes hold, on one machine."""

import json
import time

import numpy as np
import pytest
from launcher import Launched, run
from ports import free_port

NAME = "secondary_sinks"
FLAGS = ("--model=glassllm-en", f"--experiment={NAME}")
SMALL = (f"--config.{NAME}.count=1", f"--config.{NAME}.tokens=16")


def together(out, *flags):
  address = f"--coordinator=localhost:{free_port()}"
  several = ("--mesh=fsdp:2", address, "--processes=2")
  return [
    Launched(
      "reproduce", *FLAGS, *flags, *several, f"--process={i}", f"--out={out}"
    )
    for i in range(2)
  ]


def finished(runs):
  said = [launched.communicate(timeout=500) for launched in runs]
  assert all(launched.returncode == 0 for launched in runs), said
  return said


def same(a, b, at=""):
  """Equal but for rounding: 1e-5 of the largest number of a list."""
  if isinstance(a, dict):
    assert a.keys() == b.keys(), at
    for key in a:
      same(a[key], b[key], f"{at}/{key}")
  elif isinstance(a, list) and any(isinstance(x, list | dict) for x in a):
    assert len(a) == len(b), at
    for i, pair in enumerate(zip(a, b, strict=True)):
      same(*pair, f"{at}/{i}")
  elif isinstance(a, list | float) and np.array(a).dtype.kind == "f":
    scale = max(np.abs(b).max(initial=0), 1e-6)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale, err_msg=at)
  else:
    assert a == b, at


def result(out):
  """(numbers and claims of a folder, its arrays, the names of its files)."""
  about = json.loads((out / NAME / "result.json").read_text())
  assert about["complete"] is True
  with np.load(out / NAME / "arrays.npz") as stored:
    arrays = {name: stored[name].tolist() for name in stored}
  names = sorted(path.name for path in out.rglob("*"))
  return {key: about[key] for key in ("numbers", "claims")}, arrays, names


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path, glassllm_path):
  """Process 0 alone shows and writes."""
  said = finished(together(tmp_path / "two", *SMALL))
  assert ["Report: " in out for out, _ in said] == [True, False]
  alone = run("reproduce", *FLAGS, *SMALL, f"--out={tmp_path / 'one'}")
  assert alone.returncode == 0, alone.stderr
  for one, two in zip(
    result(tmp_path / "one"), result(tmp_path / "two"), strict=True
  ):
    if isinstance(one, dict):
      same(two, one)
    else:
      assert one == two
  # The same command again finds it, in all processes.
  again = finished(together(tmp_path / "two", *SMALL))
  assert "already done" in again[0][0]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 0])
def test_a_dead_process_ends_the_other(dead, tmp_path, glassllm_path):
  """Within a minute, with nothing half written; the same command goes on."""
  out, flags = tmp_path / "out", (f"--config.{NAME}.tokens=64",)
  runs = together(out, *flags)
  while not list(out.glob(f"{NAME}/unfinished/*.npz")):
    ended = [x.errors() for x in runs if x.poll() is not None]
    assert not ended, ended
    time.sleep(0.1)
  runs[dead].kill()
  died = time.monotonic()
  try:
    _, err = runs[1 - dead].communicate(timeout=60)
  finally:
    runs[1 - dead].kill()
  assert runs[1 - dead].returncode != 0 and time.monotonic() - died < 60
  said = [line for line in err.splitlines() if line.startswith("error: ")]
  # JAX may end a process before it can say so itself.
  kept = len(said) == 1 and "the finished parts of a measurement are" in said[0]
  assert kept or "Terminating" in err, err
  assert not (out / NAME / "result.json").exists()
  assert not (out / "summary.json").exists()
  after = finished(together(out, *flags))
  assert f"{NAME}: goes on after " in after[0][0]
  assert result(out)[0]["numbers"]["texts"] > 1
  assert not (out / NAME / "unfinished").exists()


@pytest.mark.parametrize(
  ("experiment", "message"),
  [("bigram_backcopy", "it trains models of its own")],
)
def test_experiments_that_run_in_one_process(experiment, message, tmp_path):
  done = run(
    "reproduce",
    f"--experiment={experiment}",
    f"--out={tmp_path}",
    "--distributed",
  )
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert done.returncode == 1 and len(errors) == 1, done.stderr
  assert message in errors[0] and f"--experiment={experiment}" in errors[0]
