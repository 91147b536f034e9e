"""The shell scripts for pods and clusters, run dry; the plans of big runs."""

import os
import pathlib
import shlex
import subprocess

import launcher
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [
  "--config=configs/train/barbero_120m.py",
  "--workdir=/mnt/my run",
  "--mesh=data:-1",
  "--config.corpus=('a b',)",
]


def script(name, *flags, **variables):
  return subprocess.run(
    [ROOT / "launch" / name, *flags],
    capture_output=True,
    text=True,
    env={**os.environ, "DRY_RUN": "1", **variables},
    check=False,
  )


def training(line):
  """The words after `-m launch.train` that a shell would pass."""
  words = shlex.split(line)
  return words[words.index("launch.train") + 1 :]


def test_tpu():
  done = script("run_tpu.sh", *FLAGS, TPU="pod", ZONE="z", SETUP="1")
  assert done.returncode == 0, done.stderr
  setup, run = (shlex.split(line) for line in done.stdout.splitlines())
  for words in (setup, run):
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert {"--zone=z", "--worker=all"} <= set(words)
  remote = run[-1].removeprefix("--command=")
  assert training(remote) == ["--distributed", *FLAGS]
  assert "pip install -q jax[tpu] ." in " ".join(shlex.split(setup[-1]))
  assert "set TPU" in script("run_tpu.sh", *FLAGS, ZONE="z").stderr
  assert script("run_tpu.sh", TPU="pod", ZONE="z").returncode == 1


def test_slurm():
  done = script(
    "run_slurm.sh",
    *FLAGS,
    NODES="2",
    GPUS="4",
    TIME="1:00:00",
    PYTHON="/env/bin/python",
  )
  assert done.returncode == 0, done.stderr
  *head, last = done.stdout.strip().splitlines()
  asked = {line.removeprefix("#SBATCH ") for line in head if "#SBATCH" in line}
  assert {
    "--nodes=2",
    "--ntasks-per-node=4",
    "--gpus-per-node=4",
    "--time=1:00:00",
    "--requeue",
    "--signal=TERM@120",
  } <= asked
  assert shlex.split(last)[:3] == [
    "srun",
    "--kill-on-bad-exit=1",
    "/env/bin/python",
  ]
  assert training(last) == ["--distributed", *FLAGS]
  subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
  assert "give the flags" in script("run_slurm.sh").stderr


@pytest.mark.parametrize(
  ("name", "parameters"),
  [("gu_60m", 60e6 + 2 * 50304 * 768), ("barbero_120m", 110e6)],
)
def test_the_plan_of_a_big_run(name, parameters):
  done = launcher.run(
    "train",
    "--dry_run",
    "--workdir=never",
    f"--config=configs/train/{name}.py",
    "--accelerator=8xh100",
    "--mesh=data:-1",
  )
  assert done.returncode == 0, done.stderr
  lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
  count = int(lines["model"].split()[0].replace(",", ""))
  assert abs(count / parameters - 1) < 0.02
  assert lines["memory"].endswith("fits") and " h at " in lines["time"]
