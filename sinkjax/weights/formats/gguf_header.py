"""The header of a GGUF file, checked field by field before it is believed.

The file is hostile until proven otherwise: every count is compared with the
bytes that are left before anything is allocated or looped over, and the
bytes of the tensors must tile the rest of the file exactly. Only the header
is read.

Sharp edges: the limits below are ours, not the format's; each is several
times what the largest published models need.

Source: the GGUF specification (ggml/docs/gguf.md), versions 2 and 3.
"""

import math
import struct
from typing import Any, BinaryIO, NoReturn

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from sinkjax.weights.formats import rawfile

# Vocabularies fill a header: 262,144 tokens with scores, types and as many
# merges are about 15 MB, half a million strings.
MAX_HEADER = 64 << 20
MAX_STRINGS = 1 << 21
MAX_NUMBERS = 1 << 24
# The longest strings are chat templates, tens of KB.
MAX_STRING = 1 << 20
# The specification's own limit; of names it allows 64 bytes.
MAX_KEY = 65_535
MAX_NAME = 1024
# A model has some 50 pairs and 10 tensors a layer, of experts a few more.
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
# No key of llama.cpp nests arrays; those that do become lists in lists.
MAX_NESTED = 1 << 14
MAX_DEPTH = 3
# Files have 32, and the gguf package would follow one of 2**31.
MAX_ALIGNMENT = 1 << 20
# Bytes: the header of a vocabulary of 49,152 tokens comes in one read.
_FIRST_READ = 2 << 20

_NUMBERS = {
  GGUFValueType.UINT8: "<u1",
  GGUFValueType.INT8: "<i1",
  GGUFValueType.UINT16: "<u2",
  GGUFValueType.INT16: "<i2",
  GGUFValueType.UINT32: "<u4",
  GGUFValueType.INT32: "<i4",
  GGUFValueType.FLOAT32: "<f4",
  GGUFValueType.BOOL: "<u1",
  GGUFValueType.UINT64: "<u8",
  GGUFValueType.INT64: "<i8",
  GGUFValueType.FLOAT64: "<f8",
}
_TEXT = (GGUFValueType.STRING,)
_REAL = (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64)
_INTEGER = tuple(
  type_
  for type_, code in _NUMBERS.items()
  if code[1] in "iu" and type_ != GGUFValueType.BOOL
)
_ARRAY_KEYS = {
  "tokenizer.ggml.tokens": _TEXT,
  "tokenizer.ggml.merges": _TEXT,
  "tokenizer.ggml.scores": _REAL,
  "tokenizer.ggml.token_type": _INTEGER,
}
_SCALAR_KEYS = {
  "general.architecture": _TEXT,
  "general.alignment": (GGUFValueType.UINT32,),
}


