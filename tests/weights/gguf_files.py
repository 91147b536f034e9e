"""Builds small weight files, valid by default and broken on request.

Written from the format descriptions with `struct` and `json` alone, so that
it shares no code with what it tests; `load_gguf` and `load_safetensors` are the
two that read with that code.
"""

import dataclasses
import json
import pathlib
import struct
import time

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value

from sinkjax.weights.formats import gguf as ours
from sinkjax.weights.formats import safetensors_io
from sinkjax.weights.validate import WeightsError

PACK = {
  Value.UINT8: "<B",
  Value.INT8: "<b",
  Value.UINT16: "<H",
  Value.INT16: "<h",
  Value.UINT32: "<I",
  Value.INT32: "<i",
  Value.FLOAT32: "<f",
  Value.BOOL: "<B",
  Value.UINT64: "<Q",
  Value.INT64: "<q",
  Value.FLOAT64: "<d",
}


def can_dequantize(type_: Type) -> bool:
  size = gguf.GGML_QUANT_SIZES[type_][1]
  try:
    gguf.quants.dequantize(np.zeros((1, size), np.uint8), type_)
  except NotImplementedError:
    return False
  return True


TYPES = [type_ for type_ in Type if can_dequantize(type_)]


def string(text: str | bytes) -> bytes:
  data = text.encode() if isinstance(text, str) else text
  return struct.pack("<Q", len(data)) + data


def payload(type_: Value, value) -> bytes:
  """The bytes of one metadata value; bytes are taken as they are."""
  if isinstance(value, bytes):
    return value
  if type_ == Value.STRING:
    return string(value)
  if type_ == Value.ARRAY:
    element, values = value
    parts = [struct.pack("<IQ", element, len(values))]
    return b"".join(parts + [payload(element, v) for v in values])
  return struct.pack(PACK[type_], value)


def pair(key: str | bytes, type_: int, value) -> bytes:
  return string(key) + struct.pack("<I", type_) + payload(type_, value)


@dataclasses.dataclass
class Tensor:
  """One tensor; `None` means the value that a valid file would have."""

  name: str | bytes
  type: int
  shape: tuple[int, ...]
  data: bytes
  offset: int | None = None
  dims: int | None = None

  def info(self, offset: int) -> bytes:
    dims = len(self.shape) if self.dims is None else self.dims
    offset = offset if self.offset is None else self.offset
    return (
      string(self.name)
      + struct.pack("<I", dims)
      + struct.pack(f"<{len(self.shape)}Q", *self.shape[::-1])
      + struct.pack("<IQ", self.type, offset)
    )


def finite_bytes(type_: Type, shape, seed: int = 0) -> bytes:
  """Random packed bytes of a type, blocks with NaN or inf zeroed."""
  block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
  count = int(np.prod(shape)) // block
  rng = np.random.default_rng(seed)
  raw = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
  with np.errstate(all="ignore"):
    values = gguf.quants.dequantize(raw, type_).reshape(count, block)
  raw[~np.isfinite(values).all(-1)] = 0
  return raw.tobytes()


def tensor(name: str, type_: Type, shape, seed: int = 0, **fields) -> Tensor:
  return Tensor(name, type_, shape, finite_bytes(type_, shape, seed), **fields)


def default_tensors() -> list[Tensor]:
  return [
    tensor("a.weight", Type.Q4_1, (6, 64), 1),
    tensor("b.weight", Type.F32, (7,), 2),
    tensor("c.weight", Type.F16, (3, 5), 3),
    tensor("d.weight", Type.Q6_K, (2, 256), 4),
    tensor("e.weight", Type.IQ4_NL, (2, 3, 32), 5),
    tensor("f.weight", Type.BF16, (1, 2, 3, 4), 6),
  ]


def default_pairs() -> list[bytes]:
  tokens = ["<s>", "a", "é", "", "日本"]
  return [
    pair("general.architecture", Value.STRING, "llama"),
    pair("llama.block_count", Value.UINT32, 2),
    pair("llama.rope.freq_base", Value.FLOAT32, 10000.0),
    pair("some.flag", Value.BOOL, 1),
    pair("some.long", Value.INT64, -5),
    pair("tokenizer.ggml.tokens", Value.ARRAY, (Value.STRING, tokens)),
    pair("tokenizer.ggml.scores", Value.ARRAY, (Value.FLOAT32, [0.5] * 5)),
    pair("tokenizer.ggml.token_type", Value.ARRAY, (Value.INT32, [1] * 5)),
    pair("tokenizer.ggml.merges", Value.ARRAY, (Value.STRING, ["a b"])),
    pair("some.bools", Value.ARRAY, (Value.BOOL, [1, 0])),
    pair(
      "some.nested",
      Value.ARRAY,
      (Value.ARRAY, [(Value.UINT8, [1, 2]), (Value.STRING, ["x"])]),
    ),
  ]


