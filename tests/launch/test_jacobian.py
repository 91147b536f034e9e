"""The Jacobian launcher: many commands in one process, each as a person's."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from jacobian_errors import ERRORS

import sinkjax
from launch import points, resume
from sinkjax.analysis.sensitivity import Columns
from sinkjax.transforms.jacobian import jacobian_norms

pytestmark = pytest.mark.thorough

ROOT = pathlib.Path(__file__).parents[2]
MODEL = "--model=glassllm-en"

# Runs commands one after the other; after `stop` completed columns comes a
# Ctrl-C. Prints [exit status, stdout, stderr] of each as JSON.
DRIVER = """
import contextlib, io, json, os, sys
from absl import flags
from launch import app, jacobian

os._exit = sys.exit  # a Ctrl-C ends one command, not this driver
from sinkjax.analysis import sensitivity

add = sensitivity.Columns.add

def run(words, stop):
  def stopping(self, columns, values):
    add(self, columns, values)
    if stop and self.known.sum() >= stop:
      raise KeyboardInterrupt

  sensitivity.Columns.add = stopping
  flags.FLAGS.unparse_flags()
  for name in list(flags.FLAGS):
    flags.FLAGS[name].unparse()
  sys.argv = ["jacobian", *words]
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      app.run(jacobian.main, jacobian.__doc__)
      status = 0
    except SystemExit as end:
      status = end.code
  return status, out.getvalue(), err.getvalue()

print(json.dumps([run(*command) for command in json.load(sys.stdin)]))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory, glassllm_path):
  """(folder, {name: (status, stdout, stderr)}) of every command below."""
  out = tmp_path_factory.mktemp("jacobian")
  sinkjax_hf = out / "hf"
  from sinkjax.weights import huggingface

  huggingface.save(sinkjax_hf, *sinkjax.load("glassllm-en"))
  full = [
    MODEL,
    f"--out={out}/full",
    "--max_tokens=3",
    "--layers",
    "--edit=knockout key=0 from=2",
  ]
  stopped = [
    MODEL,
    f"--out={out}/stopped",
    "--max_tokens=3",
    "--method=reference",
    "--edit=knockout:0@2",  # as it was written earlier
  ]
  bounds = [
    MODEL,
    f"--out={out}/bounds",
    "--max_tokens=3",
    "--norm=spectral",
    "--bounds",
  ]
  parted = [*bounds[:1], f"--out={out}/parted", *bounds[2:]]
  parted += ["--edit=knockout key=0 from=2"]
  chosen = [*full[:1], f"--out={out}/chosen", *full[2:], "--columns=0,-1"]
  commands = {
    "part 1": ([*parted, "--part=1/2"], 0),
    "part 2 stopped": ([*parted, "--part=2/2"], 1),
    "part of another": ([*parted, "--part=2/2", "--max_tokens=4"], 0),
    "joined": (parted, 0),
    "part too late": ([*parted, "--part=2/2"], 0),
    "columns, part 1": ([*chosen, "--part=1/2"], 0),
    "columns": (chosen, 0),
    "bounds stopped": (bounds, 3),
    "bounds": (bounds, 0),
    "full": (full, 0),
    "again": (full, 0),
    "other": ([*full, "--norm=max"], 0),
    "stopped": (stopped, 2),
    "stopped, other": ([*stopped, "--norm=max"], 0),
    "resumed": (stopped, 0),
    "estimated": (
      [
        MODEL,
        f"--out={out}/estimated",
        "--max_tokens=3",
        "--method=hutchinson",
        "--samples=16",
        "--prefix=<bos>",
      ],
      0,
    ),
    "offloaded": (
      [
        f"--model={sinkjax_hf}",
        f"--out={out}/offloaded",
        "--max_tokens=3",
        "--offload",
      ],
      0,
    ),
    "dry": ([MODEL, "--dry_run", "--max_tokens=3"], 0),
    **{message: ([MODEL, *words], 0) for words, message in ERRORS},
  }
  ran = subprocess.run(
    [sys.executable, "-c", DRIVER],
    input=json.dumps(list(commands.values())),
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ,
    check=False,
    timeout=300,
  )
  assert ran.returncode == 0, ran.stderr
  return out, dict(zip(commands, json.loads(ran.stdout), strict=True))


def load(folder):
  with np.load(folder / "jacobian.npz") as found:
    return dict(found), json.loads((folder / "summary.json").read_text())


