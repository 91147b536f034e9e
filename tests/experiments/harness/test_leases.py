"""Leases: held by one process, renewed, and taken over from the dead."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from sinkjax.experiments.harness import leases
from sinkjax.experiments.harness.leases import EXPIRES, TakenOverError, Watch


@pytest.fixture
def clock(monkeypatch):
  """The watcher's own clock, which stands still until it is moved."""

  class Clock:
    now = 1000.0

    def monotonic(self):
      return self.now

  found = Clock()
  monkeypatch.setattr(leases, "time", found)
  return found


def far(path, beat, **more):
  """Another host's lease."""
  path.write_text(
    json.dumps({"host": "far", "process": 7, "token": "x", "beat": beat} | more)
  )


def test_one_process_holds(tmp_path, capsys):
  """Two watchers of one folder are as two processes are."""
  base = tmp_path / "a"
  with Watch().hold(base) as mine:
    assert mine is not None
    with Watch().hold(base) as other:
      assert other is None
    with Watch().hold(tmp_path / "b") as another:
      assert another is not None
    own = f"process {os.getpid()} of host {socket.gethostname()}"
    watch = Watch()
    for _ in range(2):  # told once
      watch.tell(base)
  assert capsys.readouterr().err == f"waiting for {own}, which works on a\n"
  assert not list(tmp_path.iterdir())
  Watch().tell(base)
  assert capsys.readouterr().err == ""


def test_a_lease_expires_by_the_clock_of_who_waits(tmp_path, clock):
  """Only when it has not been renewed for the whole time."""
  base, watch = tmp_path / "a", Watch()
  path = tmp_path / "a.lease-000003"
  for beat in range(3):
    far(path, beat)
    with watch.hold(base) as lease:
      assert lease is None
    clock.now += EXPIRES - 1
    with watch.hold(base) as lease:
      assert lease is None
    # Whoever has just come knows nothing of how long it has been so.
    with Watch().hold(base) as lease:
      assert lease is None
  clock.now += 2
  with watch.hold(base) as lease:
    assert lease is not None
    names = {one.name for one in tmp_path.iterdir()}
    assert names == {"a.lease-000003", "a.lease-000004"}
  assert not list(tmp_path.iterdir())


def test_two_that_see_it_expire(tmp_path, clock):
  """One of them has it."""
  base, first, second = tmp_path / "a", Watch(), Watch()
  far(tmp_path / "a.lease-000001", 0)
  for watch in (first, second):
    with watch.hold(base) as lease:
      assert lease is None
  clock.now += EXPIRES + 1
  with first.hold(base) as mine, second.hold(base) as other:
    assert mine is not None and other is None


def test_a_file_without_content_expires_too(tmp_path, clock):
  """Of a process killed between making the file and writing it."""
  base, watch = tmp_path / "a", Watch()
  (tmp_path / "a.lease-000001").touch()
  with watch.hold(base) as lease:
    assert lease is None
  clock.now += EXPIRES + 1
  with watch.hold(base) as lease:
    assert lease is not None


def test_the_lease_of_a_killed_process_of_this_host_is_free_at_once(tmp_path):
  code = (
    "import os, pathlib, signal, sys\n"
    "from sinkjax.experiments.harness.leases import Watch\n"
    "with Watch().hold(pathlib.Path(sys.argv[1])) as lease:\n"
    "  os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  base = tmp_path / "a"
  subprocess.run([sys.executable, "-c", code, str(base)], check=False)
  assert [one.name for one in tmp_path.iterdir()] == ["a.lease-000001"]
  with Watch().hold(base) as lease:
    assert lease is not None


@pytest.mark.skipif(
  not os.path.exists("/proc/self/stat"), reason="the kernel tells no times"
)
def test_a_process_number_in_use_again_is_another_process(tmp_path):
  base = tmp_path / "a"
  with Watch().hold(base):
    about = json.loads((tmp_path / "a.lease-000001").read_text())
  (tmp_path / "a.lease-000001").write_text(json.dumps(about))
  with Watch().hold(base) as lease:
    assert lease is None  # this very process
  about["began"] = "1"
  (tmp_path / "a.lease-000001").write_text(json.dumps(about))
  with Watch().hold(base) as lease:
    assert lease is not None


def test_who_was_taken_over_notices_and_leaves_the_others_lease(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(leases, "BEAT", 0.01)
  base = tmp_path / "a"
  with Watch().hold(base) as lease:
    own = tmp_path / "a.lease-000001"
    wait_for(lambda: json.loads(own.read_text())["beat"] > 1)
    lease.require()
    far(tmp_path / "a.lease-000002", 0)
    wait_for(lambda: lease.lost)
    with pytest.raises(TakenOverError):
      lease.require()
  assert [one.name for one in tmp_path.iterdir()] == ["a.lease-000002"]


def test_a_folder_that_cannot_be_written(tmp_path):
  """One line, and no lease that keeps others waiting."""
  with (
    pytest.raises(ValueError, match="cannot write"),
    Watch().hold(tmp_path / ("a" * 250)),
  ):
    pass
  assert not list(tmp_path.iterdir())


def test_pieces_are_shared(tmp_path, monkeypatch):
  """What another process works on is left to it, and done if it dies."""
  done = []
  far(tmp_path / "b.lease-000001", 0)
  far(tmp_path / "c.lease-000001", 0)

  def sleep(seconds):
    if "b" not in done:
      done.append("b")  # by the other process, which lets it go
      (tmp_path / "b.lease-000001").unlink()
    monkeypatch.setattr(leases, "EXPIRES", -1.0)  # and dies over the next

  monkeypatch.setattr(leases.time, "sleep", sleep)
  leases.share(tmp_path, "abcd", lambda name: name not in done, done.append)
  assert done == ["a", "d", "b", "c"]
  assert not list(tmp_path.iterdir())


def wait_for(condition):
  """Up to a minute: a loaded machine may start a thread late."""
  until = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.005)
