"""GGUF: every damage is refused in one line, soon."""

import os
import pathlib
import re
import struct
import sys
import time

import gguf as reference
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

from sinkjax.weights.formats import gguf, gguf_header
from sinkjax.weights.validate import WeightsError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import gguf_files as files
from gguf_files import TYPES, write
from gguf_files import load_gguf as load

U64_MAX = 2**64 - 1
OTHER_TYPES = [type_ for type_ in Type if type_ not in TYPES]


def _text_array(*texts: bytes) -> bytes:
  body = b"".join(files.string(text) for text in texts)
  return struct.pack("<IQ", Value.STRING, len(texts)) + body


def _array(element: int, count: int, body: bytes = b"") -> bytes:
  return struct.pack("<IQ", element, count) + body


def _extra(key, type_, value) -> dict:
  return {"extra": [files.pair(key, type_, value)]}


def _known(key: str, type_, value) -> dict:
  """The default metadata with `key` replaced."""
  start = files.string(key)
  kept = [p for p in files.default_pairs() if not p.startswith(start)]
  return {"pairs": [*kept, files.pair(key, type_, value)]}


def _with(index: int, **changes) -> dict:
  """The default tensors with fields of one changed."""
  tensors = files.default_tensors()
  for field, value in changes.items():
    setattr(tensors[index], field, value)
  return {"tensors": tensors}


def _nested(depth: int) -> bytes:
  return _array(Value.ARRAY, 1) * depth + _array(Value.UINT8, 1, b"\0")


def _big_endian() -> dict:
  return {"version": struct.pack(">I", 3)}


