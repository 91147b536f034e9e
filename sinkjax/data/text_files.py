"""A user's files of texts: those that are one text, and those that hold many.

| name | what it holds |
| --- | --- |
| `.jsonl`, `.ndjson` | a record on each line |
| `.json` | a list of records, or one on each line |
| `.parquet` | a column of texts |
| any other | one text |

A record is an object with a field of text, a list of messages, or a string.
Behind `.gz`, `.bz2` and `.xz` a file is decompressed. Other forms of data are
refused by name: read as one text, their syntax would become a part of it.
"""

import bz2
import codecs
import gzip
import json
import lzma
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from sinkjax import limits
from sinkjax.weights.chat import not_a_chat
from sinkjax.weights.validate import first_line

SUFFIXES = (".txt", ".md", ".rst")
"""Files that are one text, whatever it looks like; those of a folder."""

LINES, JSON, PARQUET = (".jsonl", ".ndjson"), ".json", ".parquet"

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

_LINES_OF = 'write a {"text": "..."} on each line of a .jsonl file'
_UNPACK = "unpack it and give the files in it"
_TEXT = "take the text out of it, into a .txt file"
REFUSED = {
  ".zst": "decompress it with `zstd -d` and give the result",
  ".lz4": "decompress it with `lz4 -d` and give the result",
  ".br": "decompress it with `brotli -d` and give the result",
  ".z": "decompress it with `uncompress` and give the result",
  **dict.fromkeys((".zip", ".7z", ".rar", ".tar", ".tgz"), _UNPACK),
  **dict.fromkeys((".csv", ".tsv", ".yaml", ".yml"), _LINES_OF),
  **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), _LINES_OF),
  **dict.fromkeys((".xls", ".xlsx", ".pkl", ".npy", ".npz", ".h5"), _LINES_OF),
  **dict.fromkeys((".pdf", ".docx", ".epub", ".html", ".xml"), _TEXT),
}
"""What to do with files of these names, which are not read."""

ROOM = 256 << 20
"""Bytes that any file may unpack to. A larger one may unpack to
`limits.UNPACKED` times its size: text compresses to a fifth, and what is far
beyond that could fill the memory from a file of some KB."""


class Record(NamedTuple):
  """A record of a file of many.

  Attributes:
    where: "line 3" or "record 3", counted from 1.
    value: of JSON; `None` where it is none.
    shown: how it begins.
    error: why it is no JSON, `None` where it is.
  """

  where: str
  value: Any
  shown: str
  error: str | None = None


def holds(path: pathlib.Path) -> str:
  """The suffix that says what a file holds, without that of compression.

  Raises:
    ValueError: for a name of a form that is not read, with what to do.

  >>> holds(pathlib.Path("a/b.JSONL.gz"))
  '.jsonl'
  """
  suffix = path.suffix.lower()
  inner = path.with_suffix("").suffix.lower() if suffix in PACKED else suffix
  for one in (suffix, inner):
    if one in REFUSED:
      raise ValueError(f"{path}: {one} files are not read: {REFUSED[one]}")
  if inner == PARQUET != suffix:
    raise ValueError(f"{path}: decompress it, Parquet compresses for itself")
  return inner


def read(
  path: pathlib.Path, most: int | None = None, *, characters: int | None = None
) -> str:
  """A file's text, decompressed where its name says that it must be.

  Args:
    path: the file.
    most: bytes that it may have.
    characters: how many are read; the rest of the file is left alone.

  Raises:
    ValueError: as `limits.read_text`, or for a file that cannot be
      decompressed, or that unpacks to more than it may.
  """
  opened = PACKED.get(path.suffix.lower())
  if opened is None:
    return limits.read_text(path, most, characters=characters)
  room = max(ROOM, limits.UNPACKED * limits.regular(path))
  room = min(room, room if most is None else most)
  if characters is not None:
    # No character has more than four bytes; a byte order mark has three.
    room = 4 * characters + 3
  try:
    with opened(path, "rb") as file:
      raw = file.read(room + 1)
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
    raise ValueError(
      f"{path}: cannot be decompressed: {first_line(error)}"
    ) from None
  whole = len(raw) <= room
  if characters is None and not whole:
    raise ValueError(
      f"{path} unpacks to more than {room} bytes; decompress it first and "
      "give the result"
    )
  decoder = codecs.getincrementaldecoder("utf-8-sig")()
  try:
    # A character that is cut where reading stopped is left out.
    text = decoder.decode(raw[:room], final=whole)
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error.reason}") from None
  return text if characters is None else text[:characters]