def build_gguf(
  tensors: list[Tensor] | None = None,
  pairs: list[bytes] | None = None,
  *,
  extra: list[bytes] = (),
  magic: bytes = b"GGUF",
  version: bytes = struct.pack("<I", 3),
  n_tensors: int | None = None,
  n_pairs: int | None = None,
  align: int = 32,
  tail: bytes | None = None,
) -> bytes:
  """A GGUF file; arguments left out make it valid."""
  tensors = default_tensors() if tensors is None else tensors
  pairs = [*(default_pairs() if pairs is None else pairs), *extra]
  n_tensors = len(tensors) if n_tensors is None else n_tensors
  n_pairs = len(pairs) if n_pairs is None else n_pairs
  head = magic + version + struct.pack("<QQ", n_tensors, n_pairs)
  head += b"".join(pairs)
  data = b""
  for index, item in enumerate(tensors):
    head += item.info(len(data))
    data += item.data
    if index < len(tensors) - 1 or tail is None:
      data += bytes(-len(data) % align)
  if tensors:
    head += bytes(-len(head) % align)
  return head + data + (tail or b"")


def safetensors_bytes(
  tensors: dict[str, np.ndarray] | None = None,
  *,
  header: object = None,
  data: bytes | None = None,
  length: int | None = None,
  pad: bytes = b"",
) -> bytes:
  """A safetensors file; `header` may be a dict or ready bytes."""
  valid, valid_data = safetensors_header(tensors or default_arrays())
  header = valid if header is None else header
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  header += pad
  length = len(header) if length is None else length
  data = valid_data if data is None else data
  return struct.pack("<Q", length) + header + data


NAMES = {
  "float32": "F32",
  "float16": "F16",
  "bfloat16": "BF16",
  "float64": "F64",
  "int64": "I64",
  "bool": "BOOL",
  "uint8": "U8",
}


def safetensors_header(tensors: dict[str, np.ndarray]) -> tuple[dict, bytes]:
  header, data = {"__metadata__": {"format": "pt"}}, b""
  for name, array in tensors.items():
    begin, data = len(data), data + array.tobytes()
    header[name] = {
      "dtype": NAMES[array.dtype.name],
      "shape": list(array.shape),
      "data_offsets": [begin, len(data)],
    }
  return header, data


def default_arrays() -> dict[str, np.ndarray]:
  import ml_dtypes

  rng = np.random.default_rng(0)
  return {
    "a": rng.normal(size=(4, 6)).astype(np.float32),
    "b": rng.normal(size=(5,)).astype(np.float16),
    "c": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16),
  }


def write_sharded(
  folder: pathlib.Path,
  shards: dict[str, dict[str, np.ndarray]] | None = None,
  weight_map: object = None,
) -> pathlib.Path:
  """A folder with shards and an index; returns the folder."""
  folder.mkdir(exist_ok=True)
  shards = shards or default_shards()
  found = {}
  for file, tensors in shards.items():
    (folder / file).write_bytes(safetensors_bytes(tensors))
    found |= dict.fromkeys(tensors, file)
  index = {
    "metadata": {"total_size": 1},
    "weight_map": found if weight_map is None else weight_map,
  }
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


def default_shards() -> dict[str, dict[str, np.ndarray]]:
  arrays = default_arrays()
  return {
    "model-00001-of-00002.safetensors": {k: arrays[k] for k in ("a", "b")},
    "model-00002-of-00002.safetensors": {"c": arrays["c"]},
  }


def expect_refusal(path, load, match: str) -> None:
  """`load()` raises one clear line about `path`, and soon."""
  start = time.process_time()
  with pytest.raises(WeightsError, match=match) as caught:
    load()
  assert time.process_time() - start < 10
  message = str(caught.value)
  assert message.isprintable(), "one line"
  assert len(message) < 600
  assert message.startswith(str(path)), message


INDEX = "model.safetensors.index.json"
FIRST, SECOND = default_shards()


def write(folder, data: bytes, name: str = "m.gguf"):
  path = folder / name
  path.write_bytes(data)
  return path


def write_safetensors(folder, data: bytes, name: str = "model.safetensors"):
  return write(folder, data, name)


def load_gguf(path):
  file = ours.open_gguf(path)
  return file, {name: ours.read_tensor(file, name) for name in file.tensors}


def load_safetensors(path):
  folder = safetensors_io.open_folder(path)
  return folder, {name: folder.read(name) for name in folder.tensors}


def check_default(values) -> None:
  """The arrays of the default safetensors file, as float32."""
  arrays = default_arrays()
  assert set(values) == set(arrays)
  for name, array in arrays.items():
    assert values[name].dtype == np.float32
    np.testing.assert_array_equal(values[name], array.astype(np.float32))