TOKENS = "tokenizer.ggml.tokens"
REFUSED = {
  "magic": ({"magic": b"GGJT"}, "starts with b'GGJT'; expected b'GGUF'"),
  "version 1": ({"version": struct.pack("<I", 1)}, "version 1; expected 2"),
  "version 4": ({"version": struct.pack("<I", 4)}, "version 4; expected 2"),
  "big endian": (_big_endian(), "big-endian"),
  "pickle inside": ({"magic": b"\x80\x02}q"}, "pickle.*GGUF files are acc"),
  "zip inside": ({"magic": b"PK\x03\x04"}, "pickle.*safetensors"),
  "tensor count": ({"n_tensors": 2**63}, f"tensors: count {2**63}"),
  "tensor count 2": ({"n_tensors": 60_000}, "tensors: count 60000 needs"),
  "tensor count 3": ({"n_tensors": 7}, "tensor 6 has an empty name"),
  "pair count": ({"n_pairs": U64_MAX}, f"metadata: count {U64_MAX}"),
  "pair count 2": ({"n_pairs": 50_000}, "metadata: count 50000 needs"),
  "fewer pairs": ({"n_pairs": 3}, "tensor '.*' has|tensor 0|tensor 1"),
  "duplicate key": (_extra("some.flag", Value.BOOL, 1), "'some.flag' is the"),
  "empty key": (_extra("", Value.BOOL, 1), "is empty"),
  "long key": (_extra("k" * 70_000, Value.BOOL, 1), "70000 bytes long"),
  "key utf-8": (_extra(b"\xff\xfe", Value.BOOL, 1), "not valid UTF-8"),
  "value type": (_extra("k", 13, b"\0" * 8), "value type 13"),
  "element type": (
    _extra("k", Value.ARRAY, _array(99, 1, b"\0")),
    "array elements.* value type 99",
  ),
  "bool": (_extra("k", Value.BOOL, 2), "bool stored as 2"),
  "bool array": (
    _extra("k", Value.ARRAY, (Value.BOOL, [0, 7])),
    "bool stored as 7",
  ),
  "string length": (
    _extra("k", Value.STRING, struct.pack("<Q", U64_MAX)),
    f"'k' is {U64_MAX} bytes long",
  ),
  "string past the end": (
    _extra("k", Value.STRING, struct.pack("<Q", 900_000)),
    "needs 900000 bytes at byte",
  ),
  "string utf-8": (
    _extra("k", Value.STRING, b"\1" + b"\0" * 7 + b"\xff"),
    "not valid UTF-8",
  ),
  "array length": (
    _extra("k", Value.ARRAY, _array(Value.UINT8, 2**63)),
    f"count {2**63}; expected at most",
  ),
  "array length 2": (
    _extra("k", Value.ARRAY, _array(Value.FLOAT64, 100_000)),
    "needs at least 800000 bytes",
  ),
  "string array length": (
    _extra("k", Value.ARRAY, _array(Value.STRING, 2**63)),
    f"count {2**63}; expected at most",
  ),
  "string array length 2": (
    _extra("k", Value.ARRAY, _array(Value.STRING, 1_000_000)),
    "needs at least 8000000 bytes",
  ),
  "string in array": (
    _extra("k", Value.ARRAY, _array(Value.STRING, 1, b"\xff" * 8)),
    "string 0 is .* bytes long",
  ),
  "string in array 2": (
    _extra(
      "k", Value.ARRAY, _array(Value.STRING, 1, struct.pack("<Q", 500_000))
    ),
    "needs 500000 bytes at byte",
  ),
  "array utf-8": (
    _extra("k", Value.ARRAY, _text_array(b"ok", b"\xc3")),
    "string 1 is not valid UTF-8",
  ),
  "surrogate": (
    _extra("k", Value.ARRAY, _text_array(b"\xed\xa0\x80")),
    "string 0 is not valid UTF-8",
  ),
  "nested": (_extra("k", Value.ARRAY, _nested(9)), "deeper than 3 levels"),
  "nested length": (
    _extra("k", Value.ARRAY, _array(Value.ARRAY, 2**40)),
    f"count {2**40}; expected at most",
  ),
  "alignment 0": (_extra("general.alignment", Value.UINT32, 0), "is 0; exp"),
  "alignment 24": (
    _extra("general.alignment", Value.UINT32, 24),
    "alignment is 24; expected a power of two",
  ),
  "alignment 2 MiB": (
    _extra("general.alignment", Value.UINT32, 2 << 20),
    "alignment is 2097152; expected",
  ),
  "alignment 2**31": (
    _extra("general.alignment", Value.UINT32, 2**31),
    "alignment is 2147483648; expected",
  ),
  "alignment type": (
    _extra("general.alignment", Value.UINT64, 32),
    "alignment is UINT64; expected UINT32",
  ),
  "alignment text": (
    _extra("general.alignment", Value.STRING, "32"),
    "alignment is STRING; expected UINT32",
  ),
  "alignment array": (
    _extra("general.alignment", Value.ARRAY, (Value.UINT32, [32])),
    "alignment is array of UINT32; expected a single value of UINT32",
  ),
  "tokens of ints": (
    _known(TOKENS, Value.ARRAY, (Value.INT32, [1, 2])),
    "tokens is array of INT32; expected array of STRING",
  ),
  "tokens one string": (
    _known(TOKENS, Value.STRING, "a"),
    "tokens is a single STRING; expected an array of STRING",
  ),
  "merges of floats": (
    _known("tokenizer.ggml.merges", Value.ARRAY, (Value.FLOAT32, [1.0])),
    "merges is array of FLOAT32; expected array of STRING",
  ),
  "scores of ints": (
    _known("tokenizer.ggml.scores", Value.ARRAY, (Value.INT32, [1])),
    "scores is array of INT32; expected array of FLOAT32 or FLOAT64",
  ),
  "token_type of bools": (
    _known("tokenizer.ggml.token_type", Value.ARRAY, (Value.BOOL, [1])),
    "token_type is array of BOOL; expected array of UINT8",
  ),
  "architecture": (
    _known("general.architecture", Value.UINT32, 1),
    "architecture is UINT32; expected STRING",
  ),
  "duplicate tensor": (_with(1, name="a.weight"), "'a.weight' is there twice"),
  "empty name": (_with(1, name=""), "tensor 1 has an empty name"),
  "long name": (_with(1, name="n" * 3000), "is 3000 bytes long"),
  "name utf-8": (_with(1, name=b"\xff"), "tensor 1 is not valid UTF-8"),
  "tensor type": (_with(0, type=4), "quantisation type 4, which is unknown"),
  "tensor type 2": (_with(0, type=2**32 - 1), "type 4294967295, which is un"),
  "no dimensions": (_with(1, dims=0), "has 0 dimensions; expected 1 to 4"),
  "five dimensions": (
    _with(5, shape=(1, 1, 2, 3, 4)),
    "has 5 dimensions; expected 1 to 4",
  ),
  "many dimensions": (_with(1, dims=2**32 - 1), "4294967295 dimensions"),
  "zero dimension": (_with(1, shape=(0,)), r"shape \[0\]; expected no zero"),
  "absurd dimension": (_with(1, shape=(2**63,)), "needs .* bytes; the whole"),
  "overflow": (
    _with(1, shape=(2**33, 2**31)),
    f"needs {2**66} bytes; the whole file",
  ),
  "overflow to size": (_with(1, shape=(2**62, 4, 7)), "the whole file"),
  "block multiple": (_with(0, shape=(8, 48)), "rows of 48; Q4_1 needs a mul"),
  "offset unaligned": (_with(1, offset=248), "248, not a multiple of 32"),
  "offset overlaps": (_with(1, offset=224), "overlaps another"),
  "offset same": (_with(1, offset=0), "overlaps another|leaving a gap"),
  "offset gap": (_with(5, offset=1024), "leaving a gap|ends at byte"),
  "offset huge": (_with(5, offset=2**63), "lies at bytes .* ends at byte"),
  "offset negative": (
    _with(5, offset=2**64 - 32),
    "lies at bytes .* ends at byte",
  ),
  "first gap": (
    {
      "tensors": [files.tensor("w", Type.F32, (64,), offset=32)],
      "tail": b"\0" * 32,
    },
    "leaving a gap; expected 0",
  ),
  "shape smaller": (_with(0, shape=(2, 64)), "leaving a gap"),
  "trailing": ({"tail": b"\0" * 40}, "bytes after its tensors"),
  "trailing padding": ({"tail": b"\0" * 9}, "9 bytes after its tensors"),
  "trailing, no tensors": (
    {"tensors": [], "tail": b"\0" * 100},
    "100 bytes after its tensors",
  ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refused(tmp_path, fault):
  arguments, match = REFUSED[fault]
  path = write(tmp_path, files.build_gguf(**arguments))
  files.expect_refusal(path, lambda: load(path), match)


@pytest.mark.parametrize("type_", OTHER_TYPES, ids=lambda t: t.name)
def test_types_that_cannot_be_dequantised_are_named(tmp_path, type_):
  block, size = reference.GGML_QUANT_SIZES[type_]
  item = files.Tensor("w", type_, (2, block), bytes(2 * size))
  path = write(tmp_path, files.build_gguf([item]))
  files.expect_refusal(path, lambda: load(path), f"'w'.* {type_.name},")


def test_every_truncation_is_refused(tmp_path):
  data = files.build_gguf(tail=b"")
  path = tmp_path / "m.gguf"
  for length in range(1, len(data), 3):
    path.write_bytes(data[:length])
    with pytest.raises(WeightsError) as caught:
      load(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".PT"])
def test_pickle_names_are_refused(tmp_path, suffix):
  path = write(tmp_path, files.build_gguf(), "model" + suffix)
  files.expect_refusal(
    path, lambda: load(path), "pickle.*safetensors and GGUF files are accepted"
  )


def test_not_a_file_is_refused(tmp_path):
  files.expect_refusal(tmp_path, lambda: load(tmp_path), "is a folder")
  path = tmp_path / "none.gguf"
  files.expect_refusal(path, lambda: load(path), "No such file")
  path = write(tmp_path, b"")
  files.expect_refusal(path, lambda: load(path), "is empty")
  path = write(tmp_path, b"GG")
  files.expect_refusal(path, lambda: load(path), "starts with b'GG'")
  with pytest.raises(WeightsError, match="expected a path"):
    gguf.open_gguf(None)
  if hasattr(os, "mkfifo"):
    path = tmp_path / "pipe.gguf"
    os.mkfifo(path)
    files.expect_refusal(path, lambda: load(path), "not a regular file")


def test_header_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(gguf_header, "MAX_HEADER", 300)
  path = write(tmp_path, files.build_gguf())
  files.expect_refusal(path, lambda: load(path), "header limit of 300 bytes")


def _set_scale(type_: Type, position: int, bad: bytes) -> dict:
  data = bytearray(files.finite_bytes(type_, (3, 256)))
  data[position : position + len(bad)] = bad
  return [files.Tensor("w", type_, (3, 256), bytes(data))]


HALF_INF, HALF_NAN = b"\x00\x7c", b"\x01\xfe"
NOT_FINITE = {
  "F32 nan": (Type.F32, 40, struct.pack("<f", np.nan)),
  "F32 -inf": (Type.F32, 40, struct.pack("<f", -np.inf)),
  "F16 inf": (Type.F16, 40, HALF_INF),
  "BF16 nan": (Type.BF16, 40, b"\xc0\x7f"),
  "Q4_0 scale": (Type.Q4_0, 18, HALF_INF),
  "Q4_1 scale": (Type.Q4_1, 20, HALF_NAN),
  "Q4_1 minimum": (Type.Q4_1, 22, HALF_INF),
  "Q5_0 scale": (Type.Q5_0, 22, HALF_NAN),
  "Q5_1 scale": (Type.Q5_1, 24, HALF_INF),
  "Q5_1 minimum": (Type.Q5_1, 26, HALF_INF),
  "Q8_0 scale": (Type.Q8_0, 34, HALF_INF),
  "Q4_K scale": (Type.Q4_K, 144, HALF_INF),
  "Q4_K minimum": (Type.Q4_K, 146, HALF_NAN),
  "Q5_K scale": (Type.Q5_K, 176, HALF_INF),
  "Q5_K minimum": (Type.Q5_K, 178, HALF_INF),
  "Q6_K scale": (Type.Q6_K, 210 + 208, HALF_INF),
  "Q2_K scale": (Type.Q2_K, 84 + 80, HALF_INF),
}


@pytest.mark.parametrize("name", NOT_FINITE)
@pytest.mark.parametrize("turned", [False, True])
def test_weights_that_are_not_finite_are_refused(tmp_path, name, turned):
  path = write(tmp_path, files.build_gguf(_set_scale(*NOT_FINITE[name])))
  file = gguf.open_gguf(path)
  out = np.empty((256, 3), np.float32).T if turned else None
  files.expect_refusal(
    path, lambda: gguf.read_tensor(file, "w", out), "'w' holds NaN or infin"
  )


def test_wrong_names_and_outputs_are_refused(tmp_path):
  path = write(tmp_path, files.build_gguf())
  file = gguf.open_gguf(path)
  for out, match in (
    (np.empty((6, 64)), "must be a float32 numpy array, got float64"),
    ([1.0], "must be a float32 numpy array, got list"),
    (np.empty((6, 63), np.float32), r"384 elements.* got \[6, 63\]"),
    (np.broadcast_to(np.float32(1), (6, 64)), "must be writable"),
  ):
    files.expect_refusal(
      path, lambda out=out: gguf.read_tensor(file, "a.weight", out), match
    )
  files.expect_refusal(
    path, lambda: gguf.read_tensor(file, "x\n"), r"no tensor 'x\\n'; it has 6"
  )


def test_a_file_cut_after_opening_is_refused(tmp_path):
  path = write(tmp_path, files.build_gguf())
  file = gguf.open_gguf(path)
  os.truncate(path, file.tensors["f.weight"].offset + 3)
  files.expect_refusal(
    path, lambda: gguf.read_tensor(file, "f.weight"), "bytes early"
  )


def test_a_hostile_name_stays_on_one_short_line(tmp_path):
  name = "x\n\x1b[2J" + "y" * 900
  path = write(tmp_path, files.build_gguf(**_with(0, name=name, type=4)))
  files.expect_refusal(path, lambda: load(path), re.escape(r"'x\n\x1b[2J"))


def test_the_largest_counts_allowed_do_not_hang(tmp_path, monkeypatch):
  item = files.Tensor("", Type.F32, (1,), bytes(32))
  count = gguf_header.MAX_TENSORS
  head = b"GGUF" + struct.pack("<IQQ", 3, count, 0)
  infos = []
  for index in range(count):
    item.name = f"{index:05d}"
    infos.append(item.info(32 * index))
  head += b"".join(infos)
  head += bytes(-len(head) % 32)
  path = write(tmp_path, head + bytes(32 * count))
  start = time.process_time()
  assert len(gguf.open_gguf(path).tensors) == count
  assert time.process_time() - start < 20  # about 1 s; quadratic is minutes
