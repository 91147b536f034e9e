"""Safetensors: exact values in any view, from one file or from shards."""

import pathlib
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sinkjax.weights.formats import safetensors_io, tiles

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_files as files
from gguf_files import SECOND, check_default
from gguf_files import load_safetensors as load
from gguf_files import write_safetensors as write


def test_single_file_and_folder(tmp_path):
  path = write(tmp_path, files.safetensors_bytes())
  folder, values = load(tmp_path)
  check_default(values)
  found = folder.tensors["c"]
  assert (found.name, found.dtype, found.shape) == ("c", "BF16", (2, 3, 4))
  assert (found.file, found.n_bytes) == (str(path), 48)
  assert path.read_bytes()[found.offset :] == (
    files.default_arrays()["c"].tobytes()
  )
  check_default(load(path)[1])
  check_default(load(str(path))[1])


def test_sharded_folder(tmp_path):
  folder, values = load(files.write_sharded(tmp_path / "m"))
  check_default(values)
  assert folder.tensors["c"].file.endswith(SECOND)


def test_the_single_file_wins_over_an_index(tmp_path):
  files.write_sharded(tmp_path)
  write(tmp_path, files.safetensors_bytes({"z": np.ones(2, np.float32)}))
  assert set(load(tmp_path)[1]) == {"z"}


def test_a_file_written_by_the_library(tmp_path):
  arrays = files.default_arrays()
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(arrays, path, {"format": "np"})
  check_default(load(tmp_path)[1])


def test_spaces_after_the_header_and_scalars(tmp_path):
  write(tmp_path, files.safetensors_bytes(pad=b" " * 7))
  check_default(load(tmp_path)[1])
  scalar = {"s": np.float32(2.5).reshape(())}
  write(tmp_path, files.safetensors_bytes(scalar))
  values = load(tmp_path)[1]["s"]
  assert values.shape == () and values == 2.5


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tile", [1, 50, 1 << 18])
def test_out_may_be_any_view(tmp_path, monkeypatch, dtype, tile):
  monkeypatch.setattr(tiles, "TILE", tile)
  array = np.random.default_rng(0).normal(size=(24, 10)).astype(dtype)
  write(tmp_path, files.safetensors_bytes({"w": array}))
  folder = safetensors_io.open_folder(tmp_path)
  want = array.astype(np.float32)
  for out in (
    np.empty((2, 10, 24), np.float32)[1].T,
    np.empty((10, 3, 2, 4), np.float32).transpose(1, 3, 2, 0),
    np.empty((2, 5, 24), np.float32).transpose(2, 0, 1),
    np.empty((24, 20), np.float32)[:, ::2],
    np.empty((240,), np.float32),
    np.empty((40, 6), np.float32)[::-1],
  ):
    assert folder.read("w", out) is out
    np.testing.assert_array_equal(out, want.reshape(out.shape))


def test_read_raw_keeps_the_stored_type(tmp_path):
  arrays = files.default_arrays() | {
    "i": np.arange(3),
    "t": np.array([True, False]),
    "d": np.array([1 / 3]),
  }
  write(tmp_path, files.safetensors_bytes(arrays))
  folder = safetensors_io.open_folder(tmp_path)
  for name, array in arrays.items():
    raw = folder.read_raw(name)
    assert raw.dtype == array.dtype
    np.testing.assert_array_equal(raw, array)
  assert folder.read_raw("c").dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("array", [np.arange(3), np.array([1 / 3])])
def test_other_types_are_not_read_as_weights(tmp_path, array):
  path = write(tmp_path, files.safetensors_bytes({"w": array}))
  name = files.NAMES[array.dtype.name]
  files.expect_refusal(
    path, lambda: load(tmp_path), f"'w' is {name}; only F32, F16, BF16"
  )


def test_the_layout_of_the_hugging_face_cache(tmp_path):
  snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
  blobs = tmp_path / "models--a--b" / "blobs"
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  files.write_sharded(snapshot)
  for number, path in enumerate(sorted(snapshot.iterdir())):
    path.rename(blobs / str(number))
    path.symlink_to(f"../../blobs/{number}")
  check_default(load(snapshot)[1])


def test_memory_beside_the_output_is_small(tmp_path):
  array = np.ones((2048, 4096), ml_dtypes.bfloat16)
  write(tmp_path, files.safetensors_bytes({"w": array}))
  folder = safetensors_io.open_folder(tmp_path)
  out = np.empty((4096, 2048), np.float32)
  folder.read("w", out.T)
  tracemalloc.start()
  folder.read("w", out.T)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 6 << 20
  assert (out == 1).all()
