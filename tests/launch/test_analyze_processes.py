"""Tests of launch.analyze by two real processes on one machine."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from launcher import Launched, run
from ports import free_port

import sinkjax

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = ["The king sat by the window.", "A fox ran home.", "The king sat down."]
OF_A_RUN = {"command", "commit", "mesh", "seconds"}
"""What a summary says of how it was made."""


def texts_file(folder, texts):
  path = folder / "texts.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  return path


def together(texts, out, *flags):
  port = free_port()
  return [
    Launched(
      "analyze",
      "--model=glassllm-en",
      f"--prompts_file={texts}",
      f"--out={out}",
      f"--coordinator=localhost:{port}",
      "--processes=2",
      f"--process={i}",
      *flags,
    )
    for i in range(2)
  ]


def same(a, b, at=""):
  """Equal but for rounding: 1e-5 of the largest number of a list."""
  if isinstance(a, dict):
    assert a.keys() == b.keys(), at
    for key in a.keys() - OF_A_RUN:
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


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data:2", "fsdp:2"])
def test_two_processes_measure_as_one(mesh, tmp_path, glassllm_path):
  """Three texts of two lengths, of which data:2 leaves some over."""
  texts, outs = texts_file(tmp_path, TEXTS), [tmp_path / x for x in "ab"]
  flags = ["--max_tokens=6", f"--mesh={mesh}"]
  runs = together(texts, outs[0], *flags)
  for launched in runs:
    out, err = launched.communicate(timeout=300)
    assert launched.returncode == 0, err
    # Process 0 alone shows and writes.
    assert ("Report: " in out) == (launched is runs[0])
  alone = run(
    "analyze", "--model=glassllm-en", f"--prompts_file={texts}",
    f"--out={outs[1]}", "--max_tokens=6",
  )  # fmt: skip
  assert alone.returncode == 0, alone.stderr
  found = [json.loads((out / "summary.json").read_text()) for out in outs]
  axis = mesh.partition(":")[0]
  assert found[0]["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1} | {axis: 2}
  same(*found)
  names = [sorted(path.name for path in out.iterdir()) for out in outs]
  assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 0])
def test_a_dead_process_ends_the_other(dead, tmp_path, glassllm_path):
  """Within a minute, with one line, and nothing is written."""
  texts = texts_file(tmp_path, [f"{i}. {TEXTS[0]}" for i in range(20_000)])
  out = tmp_path / "out"
  runs = together(texts, out, "--max_tokens=6", "--mesh=data:2")
  # Until the bar of process 0 counts texts. Where a process dies before, JAX
  # ends the other within its heartbeat.
  while not re.search(r"\D\d{2,}/20006", runs[0].errors()):
    assert all(launched.poll() is None for launched in runs)
    time.sleep(0.1)
  runs[dead].kill()
  died = time.monotonic()
  try:
    _, err = runs[1 - dead].communicate(timeout=60)
  finally:
    runs[1 - dead].kill()
  assert runs[1 - dead].returncode != 0 and time.monotonic() - died < 60
  # Where process 0 died, JAX may end this one before it can say so itself.
  if dead:
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "nothing is written" in said[0], err
    assert not out.exists()
  else:
    assert "nothing is written" in err or "Terminating" in err, err


LOADING = """
import json, sys, tracemalloc
import jax
import sinkjax
from sinkjax.weights import registry
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
registry.load(sys.argv[3], mesh="fsdp:2")  # what is imported on the way
tracemalloc.start()
params = sinkjax.load(sys.argv[3], mesh="fsdp:2").params
_, peak = tracemalloc.get_traced_memory()
leaves = jax.tree.leaves(params)
held = sum(s.data.nbytes for x in leaves for s in x.addressable_shards)
print(json.dumps([held, peak, sum(x.nbytes for x in leaves)]))
"""


@pytest.mark.slow
def test_each_process_reads_its_own_part(tmp_path):
  """No process ever holds more than its half and a few parts of arrays."""
  cfg = sinkjax.TINY.replace(
    n_layers=6, d_model=256, n_heads=8, n_kv_heads=8, head_dim=32, d_ff=1024,
    vocab_size=2048,
  )  # fmt: skip
  params = sinkjax.init_params(cfg, jax.random.key(0))
  sinkjax.save(tmp_path / "model", params, cfg)
  address = f"localhost:{free_port()}"
  runs = [
    subprocess.Popen(
      [sys.executable, "-c", LOADING, address, str(i), tmp_path / "model"],
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    for i in range(2)
  ]
  for process in runs:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    held, peak, whole = json.loads(out.splitlines()[-1])
    # Norms are copied; 15 % as in the laws on fake devices.
    assert whole / 2 < held < 0.51 * whole
    assert peak < (0.5 + 0.15) * whole


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--processes=2"], "--processes and --process go together"),
    (["--distributed", "--offload"], "leave out --offload, or"),
  ],
)
def test_flags_that_do_not_go_together(flags, message, tmp_path, glassllm_path):
  done = run("analyze", "--model=glassllm-en", f"--out={tmp_path}", *flags)
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert done.returncode == 1 and len(errors) == 1, done.stderr
  assert message in errors[0]
