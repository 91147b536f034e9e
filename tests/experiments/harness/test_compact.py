"""The form of results that git keeps: smaller, and nothing that is read."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from sinkjax import artifacts
from sinkjax.experiments.harness import compact, jobs
from sinkjax.experiments.harness.api import Claim, Experiment, Result
from sinkjax.experiments.harness.effects import Count
from sinkjax.report import html

TABLE = (["layer", "loss"], [[0, 1.25], [1, None]])


def picture(width, height, colours):
  """A PNG of random pixels."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 255, (colours, 3), np.uint8)
  out = io.BytesIO()
  image = pixels[rng.integers(0, colours, (height, width))]
  Image.fromarray(image).save(out, "png")
  return out.getvalue()


FIGURES = {f"{name}.png": picture(40, 30, 900) for name in "abcd"}


def experiment(digits):
  """Its only claim tells the mean of an array, to a number of digits."""

  def claims(result):
    mean = float(result.arrays["x"].mean(dtype=np.float64))
    return [
      Claim(
        id="mean",
        claim="The mean is positive.",
        source="nowhere",
        paper="no number",
        ours=f"{mean:.{digits}f}",
        effect=Count("means are negative", 0, 1),
      )
    ]

  def sections(result, drawn):
    return [html.Section("s", figure=drawn[f"{name}.png"]) for name in "dbca"]

  return Experiment("A title", dict, None, claims, lambda r: FIGURES, sections)


def recorded(folder, size, tables=4):
  """A folder as an experiment leaves it; what its result.json holds."""
  rng = np.random.default_rng(1)
  about = {
    "name": "toy",
    "title": "An earlier title",
    "request": {"scale": "demo", "config": {}},
    "page": [{"title": "An earlier report", "table": [[0.5] * 9] * 99}],
    "numbers": {"loss": 1.25, "by_layer": [0.5, None]},
    "claims": [{"claim": "An earlier wording."}],
    "seconds": 3.0,
    "complete": True,
  }
  artifacts.write_json(folder / "result.json", about)
  names = [f"t{i}.csv" for i in range(tables)]
  for name in names:
    artifacts.write_csv(folder / name, *TABLE)
  for name, png in FIGURES.items():
    artifacts.write_bytes(folder / name, png)
  for run in ("runs/softmax-0", "runs/softmax-1", "looks/runs/softmax-0"):
    outcome = {
      "request": {"seed": 0},
      "map": rng.random((16, 16)).round(7).tolist(),
      "alpha": [[0.1234567, None]],
      "seconds": 2.0,
      "made_on": "a card",
      "complete": True,
    }
    artifacts.write_json(folder / f"{run}.json", outcome)
  artifacts.write_bytes(folder / "runs" / "softmax-0" / "model" / "w", b"w")
  artifacts.write_bytes(folder / "runs" / "softmax-0.lock", b"")
  arrays = {"x": rng.random(size), "names": np.array(["a", "b"])}
  artifacts.write_npz(folder / "arrays.npz", arrays)
  return about


def result_of(folder, about):
  with np.load(io.BytesIO(artifacts.read_bytes(folder / "arrays.npz"))) as npz:
    arrays = dict(npz)
  paths = artifacts.files(folder, ".csv")
  tables = {path.name: artifacts.read_csv(path) for path in paths}
  return Result(about["numbers"], tables, arrays)


def compacted(folder, digits=3):
  about = json.loads((folder / "result.json").read_text())
  one = experiment(digits)
  compact.compact(folder, about, one, result_of(folder, about))
  return json.loads((folder / "result.json").read_text())


def contents(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file() and "model" not in path.parts
  }


@pytest.fixture
def small(tmp_path):
  """(folder, what it held before, its result.json now)."""
  folder = tmp_path / "toy"
  about = recorded(folder, 100)
  before = {
    "result": result_of(folder, about),
    "runs": jobs.complete(folder),
    "looks": jobs.complete(folder / "looks"),
    "files": contents(folder),
  }
  return folder, before, compacted(folder)


def test_everything_is_read_as_before(small):
  folder, before, about = small
  now = result_of(folder, about)
  assert now.tables == before["result"].tables and len(now.tables) == 4
  for name, array in before["result"].arrays.items():
    np.testing.assert_array_equal(now.arrays[name], array)
  assert jobs.complete(folder) == before["runs"] and len(before["runs"]) == 2
  assert jobs.complete(folder / "looks") == before["looks"]
  assert len(before["looks"]) == 1
  assert jobs.seconds_of(folder) == 6.0 and jobs.makers(folder) == ["a card"]
  old = json.loads(before["files"]["result.json"])
  for name in ("numbers", "request", "seconds", "name"):
    assert about[name] == old[name]