def test_contract(done):
  out, results = done
  status, stdout, stderr = results["full"]
  assert status == 0, stderr
  assert "GB beside the weights" in stdout
  assert "total mixing" in stdout and "knockout key=0 from=2" in stdout
  arrays, data = load(out / "full")
  assert arrays["norms"].shape == arrays["norms_edited"].shape == (3, 3)
  assert arrays["layers"].shape == arrays["layers_edited"].shape == (4, 3, 3)
  assert arrays["ids"].tolist() == data["token_ids"]
  assert data["complete"] is True
  assert list(data)[-1] == "complete"
  for one in (data, data["edited"]):
    assert 0 <= one["check"] < 1e-3
    assert one["checked_columns"] == 3
    assert len(one["total_mixing_by_layer"]) == 4
    assert len(one["loss_sensitivity"]) == 3
    assert 0 < one["total_mixing"] < 1
  files = {path.name for path in (out / "full").iterdir()}
  assert files == {
    "jacobian.npz",
    "summary.json",
    "norms.csv",
    "distance.csv",
    "tokens.csv",
    "layers.csv",
    "map.png",
    "ratio.png",
    "distance.png",
    "layers.png",
    "loss.png",
    "report.html",
  }
  page = (out / "full" / "report.html").read_text()
  assert data["edit"] == data["request"]["edit"] == "knockout key=0 from=2"
  assert "glassllm-en, edited: knockout key=0 from=2</title>" in page
  for word in ("total mixing", "effective reach", "self check"):
    assert word in page


@pytest.mark.slow
def test_numbers_are_the_library_s(done):
  arrays, data = load(done[0] / "full")
  params, cfg, _ = sinkjax.load("glassllm-en")
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=2)})
  ids = jnp.array(data["token_ids"])
  for fn, name in ((f, "norms"), (g, "norms_edited")):
    want = jacobian_norms(fn, params, ids, method="reference")
    np.testing.assert_allclose(arrays[name], want, rtol=1e-4)


def test_again_says_done_and_another_is_refused(done):
  status, stdout, _ = done[1]["again"]
  assert status == 0
  assert "Already done" in stdout and "total mixing" in stdout
  status, _, stderr = done[1]["other"]
  assert status == 1
  assert "another command" in stderr


def test_stopped_goes_on(done):
  out, results = done
  status, _, stderr = results["stopped"]
  assert status == 130
  assert "kept 2 of 6 columns" in stderr
  assert "Traceback" not in stderr
  status, _, stderr = results["stopped, other"]
  assert status == 1
  assert "partial.npz is damaged, or another command" in stderr
  status, stdout, stderr = results["resumed"]
  assert status == 0, stderr
  assert "Continuing: 2 of 6 columns" in stdout
  assert not (out / "stopped" / resume.NAME).exists()
  arrays, data = load(out / "stopped")
  want, _ = load(out / "full")
  assert data["resumed_columns"] == 2
  for name in ("norms", "norms_edited"):
    np.testing.assert_allclose(arrays[name], want[name], rtol=1e-4)


def test_estimates_have_errors(done):
  out, results = done
  assert results["estimated"][0] == 0, results["estimated"][2]
  assert "largest error" in results["estimated"][1]
  arrays, data = load(out / "estimated")
  assert arrays["stderr"].shape == (3, 3)
  assert data["first_token"]["is_bos"] is True
  assert data["check"] is None and data["samples"] == 16
  header = (out / "estimated" / "norms.csv").read_text().splitlines()[0]
  assert header == "target,source,target_token,source_token,norm,stderr"


def test_offloaded_is_the_same(done):
  out, results = done
  assert results["offloaded"][0] == 0, results["offloaded"][2]
  arrays, _ = load(out / "offloaded")
  want, _ = load(out / "full")
  for name in ("norms", "loss"):
    np.testing.assert_allclose(arrays[name], want[name], rtol=1e-5)


def test_bounds_stand_beside_the_truth(done):
  """The first run stops with one map whole and the other not begun."""
  out, results = done
  assert "kept 3 of 6 columns" in results["bounds stopped"][2]
  status, stdout, stderr = results["bounds"]
  assert status == 0, stderr
  assert "Continuing: 3 of 6 columns" in stdout
  assert "bound: full" in stdout and "decades above" in stdout
  arrays, data = load(out / "bounds")
  assert (
    arrays["norms_frozen"].shape == arrays["log_bound_full"].shape == (3, 3)
  )
  seen = np.tri(3, dtype=bool)
  for name, one in data["bounds"]["forms"].items():
    truth = arrays["norms_frozen" if name != "full" else "norms"]
    gap = arrays[f"log_bound_{name}"][seen] - np.log(truth[seen])
    assert one["decades_least"] == pytest.approx(gap.min() / np.log(10))
    assert one["violations"] == 0 or name == "naive"
  assert np.abs(arrays["norms_frozen"] - arrays["norms"]).max() > 1e-3
  assert (out / "bounds" / "bounds.png").stat().st_size > 10_000
  table = (out / "bounds" / "bounds.csv").read_text().splitlines()
  assert len(table) == 1 + 6
  assert "Over-squashing bounds" in (out / "bounds" / "report.html").read_text()


