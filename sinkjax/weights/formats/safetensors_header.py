"""The headers of safetensors files and their index, checked before use.

A file is `<u64 n> <n bytes of JSON> <data>`; the JSON maps names to
`{"dtype", "shape", "data_offsets": [begin, end]}`. The tensors must tile the
data exactly: no gap, no overlap, no byte left over.

Sharp edges: the limits are ours; the header limit is below the reference
reader's 100 MB so that a hostile header is refused within a second.

Source: the format description of the safetensors project.
"""

import json
import math
import struct
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from sinkjax.weights.formats import rawfile

# About 100 bytes a tensor: 160,000 of them, where large models have thousands.
MAX_HEADER = 16 << 20
# An object, two lists and at most eight commas a tensor, for 65,536 of them:
# counted before parsing, which takes time and memory for each.
_MAX_SIGNS = {b"{": 1 << 16, b"[": 1 << 17, b",": 1 << 19}
# Convolutions have four; a length of 2**48 is 280 TB at a byte an element.
MAX_DIMS = 4
MAX_LENGTH = 1 << 48
DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U64": np.dtype("<u8"),
  "U32": np.dtype("<u4"),
  "U16": np.dtype("<u2"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}
_FIELDS = {"dtype", "shape", "data_offsets"}


class _Repeated(ValueError):
  """A JSON object has the same key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    seen: set[str] = set()
    for key, _ in pairs:
      if key in seen:
        raise _Repeated(key)
      seen.add(key)
  return found


def _no_constant(name: str) -> NoReturn:
  raise ValueError(f"{name} is not JSON")


def parse_object(path: str, data: bytes, what: str) -> dict[str, Any]:
  """Strict JSON object: UTF-8, unique keys, no NaN, nothing after it."""
  if b"\x00" in data:
    rawfile.refuse(path, f"{what} holds NUL bytes; expected JSON text")
  for sign, limit in _MAX_SIGNS.items():
    if data.count(sign) > limit:
      rawfile.refuse(
        path, f"{what} is absurd: more than {limit} times {sign.decode()!r}"
      )
  try:
    found = json.loads(
      str(data, "utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
    )
  except UnicodeDecodeError as error:
    rawfile.refuse(path, f"{what} is not valid UTF-8 (byte {error.start})")
  except _Repeated as error:
    key = rawfile.show(error.args[0])
    rawfile.refuse(path, f"{what} has {key} twice; expected unique keys")
  except RecursionError:
    rawfile.refuse(path, f"{what} nests too deep; expected two levels")
  except ValueError as error:
    reason = rawfile.show(str(error), 120)
    rawfile.refuse(path, f"{what} is not valid JSON ({reason})")
  if not isinstance(found, dict):
    rawfile.refuse(
      path, f"{what} is a JSON {type(found).__name__}; expected an object"
    )
  return found


def read_header(path: str) -> tuple[dict[str, tuple], int]:
  """Reads and checks one file's header.

  Args:
    path: a safetensors file.

  Returns:
    {name: (dtype name, shape, absolute offset, bytes)}, and the file's size.

  Raises:
    WeightsError: with one line, for anything but a valid file.
  """
  size = rawfile.file_size(path)
  with rawfile.open_binary(path) as file:
    start = bytearray(min(9, size))
    rawfile.read_exact(file, memoryview(start), path)
    length = _header_length(path, bytes(start), size)
    text = bytearray(length)
    file.seek(8)
    rawfile.read_exact(file, memoryview(text), path)
  header = parse_object(path, bytes(text), "the header")
  _check_metadata(path, header.pop("__metadata__", {}))
  if not header:
    rawfile.refuse(path, "holds no tensors")
  data_start = 8 + length
  entries = {
    name: _entry(path, name, fields, size - data_start)
    for name, fields in header.items()
  }
  _check_tiling(path, entries, size - data_start)
  return {
    name: (dtype, shape, data_start + begin, end - begin)
    for name, (dtype, shape, begin, end) in entries.items()
  }, size


def _header_length(path: str, start: bytes, size: int) -> int:
  """Checks the first nine bytes; returns the length of the JSON."""
  if start[8:] != b"{" and rawfile.is_pickle_magic(start):
    rawfile.refuse_pickle(path)
  if start[:4] == b"GGUF":
    rawfile.refuse(path, "is a GGUF file; expected safetensors here")
  if size < 10:
    rawfile.refuse(path, f"is {size} bytes long, too short for a header")
  (length,) = struct.unpack("<Q", start[:8])
  if length > MAX_HEADER:
    rawfile.refuse(
      path, f"has a header of {length} bytes; expected at most {MAX_HEADER}"
    )
  if 8 + length > size:
    rawfile.refuse(path, f"has a header of {length} bytes; the file has {size}")
  if start[8:] != b"{":
    rawfile.refuse(
      path, f"has a header that starts with {start[8:]!r}; expected b'{{'"
    )
  return length


def _check_metadata(path: str, metadata: object) -> None:
  if not isinstance(metadata, dict) or not all(
    isinstance(value, str) for value in metadata.values()
  ):
    rawfile.refuse(path, "__metadata__ is not an object of strings")


def _naturals(values: object) -> bool:
  return isinstance(values, list) and all(
    type(value) is int and value >= 0 for value in values
  )


def _entry(path: str, name: str, fields: object, room: int):
  """One checked header entry: (dtype, shape, begin, end)."""
  what = f"tensor {rawfile.show(name)}"
  if not name or name.encode("utf-8", "ignore").decode() != name:
    rawfile.refuse(path, f"{what} has an empty or invalid Unicode name")
  if not isinstance(fields, dict) or set(fields) != _FIELDS:
    got = sorted(fields) if isinstance(fields, dict) else fields
    rawfile.refuse(
      path, f"{what} has {rawfile.show(got)}; expected {sorted(_FIELDS)}"
    )
  dtype, shape = fields["dtype"], fields["shape"]
  if not isinstance(dtype, str) or dtype not in DTYPES:
    rawfile.refuse(
      path,
      f"{what} has unknown dtype {rawfile.show(dtype)}; expected one of "
      + ", ".join(DTYPES),
    )
  _check_shape(path, what, shape)
  offsets = fields["data_offsets"]
  if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    rawfile.refuse(
      path,
      f"{what} has data_offsets {rawfile.show(offsets)}; expected "
      "[begin, end] with 0 <= begin <= end",
    )
  begin, end = offsets
  if end > room:
    rawfile.refuse(
      path,
      f"{what} ends at byte {rawfile.show(end)} of the data, which has {room}",
    )
  needed = math.prod(shape) * DTYPES[dtype].itemsize
  if end - begin != needed:
    rawfile.refuse(
      path,
      f"{what} has {end - begin} bytes; {dtype} of shape {shape} needs "
      f"{needed}",
    )
  return dtype, tuple(shape), begin, end


def _check_shape(path: str, what: str, shape: object) -> None:
  if not _naturals(shape):
    rawfile.refuse(
      path,
      f"{what} has shape {rawfile.show(shape)}; expected non-negative ints",
    )
  if len(shape) > MAX_DIMS:
    rawfile.refuse(
      path, f"{what} has {len(shape)} dimensions; expected at most {MAX_DIMS}"
    )
  if 0 in shape or any(length > MAX_LENGTH for length in shape):
    rawfile.refuse(
      path,
      f"{what} has shape {rawfile.show(shape)}; expected dimensions from 1 "
      "to 2**48",
    )


def _check_tiling(path: str, entries: dict[str, tuple], room: int) -> None:
  expected = 0
  for name, entry in sorted(entries.items(), key=lambda item: item[1][2]):
    begin, end = entry[2:]
    if begin != expected:
      fault = "overlaps another" if begin < expected else "leaves a gap"
      rawfile.refuse(
        path,
        f"tensor {rawfile.show(name)} begins at byte {begin} of the data "
        f"and {fault}; expected byte {expected}",
      )
    expected = end
  if expected != room:
    rawfile.refuse(
      path, f"has {room - expected} bytes after its tensors; expected none"
    )
