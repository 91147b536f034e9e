"""The sensitivity report: what figures show, and that tables hold it all."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from quick import quick

from sinkjax.analysis.over_squashing import FORMS, OverSquashing
from sinkjax.analysis.sensitivity import Sensitivity, SensitivityMap
from sinkjax.analysis.sensitivity_config import SensitivityConfig
from sinkjax.report import figures as base
from sinkjax.report.sensitivity import bounds as over_squashing
from sinkjax.report.sensitivity import figures
from sinkjax.report.sensitivity import page as report

pytestmark = pytest.mark.filterwarnings("error")
TOKENS = ["The", " cat", "$x_1", "\n"]


def one_map(size, scale=1.0, layers=None, stderr=False, check=1e-7):
  rng = np.random.default_rng(0)
  norms = scale * np.tril(rng.uniform(0.1, 5, (size, size)))
  kept = None
  if layers is not None:
    kept = np.stack([norms * (i + 1) for i in range(len(layers))])
    norms = kept[-1]
  loss = np.append(rng.uniform(0.1, 1, size - 1), 0)
  return SensitivityMap(
    norms,
    norms * 0.1 if stderr else None,
    kept,
    layers or [0],
    2.5,
    loss,
    check,
    size,
  )


@pytest.fixture
def drawn(monkeypatch):
  """Figures drawn in the test, as matplotlib objects."""
  found = []

  def png(figure):
    found.append(figure)
    return base.png(figure)

  monkeypatch.setattr(figures, "png", png)
  return found


def test_norm_maps_leave_the_future_blank_and_zeros_grey(drawn):
  norms = np.tril(np.arange(1.0, 17).reshape(4, 4))
  hidden = norms.copy()
  hidden[1:, 0] = 0
  figures.norm_maps({"a": norms, "$b": hidden}, TOKENS, "norm")
  left, right, bar = drawn[0].axes
  seen = np.tri(4, dtype=bool)
  mask = np.ma.getmaskarray(left.images[0].get_array())
  np.testing.assert_array_equal(mask, ~seen)
  assert len(left.images) == 1
  colored, grey = right.images
  np.testing.assert_array_equal(
    np.ma.getmaskarray(colored.get_array()), ~seen | (hidden == 0)
  )
  drawn_grey = np.ma.masked_invalid(grey.get_array())
  np.testing.assert_array_equal(
    ~np.ma.getmaskarray(drawn_grey), seen & (hidden == 0)
  )
  assert left.images[0].get_clim() == colored.get_clim() == (1, 16)
  names = [label.get_text() for label in left.get_xticklabels()]
  assert names == ["The", "cat", "$x_1", "↵"]


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 1e30, np.nan])
@pytest.mark.parametrize("size", quick([2, 40], 2, others="thorough"))
def test_figures_of_constants(value, size):
  norms = np.full((size, size), value)
  tokens = ["x"] * size
  vector = np.full(size, value)
  series = {"a": vector, "b": vector * 2}
  for png in (
    figures.norm_maps({"a": norms, "b": norms}, tokens, "norm"),
    figures.ratio_map(norms, tokens, "ratio"),
    figures.by_distance(series, series, {"a": vector * 0.1, "b": None}),
    figures.loss_by_token(series, tokens),
    figures.mixing_by_layer({"a": np.clip(vector, 0, 1)}, list(range(size))),
  ):
    assert png[:4] == b"\x89PNG"


def test_ratio_is_symmetric_around_one(drawn):
  ratio = np.where(np.tri(4, dtype=bool), 0.5, np.nan)
  ratio[3, 0] = 4
  figures.ratio_map(ratio, TOKENS, "ratio")
  low, high = drawn[0].axes[0].images[0].get_clim()
  assert (low, high) == (pytest.approx(0.25), pytest.approx(4))


def test_distance_shows_series_and_errors(drawn):
  last = np.array([4.0, 2, 0, 1])
  figures.by_distance({"a": last}, {"a": last}, {"a": last * 0.1})
  left = drawn[0].axes[0]
  y = np.ma.filled(left.lines[0].get_ydata(), np.nan)
  np.testing.assert_array_equal(y, [4, 2, np.nan, 1])
  assert len(left.collections) == 1
  assert left.get_yscale() == "log"


def test_log_ticks():
  assert figures.log_ticks(1, 1000) == [1, 10, 100, 1000]
  assert figures.log_ticks(3, 30) == [5, 10, 20]
  assert len(figures.log_ticks(1e-30, 1e30)) <= 7


@pytest.fixture
def result():
  config = SensitivityConfig(per_layer=True)
  layers = [0, 1, 2]
  return Sensitivity(
    [5, 6, 7, 8],
    config,
    one_map(4, layers=layers),
    one_map(4, 2.0, layers=layers),
    "knockout:0@2",
  )


EXTRA = {
  "command": "python -m launch.jacobian",
  "seconds": 1.5,
  "device": "CPU",
  "commit": "abc",
}


def page_of(result, tokens, drawn):
  data = {**report.summary(result), **EXTRA}
  page = report.render(
    result,
    data,
    tokens,
    drawn,
    subtitle="s",
    warnings=[],
    details={"model": "tiny"},
  )
  return data, page


def test_write(tmp_path, result):
  (tmp_path / "layers.csv").write_text("old")
  steps = []
  drawn = report.draw(result, TOKENS, step=lambda: steps.append(1))
  assert len(steps) == len(drawn) == 5
  data, page = page_of(result, TOKENS, drawn)
  report.write(tmp_path, result, data, TOKENS, drawn, page)
  saved = json.loads((tmp_path / "summary.json").read_text())
  assert list(saved)[-1] == "complete"
  assert saved["edited"]["total_mixing"] == pytest.approx(saved["total_mixing"])
  with np.load(tmp_path / "jacobian.npz") as found:
    np.testing.assert_array_equal(found["norms"], result.plain.norms)
    np.testing.assert_array_equal(found["layers_edited"], result.edited.layers)
  with open(tmp_path / "norms.csv", newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert len(rows) == 10
  assert rows[1]["source_token"] == "The"
  assert float(rows[1]["ratio"]) == pytest.approx(2)
  assert float(rows[1]["norm"]) == pytest.approx(result.plain.norms[1, 0])
  lines = (tmp_path / "layers.csv").read_text().splitlines()
  assert lines[0] == "layer,total_mixing,total_mixing_edited"
  assert len(lines) == 4
  for word in ("abc", "knockout:0@2", "all columns", "1.0e-07", "Mixing by"):
    assert word in page


def test_files_of_another_command_go(tmp_path):
  for name in report.FILES:
    (tmp_path / name).write_text("old")
  plain = Sensitivity([1, 2, 3, 4], SensitivityConfig(), one_map(4))
  drawn = report.draw(plain, TOKENS)
  data, page = page_of(plain, TOKENS, drawn)
  report.write(tmp_path, plain, data, TOKENS, drawn, page)
  left = {path.name for path in tmp_path.iterdir()} & set(report.FILES)
  tables = {"norms.csv", "distance.csv", "tokens.csv"}
  assert left == tables | {"map.png", "distance.png", "loss.png"}


def test_estimates_and_earlier_runs_are_said():
  config = SensitivityConfig(method="hutchinson", samples=8)
  estimated = Sensitivity(
    [1, 2, 3, 4], config, one_map(4, stderr=True, check=None)
  )
  _, page = page_of(estimated, TOKENS, report.draw(estimated, TOKENS))
  assert "largest standard error" in page and "10.0 %" in page
  norms = one_map(4)
  half = dataclasses.replace(norms, checked=1)
  resumed = Sensitivity([1, 2, 3, 4], SensitivityConfig(), half)
  _, page = page_of(resumed, TOKENS, report.draw(resumed, TOKENS))
  assert "1 columns of 4; the others passed in an earlier run" in page


def test_bounds_are_drawn_beside_the_truth(drawn, monkeypatch):
  monkeypatch.setattr(over_squashing, "png", figures.png)
  one, seen = one_map(4), np.tri(4, dtype=bool)
  with np.errstate(divide="ignore"):
    logs = {
      name: np.log(one.norms) + np.log(10) * (i + 1)
      for i, name in enumerate(FORMS)
    }
  logs["naive"][3, 1] = np.log(one.norms[3, 1]) - 1
  ones = np.ones(2)
  found = OverSquashing(
    logs, one.norms, one.norms, {"paper": 3.0, "naive": 1.0}, ones, ones
  )
  numbers = over_squashing.summary(found)["forms"]
  assert numbers["paper"]["decades_median"] == pytest.approx(1)
  assert numbers["naive"]["violations"] == 1
  assert numbers["full"]["violations"] == 0
  over_squashing.draw({"$a": found}, TOKENS)
  lines = {
    line.get_label(): line.get_ydata() for line in drawn[0].axes[0].lines
  }
  np.testing.assert_allclose(lines["exact"], np.log10(one.norms[3]))
  gap = lines["bound: full"] - lines["exact"]
  np.testing.assert_allclose(gap, found.decades("full")[3])
  header, rows = over_squashing.table({"a": found}, TOKENS)
  assert len(rows) == seen.sum()
  row = dict(zip(header, rows[1], strict=True))
  assert row["decades_frozen"] == pytest.approx(
    row["log10_bound_frozen"] - row["log10_norm_pattern_held"]
  )


def test_a_long_text_shows_its_largest_pairs(monkeypatch):
  monkeypatch.setattr(report, "ROWS", 5)
  result = Sensitivity([1, 2, 3, 4], SensitivityConfig(), one_map(4))
  _, page = page_of(result, TOKENS, report.draw(result, TOKENS))
  assert "the 5 largest" in page
