"""Archives of results are hostile until proven otherwise."""

import io
import lzma
import os
import tarfile
import zipfile

import numpy as np
import pytest

from launch.resume import Partial
from sinkjax import artifacts, unpacking
from sinkjax.analysis.sensitivity import Columns
from sinkjax.experiments.harness import kept, records


def packed(members):
  """An .npz file of {name: (shape that its header tells, bytes)}."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
    for name, (shape, data) in members.items():
      head, about = io.BytesIO(), {"descr": "<f8", "fortran_order": False}
      np.lib.format.write_array_header_1_0(head, about | {"shape": shape})
      file.writestr(f"{name}.npy", head.getvalue() + data)
  return out.getvalue()


ARRAYS = {
  "more than is read": packed({"a": ((40_000,), bytes(320_000))}),
  "in many": packed({f"a{i}": ((2000,), bytes(16_000)) for i in range(20)}),
  "a shape that lies": packed({"a": ((10**14,), bytes(80))}),
  "a negative shape": packed({"a": ((-1, 4), bytes(80))}),
  "cut": packed({"a": ((9,), bytes(72))})[:-30],
  "no archive": b"\x93NUMPY",
  "nothing": b"",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_refused(tmp_path, kind):
  path = tmp_path / "a.npz"
  path.write_bytes(ARRAYS[kind])
  with pytest.raises(ValueError) as error:
    artifacts.read_npz(path, 300_000)
  assert str(error.value).startswith(f"{path}: not a readable .npz: ")
  assert "\n" not in str(error.value)


def test_objects_are_not_unpickled(tmp_path):
  np.savez(tmp_path / "a.npz", a=np.array([{}], object))
  with pytest.raises(ValueError, match="not a readable"):
    artifacts.read_npz(tmp_path / "a.npz")


def test_arrays_that_are_read(tmp_path):
  made = {"a": np.eye(3), "b": np.array("ä")}
  artifacts.write_npz(tmp_path / "a.npz", made)
  np.testing.assert_equal(artifacts.read_npz(tmp_path / "a.npz"), made)


def member(name, kind=tarfile.REGTYPE, link=""):
  found = tarfile.TarInfo(name)
  found.type, found.linkname = kind, link
  return found


OUTSIDE = {
  "above": member("../x"),
  "above, later": member("a/../../x"),
  "absolute": member("/tmp/x"),
  "link": member("x", tarfile.SYMTYPE, "/etc/passwd"),
  "hard link": member("x", tarfile.LNKTYPE, "../../x"),
  "device": member("x", tarfile.CHRTYPE),
  "pipe": member("x", tarfile.FIFOTYPE),
  "folder": member("x", tarfile.DIRTYPE),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_members_that_are_refused(tmp_path, kind):
  folder = tmp_path / "deep" / "deeper" / "recorded"
  folder.mkdir(parents=True)
  raw = io.BytesIO()
  with tarfile.open(fileobj=raw, mode="w") as tar:
    tar.addfile(member("whole.csv"))
    tar.addfile(OUTSIDE[kind])
  (folder / artifacts.ARCHIVE).write_bytes(lzma.compress(raw.getvalue()))
  before = sorted(tmp_path.rglob("*"))
  for read in (artifacts.archived, artifacts.unpack):
    with pytest.raises(ValueError, match=r"recorded\.tar\.xz: not a readable"):
      read(folder)
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("raw", [b"no xz", b"", lzma.compress(b"x" * 999)])
def test_what_is_no_archive(tmp_path, raw):
  (tmp_path / artifacts.ARCHIVE).write_bytes(raw)
  with pytest.raises(ValueError, match=r"xz: not a readable archive: \S"):
    artifacts.archived(tmp_path)


def test_an_archive_unpacks_within_bounds(tmp_path, monkeypatch):
  monkeypatch.setattr(unpacking, "ROOM", 100_000)
  path = tmp_path / artifacts.ARCHIVE
  path.write_bytes(artifacts.archive({"a": bytes(60_000)}))
  assert len(unpacking.tar_xz(path)["a"]) == 60_000
  path.write_bytes(artifacts.archive({"a": bytes(200_000)}))
  with pytest.raises(ValueError, match="unpacks to more than 100000 bytes"):
    unpacking.tar_xz(path)


def part(path):
  """A part of a measurement, read from where `path` is."""
  folder = path.parent
  keeper = kept.Kept(folder, {}, {})
  keeper._folder = folder
  path.rename(folder / "00000-part.npz")
  return keeper("part", lambda: 1.0)


READERS = {
  "result.json": lambda path: records.stored(path),
  "arrays.npz": lambda path: artifacts.read_npz(path),
  "table.csv": lambda path: artifacts.read_csv(path),
  "partial.npz": lambda path: Partial(
    path.parent, {}, {"a": Columns.none(3)}, overwrite=False
  ),
  "part.npz": part,
  artifacts.ARCHIVE: lambda path: unpacking.tar_xz(path),
}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", READERS)
def test_pipes_and_folders_in_place_of_results(tmp_path, name, make):
  make(tmp_path / name)
  with pytest.raises(ValueError, match=str(tmp_path)):
    READERS[name](tmp_path / name)


def test_columns_of_another_size_are_not_read(tmp_path):
  """Of a map of three tokens no file of more bytes can be."""
  zeros = np.zeros((1000, 1000))
  arrays = {"mark": "{}", "a_values": zeros, "a_known": zeros[0] == 0}
  artifacts.write_npz(tmp_path / "partial.npz", {**arrays, "seconds": 1.0})
  with pytest.raises(ValueError, match=r"partial\.npz is damaged"):
    READERS["partial.npz"](tmp_path / "partial.npz")
