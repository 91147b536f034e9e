"""Tests of launch.train by several real processes on one machine."""

import json
import signal
import subprocess
import time

import pytest
from ports import free_port

RUN = ("--config.steps=30", "--config.log_every=2")


def together(train, workdir, processes, *flags):
  port = free_port()
  return [
    train.start(
      workdir,
      f"--coordinator=localhost:{port}",
      f"--processes={processes}",
      f"--process={i}",
      *flags,
    )
    for i in range(processes)
  ]


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return {(r["kind"], r["step"]): r for r in found}


def same_curve(a, b):
  a, b = records(a), records(b)
  assert set(a) == set(b)
  for key, record in a.items():
    for name in {"loss", "grad_norm", "first_mass"} & set(record):
      assert record[name] == pytest.approx(b[key][name], rel=1e-4), (key, name)


@pytest.fixture(scope="module")
def alone(train, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("alone") / "run"
  code, _, err = train.ended(train.start(workdir, *RUN))
  assert code == 0, err
  return workdir


@pytest.mark.slow
def test_two_processes_train_as_one(train, alone, tmp_path):
  workdir = tmp_path / "run"
  runs = together(train, workdir, 2, *RUN, "--mesh=fsdp:2")
  for code, _, err in [train.ended(run) for run in runs]:
    assert code == 0, err
  same_curve(alone, workdir)
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["complete"] is True and (workdir / "model").is_dir()


@pytest.mark.slow
def test_what_four_wrote_one_goes_on_from(train, alone, tmp_path):
  workdir = tmp_path / "run"
  runs = together(train, workdir, 4, *RUN, "--mesh=data:2,fsdp:2")
  train.wait_for(workdir, 5, runs[0])
  for run in runs:
    run.send_signal(signal.SIGTERM)
  ends = [train.ended(run) for run in runs]
  assert [code for code, _, _ in ends] == [143] * 4, ends[0][2]
  assert "stopped at step" in ends[0][1]
  code, out, err = train.ended(train.start(workdir, *RUN))
  assert code == 0, err
  assert "resuming from step" in out + err
  same_curve(alone, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 0])
def test_a_dead_process_ends_the_others(train, tmp_path, dead):
  workdir = tmp_path / "run"
  runs = together(
    train, workdir, 2, "--config.steps=100000", "--config.eval_every=100000"
  )
  train.wait_for(workdir, 20, runs[0])
  runs[dead].kill()
  died = time.monotonic()
  try:
    code, _, err = train.ended(runs[1 - dead], timeout=60)
  except subprocess.TimeoutExpired:
    runs[1 - dead].kill()
    raise
  assert code != 0 and time.monotonic() - died < 60
  # Where process 0 died, JAX may end this one before it can say so itself.
  assert "process" in err and ("died" in err or "Terminating" in err), err


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_waits_alone(train, tmp_path, process):
  """It says for whom, ends within a minute, and has written nothing."""
  port, begun = free_port(), time.monotonic()
  run = train.start(
    tmp_path / "run",
    f"--coordinator=localhost:{port}",
    "--processes=2",
    f"--process={process}",
  )
  code, _, err = train.ended(run, timeout=90)
  assert code == 1 and time.monotonic() - begun < 75  # with JAX's import
  others = f"process 0 at localhost:{port}" if process else "the other process"
  said = [line for line in err.splitlines() if "error: " in line]
  assert len(said) == 1 and f"waited 50 s for {others}" in said[0], err
  assert not (tmp_path / "run").exists()


def test_flags_that_do_not_go_together(train, tmp_path):
  code, _, err = train.ended(train.start(tmp_path / "run", "--processes=2"))
  assert code == 1 and "--processes and --process go together" in err
