"""Outputs are whole or absent, and hold nothing that JSON cannot."""

import csv
import dataclasses
import json
import os
import stat
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax import artifacts


class Point(NamedTuple):
  x: float
  y: float


@dataclasses.dataclass(frozen=True)
class Run:
  name: str
  rate: np.ndarray


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (float("nan"), None),
    (float("-inf"), None),
    (np.float32("inf"), None),
    (np.array([1.0, np.nan]), [1.0, None]),
    (np.float32(0.1), 0.1),
    (1 / 3, 0.3333333),
    (123456789.0, 123456800.0),
    (123456789, 123456789),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.array(2.5), 2.5),
    (np.array([[True], [False]]), [[True], [False]]),
    (jnp.array([0.5, 1.5], jnp.bfloat16), [0.5, 1.5]),
    (jnp.array(2.0, jnp.bfloat16), 2.0),
    (Point(1.0, float("nan")), {"x": 1.0, "y": None}),
    (Run("a", np.ones(1)), {"name": "a", "rate": [1.0]}),
    ({3: (1, 2)}, {"3": [1, 2]}),
    ("\ud800", "\ud800"),
  ],
)
def test_plain(value, expected):
  found = artifacts.plain(value)
  assert found == expected
  assert type(found) is type(expected)


@pytest.mark.parametrize(
  "value", [object(), np.array([1j]), {"a": {1, 2}}, b"raw", Run]
)
def test_plain_names_what_it_cannot_write(value):
  with pytest.raises(TypeError, match="cannot write"):
    artifacts.plain(value)


def test_json(tmp_path):
  path = tmp_path / "new" / "summary.json"
  value = {"nan": np.nan, "alpha": np.eye(2, dtype=np.float32), "é": "<\n>"}
  assert artifacts.write_json(path, value) == path
  text = path.read_text("utf-8")
  assert "NaN" not in text and text.endswith("}\n")
  assert json.loads(text) == {
    "nan": None,
    "alpha": [[1.0, 0.0], [0.0, 1.0]],
    "é": "<\n>",
  }


def test_json_has_a_list_of_numbers_on_one_line(tmp_path):
  value = {"a": {"low": 1, "high": 2}, "b": [[1, 2], []], "c": {}, "d": [{}]}
  value["long"] = {f"name {i}": i for i in range(9)}
  path = artifacts.write_json(tmp_path / "s.json", value)
  text = path.read_text("utf-8")
  assert json.loads(text) == value and list(json.loads(text)) == list(value)
  lines = text.splitlines()
  assert '  "a": {"low": 1, "high": 2},' in lines and "    [1, 2]," in lines
  assert '    "name 8": 8' in lines and all(len(line) <= 80 for line in lines)


def test_an_archive_is_read_like_the_files_that_it_holds(tmp_path):
  table = artifacts.write_csv(tmp_path / "t.csv", ["a"], [[1], [None]])
  held = {"t.csv": table.read_bytes(), "deep/er/x.json": b"{}", "n.npz": b"z"}
  before = artifacts.read_csv(table)
  for name in ("deep/er/x.json", "n.npz"):
    with pytest.raises(FileNotFoundError):
      artifacts.read_bytes(tmp_path / name)
  table.unlink()
  packed = tmp_path / artifacts.ARCHIVE
  artifacts.write_bytes(packed, artifacts.archive(held))
  assert artifacts.archive(dict(reversed(held.items()))) == packed.read_bytes()
  assert artifacts.read_csv(table) == before == (["a"], [[1], [None]])
  assert artifacts.files(tmp_path, ".csv") == [table]
  assert artifacts.files(tmp_path, ".json") == []
  deep = tmp_path / "deep" / "er"
  assert artifacts.files(deep, ".json") == [deep / "x.json"]
  assert artifacts.read_bytes(deep / "x.json") == b"{}"
  artifacts.write_bytes(deep / "x.json", b"[]")  # a file is newer
  assert artifacts.read_bytes(deep / "x.json") == b"[]"
  artifacts.write_bytes(packed, artifacts.archive({"n.npz": b"new"}))
  assert artifacts.read_bytes(tmp_path / "n.npz") == b"new"
  assert artifacts.files(tmp_path, ".csv") == []
  artifacts.unpack(tmp_path)
  assert not packed.exists() and (tmp_path / "n.npz").read_bytes() == b"new"


