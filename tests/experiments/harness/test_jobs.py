"""The bookkeeping of many runs, beside the training itself."""

import jax

from sinkjax import artifacts
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
