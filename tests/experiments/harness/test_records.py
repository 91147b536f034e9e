"""Recorded files that lack something are told with their folder."""

import json
import pathlib
import shutil

import pytest

from launch import app
from sinkjax import artifacts
from sinkjax.experiments.harness import records

RESULTS = pathlib.Path(__file__).parents[3] / "docs" / "results"
WHOLE = sorted(RESULTS.glob("*/smoothing"))[0]

CHANGES = {
  "numbers that lack all": {"numbers": {}},
  "numbers of another kind": {"numbers": [1]},
  "no such experiment": {"name": "nope"},
  "a config of another kind": {"request": {"model": "a", "config": [1]}},
  "no config": {"request": {"model": "a"}},
  "seconds in words": {"seconds": "a minute"},
  "a list of devices": {"device": ["CPU"]},
  "stated claims of another kind": {"stated": [1]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_result_is_told_with_its_folder(tmp_path, change):
  out = shutil.copytree(WHOLE.parent, tmp_path / "out", symlinks=True)
  folder = out / "smoothing"
  about = json.loads((folder / "result.json").read_text())
  (folder / "result.json").write_text(json.dumps(about | CHANGES[change]))
  with pytest.raises(ValueError, match=f"^{folder}: its recorded files"):
    records.measured(folder).claims()


@pytest.mark.parametrize("text", ["[]", "3", '{"complete": true}', "{", ""])
def test_what_is_no_result_is_none(tmp_path, text):
  (tmp_path / "result.json").write_text(text)
  assert records.measured(tmp_path) is None


@pytest.mark.parametrize(
  "look",
  [
    lambda: {}["sinks"],
    lambda: [][3],
    lambda: f"{None:.2f}",
    lambda: None.get,
    lambda: 1 / 0,
  ],
)
def test_what_an_earlier_command_left(tmp_path, look):
  path = tmp_path / "summary.json"
  with (
    pytest.raises(ValueError, match=f"^{path} is damaged.*--overwrite"),
    app.reading(path),
  ):
    look()


def test_a_full_disk_is_no_damage_of_what_is_read(tmp_path):
  """One line on the disk, which does not say to measure again."""
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(ValueError, match="^cannot write"),
    app.reading(tmp_path / "metrics.jsonl"),
  ):
    artifacts.write_text(tmp_path / "file" / "report.html", "")
