"""The benchmark: its arithmetic, its notes, and one small run of it."""

import csv
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import launcher
import pytest

import sinkjax
from launch.suites import jacobian, measure

ROOT = pathlib.Path(__file__).parents[2]


def bench(*flags):
  return launcher.run("bench", *flags)


def test_ratios_are_medians_over_rounds_not_of_medians():
  ours = [{"seconds": s} for s in (1.0, 2.0, 10.0)]
  peer = [{"seconds": s, "peak_bytes": 7} for s in (5.0, 4.0, 30.0)]
  row = measure.summarise(peer, ours)
  assert row["ratio"] == 3.0  # of 5, 2 and 3; of the medians it is 2.5
  assert (row["seconds"], row["seconds_min"], row["seconds_max"]) == (5, 4, 30)
  assert row["peak_bytes"] == 7 and row["rate"] is None
  died = measure.summarise([{"note": "out of memory"}] * 3, ours)
  assert died["note"] == "out of memory" and died["seconds"] is None


@pytest.mark.parametrize(
  ("code", "error", "note"),
  [
    (-9, "", "out of memory"),
    (1, "RESOURCE_EXHAUSTED: Out of memory allocating", "out of memory"),
    (1, "can't allocate memory: you tried", "out of memory"),
    (1, "ModuleNotFoundError: No module named 'torch'", "not installed"),
    (1, "ValueError: something else", None),
  ],
)
def test_what_dies_is_a_row(monkeypatch, code, error, note):
  def run(*args, **kw):
    return subprocess.CompletedProcess(args, code, "", error)

  monkeypatch.setattr(subprocess, "run", run)
  if note is None:
    with pytest.raises(ValueError, match=r"load, ours: .* something else"):
      measure.run("load", "ours", {})
  else:
    assert note in measure.run("load", "ours", {})["note"]


@pytest.mark.parametrize("gated", [True, False])
def test_operations_of_a_forward_pass(gated):
  """As the compiler counts them, which does not skip the future."""
  cfg = sinkjax.ModelConfig(
    vocab_size=512,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=24,
    d_ff=160,
    max_len=128,
    gated_mlp=gated,
    scan_layers=False,
  )
  length = 128
  tokens = jnp.zeros((1, length), int)
  run = jax.jit(sinkjax.forward(cfg))
  compiled = run.lower(sinkjax.param_shapes(cfg), tokens).compile()
  future = 2 * length * cfg.n_layers * cfg.n_heads * cfg.head_dim * length
  want = measure.forward_flops(cfg, length) + future
  counted = compiled.cost_analysis()["flops"]
  assert want == pytest.approx(counted, rel=0.05)


def test_difference_is_of_the_column_or_row_that_both_have():
  ours = {"column": [0.0, 2.0, 4.0], "row": [1.0, 2.0]}
  results = {
    "ours": dict(ours),
    "same": {"column": ours["column"]},
    "off": {"row": [1.0, 1.0]},
    "dead": {"note": "out of memory"},
  }
  jacobian.compare(results)
  assert results["same"]["difference"] == 0
  assert results["off"]["difference"] == 0.5
  assert "difference" not in results["ours"] | results["dead"]


def test_memory_is_seen():
  """What was there before does not count, what is gone again does."""
  code = """
import numpy as np
from launch.suites.measure import Peak
before = np.ones(200_000_000, np.uint8)
peak = Peak()
array = np.ones(80_000_000, np.uint8)
del array
print(peak.bytes())
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert 75e6 < int(done.stdout) < 150e6


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--suite=forward"], "--out is missing"),
    (["--suite=forward", "--dry_run", "--peers=nobody"], "nobody is none of"),
    (["--suite=forward", "--dry_run", "--rounds=0"], "rounds"),
    (["--suite=nothing", "--dry_run"], "suite"),
  ],
)
def test_errors(flags, message):
  done = bench(*flags)
  assert done.returncode == 1
  assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_round(tmp_path, smollm2_path):
  """Two processes, three files, ratios as the last line."""
  done = bench(
    "--suite=forward",
    "--quick",
    "--tokens=8",
    "--peers=ours_attention",
    f"--out={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  ratios = json.loads(done.stdout.splitlines()[-1])["ratios"]
  found = json.loads((tmp_path / "bench.json").read_text())
  assert found["complete"] is True and list(found)[-1] == "complete"
  ours, peer = found["rows"]
  assert ours["ratio"] == 1
  assert peer["ratio"] == pytest.approx(peer["seconds"] / ours["seconds"])
  assert ratios == {"T=8: ours_attention": round(peer["ratio"], 3)}
  assert 0 < ours["share"] < 1.2
  with open(tmp_path / "bench.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert [row["peer"] for row in rows] == ["ours", "ours_attention"]
  table = (tmp_path / "bench.md").read_text()
  assert "returning every attention pattern" in table
  assert found["device"] in table and "jax" in table


@pytest.mark.slow
def test_jacobian_peers_find_what_ours_finds(smollm2_path):
  """Else their times say nothing."""
  done = bench(
    "--suite=jacobian", "--quick", "--tokens=4", "--peers=jacfwd,map_jvp"
  )
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if "times T" in line]
  assert len(lines) == 2
  for line in lines:
    assert float(line.split("|")[-2]) < 1e-4
