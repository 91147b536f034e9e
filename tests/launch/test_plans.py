"""What a dry run says of memory is what the run takes, within 1.5 times."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch.prompts import PARAGRAPH

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(sys.platform != "linux", reason="counts KiB"),
]


def launch(*words):
  """(what it printed, its greatest memory in GB)."""
  process = subprocess.Popen(
    [sys.executable, "-m", *words],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  said = process.stdout.read()
  _, status, used = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  assert process.returncode == 0, said
  return said, used.ru_maxrss * 1024 / 1e9


def agrees(*words):
  plan, _ = launch(*words, "--dry_run")
  said = float(re.search(r"^memory +about ([\d.]+) GB", plan, re.MULTILINE)[1])
  _, took = launch(*words)
  assert 1 / 1.5 < said / took < 1.5, (said, took)


@pytest.mark.parametrize("tokens", [64, 512, 2048, 4096])
def test_analyze(tmp_path, smollm2_path, tokens):
  """At the largest the squares of the attention outweigh the weights."""
  text = tmp_path / "text"
  text.write_text(PARAGRAPH * (1 + tokens // 90), "utf-8")
  agrees(
    "launch.analyze",
    f"--text_file={text}",
    f"--max_tokens={tokens}",
    f"--out={tmp_path / 'out'}",
  )


SIZES = {
  "tiny": [],
  "wide": ["d_model=512", "head_dim=128", "d_ff=1024"],
  "scores": ["attention=einsum", "max_len=512"],
}


@pytest.mark.parametrize("size", SIZES)
def test_train(tmp_path, size):
  texts = tmp_path / "texts"
  texts.mkdir()
  for i in range(40):
    (texts / f"{i}.txt").write_text(PARAGRAPH * (i + 2), "utf-8")
  flags = {"steps": 4, "held_out": 0.2, "eval_every": 4, "probe_every": 4}
  flags |= {"save_every": 4, "optimizer.warmup": 1}
  flags["packing.length"] = 512 if size == "scores" else 128
  flags["corpus"] = f"('{texts}',)"
  agrees(
    "launch.train",
    *(f"--config.{name}={value}" for name, value in flags.items()),
    *(f"--config.model.{field}" for field in SIZES[size]),
    f"--workdir={tmp_path / 'run'}",
  )
