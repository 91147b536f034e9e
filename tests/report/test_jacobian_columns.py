"""Chosen columns of a map: their numbers, tables and figure."""

import dataclasses
import json

import numpy as np
import pytest

from sinkjax import artifacts
from sinkjax.analysis.sensitivity import Sensitivity, SensitivityMap
from sinkjax.analysis.sensitivity_config import SensitivityConfig
from sinkjax.report import figures as base
from sinkjax.report.sensitivity import columns as report
from sinkjax.report.sensitivity import figures
from sinkjax.report.sensitivity import page as whole

pytestmark = pytest.mark.filterwarnings("error")
SIZE = 12


def made(columns, edited=False):
  """A result that has nothing but some columns."""
  norms = np.tril(np.random.default_rng(0).uniform(0.1, 5, (SIZE, SIZE)))
  norms[:, [s for s in range(SIZE) if s not in columns]] = np.nan
  loss = np.linspace(1, 0, SIZE)
  one = SensitivityMap(
    norms, None, np.stack([2 * norms, norms]), [0, 1], 2.5, loss, 1e-7, 2
  )
  other = dataclasses.replace(one, norms=3 * norms) if edited else None
  return Sensitivity(
    list(range(SIZE)),
    SensitivityConfig(),
    one,
    other,
    "an edit" if edited else "none",
    list(columns),
  )


def tokens():
  return [f"t{i}" for i in range(SIZE)]


def test_shares_are_of_each_column_alone():
  norms = np.tril(np.random.default_rng(1).uniform(0.1, 5, (SIZE, SIZE)))
  got = report.to_others(norms[:, [2, 7]], [2, 7])
  for share, s in zip(got, (2, 7), strict=True):
    others = sum(norms[t, s] ** 2 for t in range(SIZE) if t != s)
    assert share == pytest.approx(others / sum(norms[:, s] ** 2))
  assert report.to_others(np.zeros((3, 1)), [1]).tolist() == [0.0]


def test_nothing_of_a_column_that_was_not_computed(tmp_path):
  """It is not a number, and stands in no file."""
  result = made([1, 7], edited=True)
  data = {**report.summary(result), "seconds": 1.0, "device": "a"}
  drawn = report.draw(result, tokens())
  page = report.render(
    result,
    {**data, "command": "c"},
    tokens(),
    drawn,
    subtitle="s",
    warnings=[],
    details={"model": "m"},
  )
  (tmp_path / "map.png").touch()  # of an earlier command, of the whole map
  report.write(tmp_path, result, data, tokens(), drawn, page)
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {
    *("columns.png", "columns.csv", "norms.csv", "jacobian.npz"),
    *("report.html", "summary.json"),
  }
  kept = np.load(tmp_path / "jacobian.npz")
  assert kept["columns"].tolist() == [1, 7]
  assert kept["layers"].shape == (2, SIZE, 2)
  for name in kept.files:
    assert np.isfinite(kept[name]).all(), name
  assert "nan" not in (tmp_path / "norms.csv").read_text().lower()
  rows = (tmp_path / "norms.csv").read_text().splitlines()
  assert len(rows) == 1 + (SIZE - 1) + (SIZE - 7)
  assert rows[0].endswith("norm,norm_edited")
  saved = json.loads((tmp_path / "summary.json").read_text())
  assert saved["complete"] is True and "total_mixing" not in saved
  assert "total mixing and effective reach need the whole map" in page
  # And what a whole map writes later takes the place of these.
  artifacts.write_json(tmp_path / "map.csv", {})
  whole.write_files(tmp_path, {}, {}, {}, {}, "")
  assert not (tmp_path / "columns.png").exists()


@pytest.mark.parametrize("columns", [[3], [0, 11], list(range(SIZE))])
def test_the_figure(columns, monkeypatch):
  """A line for each of a few sources, from its own token on; else the range."""
  found = []
  monkeypatch.setattr(figures, "png", lambda figure: found.append(figure))
  result = made(columns, edited=True)
  report.draw(result, tokens())
  left, right = found[0].axes[:2]
  if len(columns) <= figures.LINES:
    assert len(left.lines) == len(right.lines) == len(columns)
    for line, s in zip(left.lines, columns, strict=True):
      x, y = line.get_data()
      np.testing.assert_array_equal(x, np.arange(s, SIZE))
      np.testing.assert_allclose(y, result.plain.norms[s:, s])
  else:
    (line,) = left.lines
    own = np.diag(result.plain.norms)
    assert line.get_ydata()[0] == pytest.approx(np.median(own))
    assert len(line.get_ydata()) == SIZE
  assert base.png(found[0])[:4] == b"\x89PNG"


def test_columns_in_words():
  from launch.columns_flag import parse

  assert parse("5-7, 0,-1", 10) == [0, 5, 6, 7, 9]
  for text, words in (
    ("", "neither a position nor a range"),
    ("1;2", "neither a position nor a range"),
    ("7-5", "from the smaller to the larger"),
    ("3-10", "not within the 10 tokens"),
    ("-11", "not within the 10 tokens"),
    ("0-999999999", "not within the 10 tokens"),
    ("1,0-2", "names a token twice"),
  ):
    with pytest.raises(ValueError, match=words):
      parse(text, 10)
