"""Safetensors: every damage of a file or an index is one line."""

import json
import os
import pathlib
import struct
import sys

import numpy as np
import pytest

from sinkjax.weights.formats import safetensors_header, safetensors_io
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_files as files
from gguf_files import FIRST, INDEX, SECOND, check_default
from gguf_files import load_safetensors as load
from gguf_files import write_safetensors as write


def _header(**changes) -> dict:
  """The default header with fields of tensor `a` replaced."""
  header, _ = files.safetensors_header(files.default_arrays())
  header["a"] |= changes
  return {"header": header}


def _entries(**entries) -> dict:
  header, _ = files.safetensors_header(files.default_arrays())
  return {"header": header | entries}


def _text(old: str, new: str) -> dict:
  header, _ = files.safetensors_header(files.default_arrays())
  text = json.dumps(header)
  assert old in text
  return {"header": text.replace(old, new, 1).encode()}


def _offsets(*offsets) -> dict:
  return _header(data_offsets=list(offsets))


_DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
REFUSED = {
  "header over its cap": ({"length": 2**40}, f"of {2**40} bytes; expected at"),
  "header huge": ({"length": 2**64 - 1}, "expected at most 16777216"),
  "header past the end": ({"length": 5000}, "5000 bytes; the file has"),
  "header cut": ({"length": 40}, "not valid JSON"),
  "header empty": ({"length": 0}, "leaves|not valid JSON|starts with"),
  "not json": ({"header": b"{hello}"}, "not valid JSON"),
  "not an object": ({"header": b"[1]"}, r"starts with b'\['"),
  "leading space": ({"header": b' {"a": 1}'}, "starts with b' '"),
  "NUL padding": ({"pad": b"\0\0\0"}, "holds NUL bytes"),
  "after the object": ({"pad": b"{}"}, "not valid JSON"),
  "NaN": (_text("[4, 6]", "[NaN, 6]"), "NaN is not JSON"),
  "utf-8": ({"header": b'{"\xff": 1}'}, "not valid UTF-8"),
  "deep": ({"header": _DEEP}, "nests too deep"),
  "long int": (_text("[4, 6]", "[" + "9" * 9999 + "]"), "not valid JSON"),
  "duplicate name": (_text('"b":', '"a":'), "has 'a' twice"),
  "duplicate field": (_text('"shape":', '"dtype":'), "has 'dtype' twice"),
  "metadata": (_entries(__metadata__={"a": 1}), "__metadata__ is not an obj"),
  "metadata list": (_entries(__metadata__=[]), "__metadata__ is not an obj"),
  "no tensors": ({"header": {}, "data": b""}, "holds no tensors"),
  "empty name": (_text('"a":', '"":'), "empty or invalid Unicode name"),
  "surrogate": (_text('"a":', '"\\ud800":'), "empty or invalid Unicode name"),
  "entry": (_entries(a=3), "'a' has 3; expected"),
  "missing field": (_entries(a={"dtype": "F32"}), "'a' has .*expected"),
  "more fields": (_header(more=1), "'a' has .*expected"),
  "dtype unknown": (_header(dtype="F31"), "unknown dtype 'F31'"),
  "dtype list": (_header(dtype=["F32"]), "unknown dtype"),
  "shape text": (_header(shape="46"), "shape '46'; expected non-negative"),
  "shape negative": (_header(shape=[-4, -6]), r"shape \[-4, -6\]; expected"),
  "shape float": (_header(shape=[4.0, 6]), "expected non-negative ints"),
  "shape bool": (_header(shape=[True, 24]), "expected non-negative ints"),
  "zero": (_header(shape=[4, 0]), "expected dimensions from 1"),
  "absurd": (_header(shape=[2**60]), "expected dimensions from 1"),
  "five": (_header(shape=[4, 6, 1, 1, 1]), "has 5 dimensions; expected at"),
  "overflow": (_header(shape=[2**32, 2**32]), f"needs {2**66}"),
  "overflow to size": (_header(shape=[2**40, 2**40]), "has 96 bytes; F32"),
  "shape and size": (_header(shape=[4, 5]), r"F32 of shape \[4, 5\] needs 80"),
  "dtype and size": (_header(dtype="F16"), "F16 of shape .* needs 48"),
  "offsets negative": (_offsets(-96, 0), "expected .begin, end. with 0"),
  "offsets reversed": (_offsets(96, 0), "expected .begin, end. with 0"),
  "offsets three": (_offsets(0, 96, 96), "expected .begin, end. with 0"),
  "offsets float": (_offsets(0.0, 96), "expected .begin, end. with 0"),
  "offsets text": (_header(data_offsets="0"), "expected .begin, end. with 0"),
  "offsets out": (_offsets(96, 192), "ends at byte 192 of the data"),
  "offsets huge": (_offsets(2**63, 2**63 + 96), f"ends at byte {2**63 + 96}"),
  "overlap": (_offsets(8, 104), "overlaps another|leaves a gap"),
  "twice": (
    _entries(z={"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}),
    "overlaps another",
  ),
  "gap": (
    {
      "header": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
      "data": bytes(8),
    },
    "leaves a gap; expected byte 0",
  ),
  "trailing": ({"data": bytes(300)}, "bytes after its tensors; expected none"),
  "data cut": ({"data": bytes(100)}, "of the data, which has 100"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(tmp_path, fault):
  arguments, match = REFUSED[fault]
  path = write(tmp_path, files.safetensors_bytes(**arguments))
  files.expect_refusal(path, lambda: load(tmp_path), match)
  files.expect_refusal(path, lambda: load(path), match)


def test_every_truncation_is_refused(tmp_path):
  data = files.safetensors_bytes()
  path = tmp_path / "model.safetensors"
  for length in range(len(data)):
    path.write_bytes(data[:length])
    with pytest.raises(WeightsError) as caught:
      load(tmp_path)
    assert str(caught.value).isprintable()


OTHER = {
  "empty": (b"", "is empty"),
  "short": (b"\2\0\0", "is 3 bytes long, too short"),
  "GGUF": (b"GGUF" + bytes(40), "is a GGUF file"),
  "zip": (b"PK\x03\x04" + bytes(40), "pickle.*safetensors and GGUF"),
  "pickle": (b"\x80\x02}q\0" + bytes(40), "pickle.*safetensors and GGUF"),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_formats_are_refused(tmp_path, name):
  data, match = OTHER[name]
  path = write(tmp_path, data)
  files.expect_refusal(path, lambda: load(tmp_path), match)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
  data = files.safetensors_bytes()
  length = struct.unpack("<Q", data[:8])[0]
  data = files.safetensors_bytes(pad=b" " * (0x0280 - length))
  assert data[:2] == b"\x80\x02"
  write(tmp_path, data)
  check_default(load(tmp_path)[1])


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt"])
def test_pickles_are_refused(tmp_path, suffix):
  path = write(tmp_path, files.safetensors_bytes(), f"pytorch_model.{suffix}")
  accepted = "pickle.*safetensors and GGUF files are accepted"
  files.expect_refusal(path, lambda: load(path), accepted)
  files.expect_refusal(tmp_path, lambda: load(tmp_path), "only " + accepted)


def test_folders_without_weights_are_refused(tmp_path):
  files.expect_refusal(
    tmp_path,
    lambda: load(tmp_path),
    "has neither model.safetensors nor model.safetensors.index.json",
  )
  missing = tmp_path / "none"
  files.expect_refusal(missing, lambda: load(missing), "No such file")
  write(tmp_path, b"", "other.gguf")
  files.expect_refusal(
    tmp_path, lambda: load(tmp_path), "'other.gguf': pass the path"
  )
  with pytest.raises(WeightsError, match="expected a path"):
    safetensors_io.open_folder(3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_are_refused(tmp_path, dtype, value):
  array = np.ones((3, 5), dtype)
  array[1, 2] = value
  path = write(tmp_path, files.safetensors_bytes({"w": array}))
  folder = safetensors_io.open_folder(tmp_path)
  match = "'w' holds NaN or infinite"
  files.expect_refusal(path, lambda: folder.read("w"), match)
  files.expect_refusal(path, lambda: folder.read_raw("w"), match)
  out = np.empty((5, 3), np.float32).T
  files.expect_refusal(path, lambda: folder.read("w", out), match)


def test_wrong_names_and_outputs_are_refused(tmp_path):
  path = write(tmp_path, files.safetensors_bytes())
  folder = safetensors_io.open_folder(path)
  files.expect_refusal(path, lambda: folder.read("x"), "no tensor 'x'; it has")
  files.expect_refusal(
    path, lambda: folder.read("a", np.empty(24)), "float32 numpy array"
  )
  files.expect_refusal(
    path, lambda: folder.read("a", np.empty(23, np.float32)), "24 elements"
  )
  raw = write(tmp_path, files.safetensors_bytes({"t": np.ones(2, bool)}))
  raw.write_bytes(raw.read_bytes()[:-1] + b"\7")
  folder = safetensors_io.open_folder(raw)
  files.expect_refusal(raw, lambda: folder.read_raw("t"), "other than 0 and 1")


def test_a_file_cut_after_opening_is_refused(tmp_path):
  path = write(tmp_path, files.safetensors_bytes())
  folder = safetensors_io.open_folder(path)
  os.truncate(path, folder.tensors["c"].offset + 3)
  files.expect_refusal(path, lambda: folder.read("c"), "bytes early")
  files.expect_refusal(path, lambda: folder.read_raw("c"), "bytes early")


def _map(**changes) -> dict:
  return {"a": FIRST, "b": FIRST, "c": SECOND} | changes


INDEXES = {
  "missing shard": (_map(c="gone.safetensors"), "'gone.*missing|gone.*missi"),
  "absolute": (_map(c="/etc/model.safetensors"), "names the shard '/etc/"),
  "dots": (_map(c="../x.safetensors"), r"names the shard '\.\./x"),
  "dots 2": (_map(c=".."), r"names the shard '\.\.'"),
  "folder": (_map(c="sub/x.safetensors"), "names the shard 'sub/x"),
  "backslash": (_map(c="..\\x.safetensors"), "names the shard"),
  "NUL": (_map(c="x\0.safetensors"), "names the shard"),
  "newline": (_map(c="x\n.safetensors"), r"names the shard 'x\\n"),
  "long": (_map(c="x" * 5000 + ".safetensors"), "names the shard"),
  "pickle": (_map(c="pytorch_model.bin"), "names the pickle"),
  "not a string": (_map(c=7), "gives 7 for tensor 'c'"),
  "list": ([["a", FIRST]], "weight_map is .*expected an object"),
  "empty": ({}, "weight_map is {}; expected an object"),
  "text": ("x", "weight_map is 'x'; expected an object"),
  "wrong shard": (_map(b=SECOND), "puts tensor 'b' into model-00002"),
  "not in its shard": (_map(d=SECOND), "puts tensor 'd' into model-00002"),
  "not in the index": (
    {"a": FIRST, "c": SECOND},
    "tensor 'b' of model-00001.* is not in the index",
  ),
}


@pytest.mark.parametrize("fault", INDEXES)
def test_index_refused(tmp_path, fault):
  weight_map, match = INDEXES[fault]
  files.write_sharded(tmp_path, weight_map=weight_map)
  files.expect_refusal(tmp_path / INDEX, lambda: load(tmp_path), match)


TEXTS = {
  "not json": (b"{", "not valid JSON"),
  "empty": (b"", "is empty"),
  "list": (b"[]", "a JSON list; expected an object"),
  "no map": (b"{}", "weight_map is None"),
  "NUL": (b"{}\0", "holds NUL bytes"),
  "utf-8": (b'{"\xff": 1}', "not valid UTF-8"),
  "deep": (_DEEP, "nests too deep"),
  "duplicate": (
    b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    "has 'a' twice",
  ),
}


@pytest.mark.parametrize("fault", TEXTS)
def test_index_text_refused(tmp_path, fault):
  data, match = TEXTS[fault]
  files.write_sharded(tmp_path)
  path = write(tmp_path, data, INDEX)
  files.expect_refusal(path, lambda: load(tmp_path), match)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  shards = files.default_shards()
  shards[SECOND]["b"] = shards[FIRST]["b"]
  files.write_sharded(tmp_path, shards)
  files.expect_refusal(
    tmp_path / INDEX, lambda: load(tmp_path), "'b' is in both model-00001"
  )


@pytest.mark.parametrize("name", [SECOND, INDEX, "model.safetensors"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
  folder = files.write_sharded(tmp_path / "m")
  speaker = folder / INDEX
  if name == "model.safetensors":
    write(folder, files.safetensors_bytes())
  if name != SECOND:
    speaker = folder
  (folder / name).rename(tmp_path / name)
  (folder / name).symlink_to(tmp_path / name)
  files.expect_refusal(speaker, lambda: load(folder), "outside the folder")


def test_a_damaged_shard_is_named(tmp_path):
  files.write_sharded(tmp_path)
  path = write(tmp_path, b"\0" * 50, SECOND)
  files.expect_refusal(path, lambda: load(tmp_path), "starts with")


def test_limits_on_header_and_index(tmp_path, monkeypatch):
  files.write_sharded(tmp_path)
  monkeypatch.setattr(safetensors_io, "MAX_SHARDS", 1)
  path = tmp_path / INDEX
  files.expect_refusal(path, lambda: load(tmp_path), "names 2 shards")
  monkeypatch.setattr(safetensors_io, "MAX_INDEX", 10)
  files.expect_refusal(path, lambda: load(tmp_path), "expected at most 10")


_FLOODS = {
  "objects": ("{},", "absurd: more than"),
  "arrays": ("[],", "absurd: more than"),
  "numbers": ("1,", "absurd: more than"),
  "floats": ("1.000000000000000000000000000e9,", "'a' has"),
  "texts": ('"' + "x" * 40 + '",', "'a' has"),
  "escapes": ('"' + "\\n" * 20 + '",', "'a' has"),
}


@pytest.mark.parametrize("name", _FLOODS)
def test_the_largest_header_allowed_does_not_hang(tmp_path, name):
  item, match = _FLOODS[name]
  count = min(
    safetensors_header.MAX_HEADER // len(item) - 9,
    2_000_000 if "absurd" in match else 500_000,
  )
  text = f'{{"a":[{item * count}1]}}'.encode()
  path = write(tmp_path, files.safetensors_bytes(header=text))
  files.expect_refusal(path, lambda: load(path), match)


def test_as_many_pairs_as_fit_do_not_hang(tmp_path):
  text = "{" + ",".join(f'"{i:x}":1' for i in range(500_000)) + "}"
  path = write(tmp_path, files.safetensors_bytes(header=text.encode()))
  files.expect_refusal(path, lambda: load(path), "'0' has 1; expected")