def test_csv(tmp_path):
  rows = [[0, np.float32(0.1), 'a,"b"\nc'], [1, np.nan, None], [2, True, "="]]
  path = artifacts.write_csv(tmp_path / "t.csv", ["i", "x", "token"], rows)
  with open(path, newline="", encoding="utf-8") as file:
    found = list(csv.reader(file))
  assert found == [
    ["i", "x", "token"],
    ["0", "0.1", 'a,"b"\nc'],
    ["1", "", ""],
    ["2", "true", "="],
  ]
  assert b"\r" not in path.read_bytes()


def test_csv_rejects_ragged_rows(tmp_path):
  with pytest.raises(ValueError, match="row 1 has 1 cells, the header 2"):
    artifacts.write_csv(tmp_path / "t.csv", ["a", "b"], [[1, 2], [3]])
  assert not list(tmp_path.iterdir())


def test_text_holds_what_utf8_cannot(tmp_path):
  path = artifacts.write_text(tmp_path / "t.txt", "a\ud800\r\nb")
  assert path.read_bytes() == b"a?\r\nb"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_midway_leaves_the_old_file_only(tmp_path, monkeypatch, step):
  path = artifacts.write_text(tmp_path / "t.txt", "old")

  def fail(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, step, fail)
  with pytest.raises(ValueError, match="t.txt: No space left on device"):
    artifacts.write_text(path, "new")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "fsync", interrupt)
  with pytest.raises(KeyboardInterrupt):
    artifacts.write_bytes(tmp_path / "b", b"x")
  assert not list(tmp_path.iterdir())


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
  path = artifacts.write_json(tmp_path / "s.json", {"a": 1})
  with pytest.raises(TypeError, match="object"):
    artifacts.write_json(path, {"a": 2, "b": object()})
  assert json.loads(path.read_text()) == {"a": 1}
  assert list(tmp_path.iterdir()) == [path]


def test_the_reader_of_the_old_file_keeps_it(tmp_path):
  path = artifacts.write_text(tmp_path / "t.txt", "old")
  with open(path) as reader:
    artifacts.write_text(path, "new")
    assert reader.read() == "old"
  assert path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_obey_the_umask(tmp_path):
  before = os.umask(0o027)
  try:
    path = artifacts.write_bytes(tmp_path / "b", b"x")
  finally:
    os.umask(before)
  assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_folder_that_is_a_file(tmp_path):
  blocked = artifacts.write_text(tmp_path / "file", "x")
  with pytest.raises(ValueError, match="cannot write .*file"):
    artifacts.write_text(blocked / "t.txt", "y")


def test_a_file_that_is_a_folder(tmp_path):
  (tmp_path / "t").mkdir()
  with pytest.raises(ValueError, match="cannot write"):
    artifacts.write_bytes(tmp_path / "t", b"x")
  assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_folder_without_permission(tmp_path, monkeypatch):
  def refuse(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(os, "open", refuse)  # root may write anywhere
  with pytest.raises(ValueError, match="Permission denied"):
    artifacts.write_bytes(tmp_path / "b", b"x")


FORMULAS = ["=1+1", "@SUM(A1)", "+x", "-cmd|' /C calc'!A0", "\t=1", "\r=1",
  "'=1", "''=1", "'-x", "--a", "=", "-", "-1.5", "'", "'tis",
  "+3", "a=1", "é"]  # fmt: skip


def test_no_text_of_a_table_is_a_formula(tmp_path):
  rows = [[text, -1.5, -3] for text in FORMULAS]
  path = artifacts.write_csv(tmp_path / "t.csv", ["token", "x", "i"], rows)
  with open(path, newline="", encoding="utf-8") as file:
    _, *found = csv.reader(file)
  for text, x, i in found:
    if len(text) > 1 and text[0] in "=+-@\t\r":
      float(text)  # a number, which no spreadsheet runs
    assert (x, i) == ("-1.5", "-3")
  _, again = artifacts.read_csv(path)
  numbers = {"-1.5": -1.5, "+3": 3}
  assert [row[0] for row in again] == [numbers.get(t, t) for t in FORMULAS]


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_floats_without_a_name_in_numpy_are_widened(tmp_path, dtype):
  x = np.array([0.5, -3.0, 448.0], dtype=jnp.dtype(dtype))
  path = artifacts.write_npz(tmp_path / "a.npz", {"x": x, "n": np.arange(2)})
  with np.load(path) as found:
    assert found["x"].dtype == np.float32 and found["n"].dtype.kind == "i"
    np.testing.assert_array_equal(found["x"], x.astype(np.float32))