class Reader:
  """A bounds-checked cursor over the start of a file."""

  def __init__(self, path: str, file: BinaryIO, size: int):
    self.path, self.size = path, size
    self.position = 0
    self._file = file
    self._data = b""
    self._strings = 0
    self._nested = 0

  def fail(self, message: str) -> NoReturn:
    """Raises the one-line `WeightsError` of this file."""
    rawfile.refuse(self.path, message)

  def need(self, count: int, what: str) -> None:
    """Makes `count` more bytes available, or refuses the file."""
    end = self.position + count
    if end <= len(self._data):
      return
    if end > self.size:
      self.fail(
        f"{what} needs {count} bytes at byte {self.position}, but the file "
        f"ends at byte {self.size}"
      )
    if end > MAX_HEADER:
      self.fail(f"{what} runs past the header limit of {MAX_HEADER} bytes")
    aim = min(max(_FIRST_READ, 2 * len(self._data), end), self.size)
    more = bytearray(min(aim, MAX_HEADER) - len(self._data))
    rawfile.read_exact(self._file, memoryview(more), self.path)
    self._data += more

  def take(self, count: int, what: str) -> bytes:
    """The next `count` bytes."""
    self.need(count, what)
    start, self.position = self.position, self.position + count
    return self._data[start : self.position]

  def u32(self, what: str) -> int:
    """An unsigned 32-bit integer."""
    return int.from_bytes(self.take(4, what), "little")

  def u64(self, what: str) -> int:
    """An unsigned 64-bit integer."""
    return int.from_bytes(self.take(8, what), "little")

  def text(self, what: str, limit: int = MAX_STRING) -> str:
    """A length-prefixed UTF-8 string of at most `limit` bytes."""
    length = self.u64(what)
    if length > limit:
      self.fail(f"{what} is {length} bytes long; expected at most {limit}")
    return self._decode(self.take(length, what), what)

  def _decode(self, data: bytes, what: str) -> str:
    try:
      return str(data, "utf-8")
    except UnicodeDecodeError as error:
      self.fail(f"{what} is not valid UTF-8 (byte {error.start})")

  def count(self, value: int, each: int, limit: int, what: str) -> int:
    """Checks a count of things of at least `each` bytes; returns it."""
    left = self.size - self.position
    if value > limit:
      self.fail(f"{what}: count {value}; expected at most {limit}")
    if value * each > left:
      self.fail(
        f"{what}: count {value} needs at least {value * each} bytes, but "
        f"{left} are left in the file"
      )
    return value

  def texts(self, count: int, what: str) -> list[str]:
    """`count` strings, in a loop that is tight but checks every bound."""
    self._strings += self.count(count, 8, MAX_STRINGS, what)
    if self._strings > MAX_STRINGS:
      self.fail(f"{what}: more than {MAX_STRINGS} array strings in the file")
    found: list[str] = []
    append, unpack = found.append, struct.Struct("<Q").unpack_from
    data, position, end = self._data, self.position, len(self._data)
    try:
      for _ in range(count):
        start = position + 8
        if start > end:
          self.position = position
          self.need(8, what)
          data, end = self._data, len(self._data)
        stop = start + unpack(data, position)[0]
        if stop > end or stop - start > MAX_STRING:
          self.position = start
          if stop - start > MAX_STRING:
            self.fail(
              f"{what}: string {len(found)} is {stop - start} bytes long; "
              f"expected at most {MAX_STRING}"
            )
          self.need(stop - start, what)
          data, end = self._data, len(self._data)
        append(str(data[start:stop], "utf-8"))
        position = stop
    except UnicodeDecodeError:
      self.fail(f"{what}: string {len(found)} is not valid UTF-8")
    self.position = position
    return found

  def value_type(self, what: str) -> GGUFValueType:
    """A metadata value type."""
    code = self.u32(what)
    try:
      return GGUFValueType(code)
    except ValueError:
      self.fail(f"{what} has value type {code}; expected 0 to 12")

  def number(self, type_: GGUFValueType, what: str) -> int | float | bool:
    """One number, as a Python scalar."""
    dtype = np.dtype(_NUMBERS[type_])
    value = np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
    if type_ != GGUFValueType.BOOL:
      return value
    if value > 1:
      self.fail(f"{what} is a bool stored as {value}; expected 0 or 1")
    return bool(value)

  def numbers(self, type_: GGUFValueType, count: int, what: str):
    """`count` numbers, as a numpy array of their own type."""
    dtype = np.dtype(_NUMBERS[type_])
    self.count(count, dtype.itemsize, MAX_NUMBERS, what)
    data = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
    if type_ != GGUFValueType.BOOL:
      return data.astype(dtype.newbyteorder("="))
    if count and data.max() > 1:
      self.fail(f"{what} has a bool stored as {data.max()}; expected 0 or 1")
    return data.astype(np.bool_)

  def array(self, what: str, depth: int = 1) -> tuple[Any, GGUFValueType]:
    """An array, as list[str], numpy array or nested list; and its type."""
    if depth > MAX_DEPTH:
      self.fail(f"{what} nests arrays deeper than {MAX_DEPTH} levels")
    type_ = self.value_type(f"{what} (array elements)")
    count = self.u64(what)
    if type_ == GGUFValueType.STRING:
      return self.texts(count, what), type_
    if type_ != GGUFValueType.ARRAY:
      return self.numbers(type_, count, what), type_
    self._nested += self.count(count, 12, MAX_NESTED, what)
    if self._nested > MAX_NESTED:
      self.fail(f"{what}: more than {MAX_NESTED} nested arrays in the file")
    return [self.array(what, depth + 1)[0] for _ in range(count)], type_

  def value(self, key: str) -> Any:
    """One metadata value; keys we know must have the type we know."""
    what = f"metadata {rawfile.show(key)}"
    type_ = self.value_type(what)
    if type_ == GGUFValueType.ARRAY:
      value, element = self.array(what)
      self._expect(key, element, _ARRAY_KEYS, "array of ", _SCALAR_KEYS)
      return value
    self._expect(key, type_, _SCALAR_KEYS, "", _ARRAY_KEYS)
    if type_ == GGUFValueType.STRING:
      return self.text(what)
    return self.number(type_, what)

  def _expect(
    self,
    key: str,
    type_: GGUFValueType,
    known: dict[str, tuple[GGUFValueType, ...]],
    prefix: str,
    others: dict[str, tuple[GGUFValueType, ...]],
  ) -> None:
    """Refuses a known key of another type, or an array for a value."""
    if key in others:
      wanted = "a single value" if prefix else "an array"
      self.fail(
        f"metadata {key} is {prefix or 'a single '}{type_.name}; "
        f"expected {wanted} of {_names(others[key])}"
      )
    if key in known and type_ not in known[key]:
      self.fail(
        f"metadata {key} is {prefix}{type_.name}; "
        f"expected {prefix}{_names(known[key])}"
      )


