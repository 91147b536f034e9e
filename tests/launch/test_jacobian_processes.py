"""launch.jacobian by two real processes on one machine."""

import json
import time

import numpy as np
import pytest
from launcher import Launched, run
from ports import free_port

pytestmark = pytest.mark.slow
FLAGS = (
  "--model=glassllm-en",
  "--max_tokens=5",
  "--layers",
  "--edit=knockout key=0 from=2",
)


def together(out):
  port = free_port()
  return [
    Launched(
      "jacobian",
      *FLAGS,
      f"--out={out}",
      f"--coordinator=localhost:{port}",
      "--processes=2",
      f"--process={i}",
    )
    for i in range(2)
  ]


def test_two_processes_compute_as_one(tmp_path, glassllm_path):
  """Each its columns; process 0 alone joins them and writes, and no part is
  left."""
  runs = together(tmp_path / "two")
  said = [launched.communicate(timeout=400) for launched in runs]
  for i, (out, err) in enumerate(said):
    assert runs[i].returncode == 0, err
    assert f"Part {i + 1} of 2 has its {(6, 4)[i]} columns" in out
    assert ("Report: " in out) == (i == 0)
  alone = run("jacobian", *FLAGS, f"--out={tmp_path / 'one'}", timeout=400)
  assert alone.returncode == 0, alone.stderr
  one, two = (np.load(tmp_path / x / "jacobian.npz") for x in ("one", "two"))
  assert one.files == two.files
  for name in one.files:
    # Other blocks of columns, so other sums of products.
    np.testing.assert_allclose(two[name], one[name], rtol=1e-5, err_msg=name)
  names = [
    sorted(path.name for path in (tmp_path / x).iterdir())
    for x in ("one", "two")
  ]
  assert names[0] == names[1]
  data = json.loads((tmp_path / "two" / "summary.json").read_text())
  assert data["complete"] is True and data["resumed_columns"] == 10


def test_a_dead_process_ends_the_other(tmp_path, glassllm_path):
  """Within a minute; the same command then goes on."""
  runs = together(tmp_path)
  while not list(tmp_path.glob("part-*-of-2")):
    assert all(launched.poll() is None for launched in runs)
  runs[1].kill()
  died = time.monotonic()
  _, err = runs[0].communicate(timeout=120)
  assert time.monotonic() - died < 60
  assert runs[0].returncode != 0
  # While it computes, JAX may end it before it can say so itself.
  said = [line for line in err.splitlines() if line.startswith("error: ")]
  kept = len(said) == 1 and "the columns that are complete are kept" in said[0]
  assert kept or "Terminating" in err, err
  assert not (tmp_path / "summary.json").exists()
  again = together(tmp_path)
  said = [launched.communicate(timeout=400) for launched in again]
  assert all(launched.returncode == 0 for launched in again), said
  assert json.loads((tmp_path / "summary.json").read_text())["complete"] is True
