"""The bookkeeping of many runs, beside the training itself."""

import json
import time

import jax
import pytest

from sinkjax import artifacts
from sinkjax.experiments.harness import leases
from sinkjax.experiments.harness.jobs import (
  Job,
  made_on,
  makers,
  run_jobs,
  seconds_of,
)


def test_seconds_are_those_of_every_complete_run(tmp_path):
  """Also of runs that another process did, and of looks at what was trained,
  none of one that was cut off."""
  artifacts.write_json(
    tmp_path / "runs" / "other.json", {"seconds": 40.0, "complete": True}
  )
  artifacts.write_json(
    tmp_path / "looks" / "runs" / "a.json", {"seconds": 2.0, "complete": True}
  )
  artifacts.write_json(tmp_path / "runs" / "cut.json", {"seconds": 5.0})
  job = Job("own", 1, {}, lambda folder, device, advance: {"loss": 1.0})
  (own,) = run_jobs([job], tmp_path)
  assert own["seconds"] > 0
  assert seconds_of(tmp_path) == 42.0 + own["seconds"]


def test_who_made_the_runs_is_kept(tmp_path):
  """Where another machine made a run, and which jax it had."""
  job = Job("own", 1, {}, lambda folder, device, advance: {})
  run_jobs([job], tmp_path)
  other = {"made_on": "a card, jax 9", "complete": True}
  artifacts.write_json(tmp_path / "runs" / "other.json", other)
  here = made_on(jax.devices()[0])
  assert makers(tmp_path) == sorted([here, "a card, jax 9"])
  assert jax.__version__ in here


def test_jobs_share_devices_and_leave_what_is_done(tmp_path):
  ran = []

  def job(name, fail=False):
    def work(folder, device, advance):
      if fail:
        raise ArithmeticError(name)
      ran.append(name)
      return {"found": name}

    return Job(name, 10, {"name": name}, work)

  devices = [jax.devices()[0]] * 3
  with pytest.raises(ArithmeticError):
    run_jobs([job("a"), job("b", fail=True)], tmp_path)
  all_jobs = [job(name) for name in "abcdef"]
  found = run_jobs(all_jobs, tmp_path, devices=devices)
  assert [one["found"] for one in found] == list("abcdef")
  assert sorted(ran) == list("abcdef")  # "a" only once
  with pytest.raises(ValueError, match="one name"):
    run_jobs([job("a"), job("a")], tmp_path)


def test_a_run_that_another_process_holds_is_waited_for(
  tmp_path, monkeypatch, capfd
):
  """Not run here, said once, and read when it is there."""
  (tmp_path / "runs").mkdir()
  lease = tmp_path / "runs" / "a.lease-000001"
  lease.write_text(json.dumps({"host": "far", "process": 7}))
  waits = []

  def finish(seconds):
    waits.append(seconds)
    if len(waits) == 2:
      path = tmp_path / "runs" / "a.json"
      path.write_text(json.dumps({"request": {}, "by": 2, "complete": True}))

  monkeypatch.setattr(leases.time, "sleep", finish)
  mine = Job("a", 1, {}, lambda *args: pytest.fail("run twice"))
  assert run_jobs([mine], tmp_path)[0]["by"] == 2
  said = "waiting for process 7 of host far, which works on a\n"
  assert capfd.readouterr().err == said


def test_a_run_taken_over_by_another_process_is_dropped(tmp_path, monkeypatch):
  """After a long sleep, say: its next step ends it, and the other's outcome
  counts."""
  path = tmp_path / "runs" / "a.json"

  def work(folder, device, advance):
    (lease,) = folder.parent.glob("a.lease-*")
    other = folder.parent / "a.lease-000002"
    other.write_text(lease.read_text().replace("000001", "000002"))
    path.write_text(json.dumps({"request": {}, "by": 2, "complete": True}))
    for steps in range(1000):
      time.sleep(0.01)
      advance(steps)
    pytest.fail("not dropped")

  monkeypatch.setattr(leases, "BEAT", 0.01)
  assert run_jobs([Job("a", 1000, {}, work)], tmp_path)[0]["by"] == 2


def test_a_run_that_fails_is_let_go(tmp_path):
  """The next process need not wait for a lease to expire."""

  def fail(folder, device, advance):
    raise ArithmeticError

  with pytest.raises(ArithmeticError):
    run_jobs([Job("a", 1, {}, fail)], tmp_path)
  assert not list((tmp_path / "runs").iterdir())
