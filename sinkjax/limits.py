"""Bounds on what is read, before memory or time is spent on it.

A file is opened only where it is a regular one: to open a pipe would wait for
its writer, and a device need not end. Its size is compared with a bound first,
and no more than that is read, whatever it grows to meanwhile.
"""

import codecs
import contextlib
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

CONFIG = 4 << 20
"""Bytes of a JSON file that describes a model or a run: published ones have
some KB. Python needs up to 24 bytes for a byte of JSON, of empty lists."""

TOKENIZER = 64 << 20
"""Bytes of a tokenizer's file: the largest that are published have 35 MB."""

TOKENS = 1 << 21
"""Ids of a vocabulary: the largest that are published have 262,144."""

MANIFEST = 64 << 20
"""Bytes of a list of arrays or files that we wrote ourselves."""

TEMPLATE = 1 << 20
"""Bytes of a chat template: published ones have tens of KB."""

PROMPTS = 256 << 20
"""Bytes of a file of prompts."""

PROMPT_LINES = 100_000
"""Lines of a file of prompts: a pass over so many takes a day on a CPU."""

A_TOKEN = 256
"""Characters that are read for a token of a text of which only the first tokens
are used. A token of text has four on average, and tokenizers join no more than
some hundred spaces."""

UNPACKED = 20
"""Bytes that a package unpacks to, for each byte of its announced size."""


@contextlib.contextmanager
def lacking(
  folder: str | os.PathLike, what: str, advice: str, *more: type[Exception]
) -> Iterator[None]:
  """Says of which files what is looked for in them is not there.

  A message that begins with the folder's name says so itself. What the system
  refuses, as a write to a full disk, is no fault of the files.

  Args:
    folder: of the files.
    what: they are, and what is wrong, in words.
    advice: what to do about it.
    *more: errors of looking into them, beside those of any value.

  Raises:
    ValueError: in place of these errors.
  """
  try:
    yield
  except (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    *more,
  ) as error:
    refused = isinstance(error.__cause__, OSError)
    if refused or str(error).startswith(str(folder)):
      raise
    raise ValueError(
      f"{what}: {type(error).__name__}: {error}; {advice}"
    ) from error


def regular(path: str | os.PathLike) -> int:
  """The size of a regular file.

  Raises:
    ValueError: for nothing, a folder, a pipe, a device, or what is out of
      reach, naming it.
  """
  try:
    state = os.stat(path)
  except FileNotFoundError:
    raise ValueError(f"{path}: no such file") from None
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: cannot be read: {_reason(error)}") from None
  if not stat.S_ISREG(state.st_mode):
    kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
    raise ValueError(f"{path}: cannot be read: it is {kind}")
  return state.st_size


def is_file_name(name: Any) -> bool:
  """Whether a name in a manifest leads to nowhere but the manifest's folder."""
  return isinstance(name, str) and pathlib.Path(name).name == name


def read_bytes(path: str | os.PathLike, most: int | None = None) -> bytes:
  """A file of at most so many bytes; of any size for `None`.

  Raises:
    ValueError: as `regular`, or for a file that is larger.
  """
  size = regular(path)
  if most is not None and size > most:
    raise ValueError(f"{path}: {size} bytes, at most {most} are read")
  return _first(path, size)


def read_text(
  path: str | os.PathLike,
  most: int | None = None,
  *,
  characters: int | None = None,
) -> str:
  """A text in UTF-8, without its byte order mark.

  Args:
    path: the file.
    most: bytes that it may have, `None` for any number.
    characters: how many are read, `None` for all; the rest of the file is left
      alone.

  Raises:
    ValueError: as `read_bytes`, or for bytes that are not UTF-8.
  """
  size = regular(path)
  if characters is None:
    raw = read_bytes(path, most)
  else:
    # No character has more than four bytes; a byte order mark has three.
    raw = _first(path, min(size, 4 * characters + 3))
  decoder = codecs.getincrementaldecoder("utf-8-sig")()
  try:
    # A character that is cut where reading stopped is left out.
    text = decoder.decode(raw, final=len(raw) >= size)
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error.reason}") from None
  return text if characters is None else text[:characters]


def read_json(path: str | os.PathLike, most: int = CONFIG) -> Any:
  """What a JSON file holds.

  Raises:
    ValueError: as `read_bytes`, or for a file that is not JSON.
  """
  raw = read_bytes(path, most)
  try:
    return json.loads(raw.decode("utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: not valid JSON: {error}") from None


def copy(source: BinaryIO, target: BinaryIO, most: int, what: str) -> None:
  """Copies a stream of at most so many bytes, as an archive unpacks it.

  Raises:
    ValueError: for a longer one, beginning with `what`.
  """
  left = most
  while part := source.read(1 << 20):
    left -= len(part)
    if left < 0:
      raise ValueError(f"{what} unpacks to more than {most} bytes")
    target.write(part)


def _first(path: str | os.PathLike, size: int) -> bytes:
  """The first bytes of a file, which may have grown since it was measured.

  Python allocates as much as is asked for, whatever the file holds.
  """
  try:
    with open(path, "rb") as file:
      return file.read(size)
  except OSError as error:
    raise ValueError(f"{path}: cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)