def test_parts_are_joined(done):
  """Part 2 has column 1 of three, of the plain map alone when it is stopped."""
  out, results = done
  status, stdout, stderr = results["part 1"]
  assert status == 0, stderr
  # Two maps, each with its bounds, of columns 0 and 2.
  assert "Part 1 of 2 has its 8 columns" in stdout
  assert results["part 2 stopped"][0] == 130
  assert "kept 1 of 4 columns" in results["part 2 stopped"][2]
  status, _, stderr = results["part of another"]
  assert status == 1 and "another command" in stderr
  status, stdout, stderr = results["joined"]
  assert status == 0, stderr
  assert "Continuing: 9 of 12 columns" in stdout
  assert not list((out / "parted").glob("part*"))
  arrays, data = load(out / "parted")
  assert data["resumed_columns"] == 9
  want, _ = load(out / "bounds")
  for name in ("norms", "norms_frozen"):
    np.testing.assert_allclose(arrays[name], want[name], rtol=1e-4)
  # The result is there: a part has nothing left to do.
  status, stdout, _ = results["part too late"]
  assert status == 0 and "Already done" in stdout


def test_chosen_columns_are_those_of_the_whole_map(done):
  """A part has every n-th of those that are chosen."""
  out, results = done
  status, stdout, stderr = results["columns, part 1"]
  assert status == 0, stderr
  assert "Part 1 of 2 has its 2 columns" in stdout
  status, stdout, stderr = results["columns"]
  assert status == 0, stderr
  assert "Continuing: 2 of 4 columns" in stdout and "at other tokens" in stdout
  arrays, data = load(out / "chosen")
  want, _ = load(out / "full")
  assert arrays["columns"].tolist() == data["columns"] == [0, 2]
  for name in ("norms", "norms_edited", "layers", "layers_edited"):
    np.testing.assert_allclose(arrays[name], want[name][..., [0, 2]], rtol=1e-4)


def test_dry_run_writes_nothing(done):
  status, stdout, stderr = done[1]["dry"]
  assert status == 0, stderr
  for word in ("parameters", "memory", "time", "position 0", "3 x 3 tokens"):
    assert word in stdout


@pytest.mark.parametrize("message", [message for _, message in ERRORS])
def test_errors_are_one_line(done, message):
  status, _, stderr = done[1][message]
  assert status == 1
  errors = [x for x in stderr.splitlines() if x.startswith("error: ")]
  assert len(errors) == 1, stderr
  assert message in errors[0]
  assert "Traceback" not in stderr
  assert not (ROOT / "never").exists()


def test_help_teaches():
  done = subprocess.run(
    [sys.executable, "-m", "launch.jacobian", "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0
  for word in (
    "python -m launch.jacobian",
    "--from",
    "--edit='knockout key=0 from=2'",
    "graded key=0 by=2",
    "--[no]dry_run",
  ):
    assert word in " ".join(done.stdout.split())


def test_points():
  assert points.parse_point("to", "final") == "final"
  assert points.parse_point("from", "resid_mid@-1") == ("resid_mid", -1)


def test_partial_file(tmp_path):
  def open_it(mark, **options):
    maps = {"plain": Columns.none(3)}
    return resume.Partial(tmp_path, mark, maps, overwrite=False, **options)

  first = open_it(["a"])
  first.save()
  assert not (tmp_path / resume.NAME).exists()
  first.maps["plain"].add([1], np.array([[0], [2], [3]]))
  first.save(now=False)
  assert not (tmp_path / resume.NAME).exists()
  first.save()
  again = open_it(["a"])
  assert again.resumed == again.done() == 1 and again.total() == 3
  assert again.maps["plain"].values[:, 1].tolist() == [0, 2, 3]
  assert again.elapsed() > 0
  with pytest.raises(ValueError, match="another command"):
    open_it(["b"])
  (tmp_path / resume.NAME).write_bytes(b"PK\x03\x04 half")
  with pytest.raises(ValueError, match="damaged"):
    open_it(["a"])
  again.delete()
  assert open_it(["a"]).resumed == 0