def test_what_is_left(small):
  """The two figures shown first, few colours, present words, no loose run."""
  folder, _, about = small
  assert set(contents(folder)) == {
    "result.json",
    "recorded.tar.xz",
    "d.png",
    "b.png",
  }
  for name in ("d.png", "b.png"):
    assert len(Image.open(folder / name).getcolors()) <= 256
  assert about["title"] == "A title" and "page" not in about
  assert [one["id"] for one in about["claims"]] == ["mean"]
  assert list(about)[-1] == "complete"
  assert (folder / "runs" / "softmax-0" / "model" / "w").exists()
  assert not (folder / "looks").exists()


def test_twice_is_the_same(small):
  folder, _, _ = small
  before = contents(folder)
  compacted(folder)
  assert contents(folder) == before


def test_unpacking_gives_the_files_back(small):
  folder, before, _ = small
  artifacts.write_csv(folder / "t0.csv", ["newer"], [])
  artifacts.unpack(folder)
  now = contents(folder)
  assert now.pop("t0.csv") == b"newer\n" and "recorded.tar.xz" not in now
  for name in ("t1.csv", "t2.csv", "t3.csv"):
    assert now[name] == before["files"][name]
  assert jobs.complete(folder) == before["runs"]


def test_a_sweep_goes_on_without_training(small):
  folder, before, _ = small
  done = []

  def job(name):
    def work(folder, device, advance):
      done.append(name)
      return {}

    return jobs.Job(name, 1, {"seed": 0}, work)

  names = ["softmax-0", "softmax-1", "relu-0"]
  found = jobs.run_jobs([job(name) for name in names], folder)
  assert done == ["relu-0"]
  assert found[:2] == [before["runs"][name] for name in names[:2]]
  assert set(jobs.complete(folder)) == set(names)
  compacted(folder)
  assert set(jobs.complete(folder)) == set(names)


def test_few_tables_stay_readable(tmp_path):
  recorded(tmp_path, 100, tables=2)
  compacted(tmp_path)
  assert {"t0.csv", "t1.csv"} <= set(contents(tmp_path))


def test_digits_go_where_room_is_short_but_not_those_of_claims(tmp_path):
  recorded(tmp_path, 100_000)
  before = result_of(tmp_path, {"numbers": {}}).arrays["x"]
  said = compacted(tmp_path, digits=3)["claims"][0]["ours"]
  assert said == f"{before.mean():.3f}"
  assert sum(map(len, contents(tmp_path).values())) <= compact.BYTES
  now = result_of(tmp_path, {"numbers": {}}).arrays["x"]
  assert now.dtype == np.float32
  np.testing.assert_allclose(now, before, rtol=2.0**-8)
  (run, *_) = jobs.complete(tmp_path).values()
  assert run["alpha"] == [[0.1234567, None]]  # too small to be shortened
  assert all(float(f"{x:.5g}") == x for row in run["map"] for x in row)


def test_a_claim_that_needs_its_digits_is_not_compacted(tmp_path):
  recorded(tmp_path, 100_000)
  before = contents(tmp_path)
  with pytest.raises(ValueError, match="does not fit into 300,000 bytes"):
    compacted(tmp_path, digits=12)
  now = contents(tmp_path)
  del before["result.json"], now["result.json"]
  assert now == before


def test_a_figure_is_made_small_enough():
  noise = compact.small_figure(picture(420, 320, 5000))
  assert len(noise) <= compact.FIGURE_BYTES
  plain = compact.small_figure(picture(60, 50, 7))
  assert Image.open(io.BytesIO(plain)).size == (60, 50)
  exact = np.asarray(Image.open(io.BytesIO(picture(60, 50, 7))).convert("RGB"))
  now = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
  np.testing.assert_array_equal(now, exact)


def test_a_thin_line_keeps_its_colour():
  """Among many more frequent shades, where the median cut makes it grey."""
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 256, (300, 300, 1), np.uint8).repeat(3, axis=2)
  pixels = grey - rng.integers(0, 2, grey.shape, np.uint8) * (grey > 0)
  pixels[150, :9] = (200, 80, 30)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "png")
  small = Image.open(io.BytesIO(compact.small_figure(out.getvalue())))
  now = np.asarray(small.convert("RGB"))[150, :9].astype(int)
  assert np.abs(now - (200, 80, 30)).max() < 24


def test_numbers_beyond_float32_stay():
  x = np.array([1e-60, 1e60, np.nan, 1.0 + 2.0**-20])
  found = compact._rounded(x, 12)
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, x, rtol=2.0**-12)
