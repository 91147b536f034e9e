"""Folders that a command writes to are as before after a failure."""

import pathlib
import subprocess
import sys

import pytest

from sinkjax import outputs


def listing(folder):
  return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", [".", "old", "new", "new/deep/er"])
def test_a_failure_leaves_what_was_there(tmp_path, place, error):
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "kept").write_text("1")
  before, out = listing(tmp_path), tmp_path / place
  with pytest.raises(error), outputs.alone(out):
    (out / "sub" / "deep").mkdir(parents=True)
    (out / "file").write_text("2")
    (out / "link").symlink_to(tmp_path / "old")
    raise error
  assert listing(tmp_path) == before
  assert (tmp_path / "old" / "kept").read_text() == "1"
  with outputs.alone(out):
    (out / "file").write_text("2")
  assert (out / "file").read_text() == "2"


def test_what_the_next_start_goes_on_from_stays(tmp_path):
  out = tmp_path / "a" / "b"
  with (
    pytest.raises(KeyError),
    outputs.alone(out, keeps=lambda p: p.name == "half"),
  ):
    (out / "half").write_text("1")
    (out / "rest").write_text("2")
    raise KeyError
  assert listing(out) == ["half"]


def test_one_at_a_time(tmp_path):
  with outputs.alone(tmp_path):
    with (
      pytest.raises(ValueError, match="another process is writing to"),
      outputs.alone(tmp_path),
    ):
      pass
    assert listing(tmp_path) == [outputs.LOCK]
  assert listing(tmp_path) == []


WORK = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])  # without JAX, which takes seconds
import outputs
path, done = map(pathlib.Path, sys.argv[2:4])
with outputs.workspace(path, wait=True):
  assert os.listdir(path) == [outputs.LOCK]
  (path / "part").write_text("x")
  if len(sys.argv) > 4:
    os.kill(os.getpid(), signal.SIGKILL)
(done / str(os.getpid())).touch()
"""


def test_a_workspace_is_cleared_of_what_a_killed_process_left(tmp_path):
  path, done = tmp_path / "deep" / ".work", tmp_path / "done"
  done.mkdir()
  ours = pathlib.Path(outputs.__file__).parent
  command = [sys.executable, "-c", WORK, *map(str, (ours, path, done))]
  assert subprocess.run([*command, "kill"], check=False).returncode == -9
  assert (path / "part").exists()
  many = [subprocess.Popen(command) for _ in range(3)]
  assert [one.wait(60) for one in many] == [0] * 3
  assert len(listing(done)) == 3 and not path.exists()


def test_a_place_where_nothing_can_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  for make in (outputs.folder, outputs.alone, outputs.workspace):
    with (
      pytest.raises(ValueError, match="cannot make the folder"),
      make(tmp_path / "file" / "a" / "b"),
    ):
      pass


def test_files_that_a_killed_command_left_unfinished_go(tmp_path):
  """Those of `artifacts`, and nothing that a user may have there."""
  gone = tmp_path / ".0123456789abcdef.tmp"
  kept = [tmp_path / x for x in (".tmp", "a.tmp", ".0123.tmp", ".profile")]
  for path in (gone, *kept):
    path.write_text("x")
  with outputs.alone(tmp_path):
    assert not gone.exists() and all(path.exists() for path in kept)
  assert all(path.exists() for path in kept)