def _names(types: tuple[GGUFValueType, ...]) -> str:
  return " or ".join(type_.name for type_ in types)


def read_version(reader: Reader) -> int:
  """Checks magic, version and byte order; returns the version."""
  magic = reader.take(min(4, reader.size), "the magic")
  if rawfile.is_pickle_magic(magic):
    rawfile.refuse_pickle(reader.path)
  if magic != b"GGUF":
    reader.fail(f"starts with {magic!r}; expected b'GGUF'")
  raw = reader.take(4, "the version")
  version = int.from_bytes(raw, "little")
  if version not in (2, 3) and int.from_bytes(raw, "big") in (1, 2, 3):
    reader.fail("is a big-endian GGUF; only little-endian is supported")
  if version not in (2, 3):
    reader.fail(f"is GGUF version {version}; expected 2 or 3")
  return version


def read_metadata(reader: Reader, count: int) -> dict[str, Any]:
  """Reads `count` key-value pairs; keys are unique and not empty."""
  metadata: dict[str, Any] = {}
  for index in range(count):
    key = reader.text(f"metadata key {index}", MAX_KEY)
    if not key or key in metadata:
      reader.fail(
        f"metadata key {rawfile.show(key)} is "
        + ("there twice" if key else f"empty (number {index})")
      )
    metadata[key] = reader.value(key)
  return metadata


def alignment(reader: Reader, metadata: dict[str, Any]) -> int:
  """The alignment of tensor data: a power of two, 1 to 1 MiB."""
  value = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
  if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
    reader.fail(
      f"general.alignment is {value}; expected a power of two up to "
      f"{MAX_ALIGNMENT}"
    )
  return value


def read_tensor_info(reader: Reader, index: int):
  """One tensor's (name, shape, type, relative offset, bytes), checked."""
  name = reader.text(f"the name of tensor {index}", MAX_NAME)
  what = f"tensor {rawfile.show(name)}"
  if not name:
    reader.fail(f"tensor {index} has an empty name")
  dims = reader.u32(f"{what} (dimensions)")
  if not 1 <= dims <= 4:
    reader.fail(f"{what} has {dims} dimensions; expected 1 to 4")
  shape = tuple(reader.u64(f"{what} (shape)") for _ in range(dims))[::-1]
  type_ = _tensor_type(reader, reader.u32(f"{what} (type)"), what)
  offset = reader.u64(f"{what} (offset)")
  if 0 in shape:
    reader.fail(f"{what} has shape {list(shape)}; expected no zero dimension")
  block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
  if shape[-1] % block:
    reader.fail(
      f"{what} has rows of {shape[-1]}; {type_.name} needs a multiple of "
      f"{block}"
    )
  n_bytes = math.prod(shape) // block * block_bytes
  if n_bytes > reader.size:
    reader.fail(
      f"{what} of shape {list(shape)} and type {type_.name} needs {n_bytes} "
      f"bytes; the whole file has {reader.size}"
    )
  return name, shape, type_, offset, n_bytes


def _tensor_type(reader: Reader, code: int, what: str):
  try:
    type_ = GGMLQuantizationType(code)
  except ValueError:
    type_ = None
  if type_ is None or type_ not in gguf.GGML_QUANT_SIZES:
    reader.fail(f"{what} has quantisation type {code}, which is unknown")
  return type_


def check_layout(reader: Reader, infos: list, align: int) -> int:
  """Checks that the tensors tile the data; returns where the data starts."""
  start = -(-reader.position // align) * align
  expected = start
  end = reader.position
  for name, _, type_, offset, n_bytes in sorted(infos, key=lambda t: t[3]):
    what = f"tensor {rawfile.show(name)}"
    if offset % align:
      reader.fail(f"{what} has offset {offset}, not a multiple of {align}")
    begin, end = start + offset, start + offset + n_bytes
    if end > reader.size:
      reader.fail(
        f"{what} ({type_.name}) lies at bytes {begin} to {end}; the file "
        f"ends at byte {reader.size}"
      )
    if begin < expected:
      reader.fail(
        f"{what} has offset {offset} and overlaps another tensor; expected "
        f"{expected - start}"
      )
    if begin > expected:
      reader.fail(
        f"{what} has offset {offset}, leaving a gap; expected "
        f"{expected - start}"
      )
    expected = -(-end // align) * align
  if reader.size not in (end, expected):
    reader.fail(
      f"has {reader.size - end} bytes after its tensors; expected none or "
      f"{expected - end} of padding"
    )
  return start