def one_text(path: pathlib.Path, *, characters: int | None = None) -> str:
  """A file that is one text.

  Raises:
    ValueError: as `read`, or for a file that holds data.
  """
  suffix = holds(path)
  if suffix in (*LINES, JSON, PARQUET):
    raise ValueError(
      f"{path}: a {suffix} file holds many texts, and one is read here; with "
      "the name .txt it would be read as it stands"
    )
  text = read(path, characters=characters)
  if suffix not in SUFFIXES and _is_json(text):
    raise ValueError(
      f"{path} looks like JSON: name it .jsonl or .json to have its records "
      "read, or .txt to have it read as it stands"
    )
  return text


def records(path: pathlib.Path, most: int | None = None) -> Iterator[Record]:
  """The records of a file of JSON, or of JSON lines.

  Args:
    path: the file.
    most: bytes that it may have.

  Raises:
    ValueError: as `read`.
  """
  text = read(path, most)
  if holds(path) == JSON:
    value, error = _parsed(text)
    if error is None:
      # An object alone is a file of one line.
      values = value if isinstance(value, list) else [value]
      for i, value in enumerate(values, 1):
        yield Record(f"record {i}", value, json.dumps(value)[:60])
      return
  # Not `splitlines`: a JSON string may hold U+2028 and other characters at
  # which that would cut a line.
  for i, line in enumerate(text.split("\n"), 1):
    if line.strip():
      value, error = _parsed(line)
      yield Record(f"line {i}", value, line[:60], error)


def documents(
  path: pathlib.Path, column: str, *, chats: bool = False
) -> list[Any]:
  """The documents of a user's file or folder.

  Args:
    path: of either.
    column: of the text in records and Parquet files.
    chats: read records with "messages" as chats.

  Raises:
    ValueError: for what cannot be read or holds no texts, naming it.
  """
  if path.is_dir():
    # A file system lists its files in any order, and the ids follow it.
    files = sorted(p for p in path.rglob("*") if _is_text(p))
    if not files:
      raise ValueError(
        f"{path} has no {', '.join(SUFFIXES)} files; give files of other "
        "kinds one by one"
      )
    return [read(file) for file in files]
  suffix = holds(path)
  if suffix in (*LINES, JSON):
    return [_document(path, r, column, chats) for r in records(path)]
  if suffix == PARQUET:
    return _parquet(path, column)
  return [one_text(path)]


def _is_text(path: pathlib.Path) -> bool:
  suffix = path.suffix.lower()
  if suffix in PACKED:
    suffix = path.with_suffix("").suffix.lower()
  return suffix in SUFFIXES


def _is_json(text: str) -> bool:
  """Whether a text is JSON, or its first line an object of JSON."""
  text = text.strip()
  if not text.startswith(("{", "[")):
    return False
  value, _ = _parsed(text.split("\n", 1)[0])
  return isinstance(value, dict) or _parsed(text)[1] is None


def _parsed(text: str) -> tuple[Any, str | None]:
  """(the value, `None`), or (`None`, what is wrong)."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    return None, first_line(error)
  # JSON may spell half of a character's surrogate pair, which is no text.
  if "\\ud" in text or "\\uD" in text:
    try:
      json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
      half = ord(error.object[error.start])
      return None, f"\\u{half:04x} is half of a surrogate pair, and no text"
  return value, None


def _document(
  path: pathlib.Path, record: Record, column: str, chats: bool
) -> Any:
  """A record's text, or with `chats` the messages of one that has some."""
  value, at = record.value, f"{path}, {record.where}"
  if isinstance(value, str):
    return value
  if chats and isinstance(value, dict) and "messages" in value:
    wrong = not_a_chat(value["messages"])
    if wrong or column in value:
      wrong = wrong or f"give {column!r} or 'messages', not both"
      raise ValueError(f"{at}: {wrong}")
    return value["messages"]
  if not isinstance(value, dict) or column not in value:
    raise ValueError(
      f"{at}: no JSON object with {column!r}: {record.error or record.shown}"
    )
  if not isinstance(value[column], str):
    kind = type(value[column]).__name__
    raise ValueError(f"{at}: {column!r} is {kind}, not text")
  return value[column]


def _parquet(path: pathlib.Path, column: str) -> list[str]:
  try:
    import pyarrow.parquet
  except ImportError:
    raise ValueError(
      f"{path}: reading Parquet needs pip install 'sinkjax[parquet]'"
    ) from None
  try:
    values = pyarrow.parquet.read_table(path, columns=[column])[column]
  except (KeyError, OSError, ValueError) as error:
    raise ValueError(f"{path}: {first_line(error)}") from None
  texts = values.to_pylist()
  if not all(isinstance(text, str) for text in texts):
    raise ValueError(f"{path}: column {column!r} is not all text")
  return texts
