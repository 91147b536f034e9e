"""The bookkeeping of many runs, beside the training itself."""

from sinkjax.experiments.jobs import Job, run_jobs, seconds_of
from sinkjax.report import files


def test_seconds_are_those_of_every_complete_run(tmp_path):
  """Also of runs that another process did, and of looks at what was trained,
  none of one that was cut off."""
  files.write_json(
    tmp_path / "runs" / "other.json", {"seconds": 40.0, "complete": True}
  )
  files.write_json(
    tmp_path / "looks" / "runs" / "a.json", {"seconds": 2.0, "complete": True}
  )
  files.write_json(tmp_path / "runs" / "cut.json", {"seconds": 5.0})
  job = Job("own", 1, {}, lambda folder, device, advance: {"loss": 1.0})
  (own,) = run_jobs([job], tmp_path)
  assert own["seconds"] > 0
  assert seconds_of(tmp_path) == 42.0 + own["seconds"]
