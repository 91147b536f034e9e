"""Atomic outputs: a reader sees the old file or the new one, never half.

Every function writes a temporary file in the folder of the target, syncs it
to disk and renames it. A failure leaves the old file and nothing else.

Files that are read seldom can be kept in one archive of their folder, ARCHIVE;
what reads here finds them there, and `tar -xJf` or `unpack` puts them back.
"""

import contextlib
import csv
import dataclasses
import errno
import functools
import io
import json
import lzma
import math
import numbers
import os
import secrets
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sinkjax import limits, unpacking

DIGITS = 7
"""Significant digits of a float in JSON and CSV: what float32 resolves."""

ARCHIVE = "recorded.tar.xz"
"""The archive of a folder."""


def plain(value: Any) -> Any:
  """What JSON can hold, without loss but for the digits of floats.

  Arrays (NumPy, JAX, any float width) become lists, scalars Python numbers,
  dataclasses and named tuples dicts, paths strings. NaN and infinities become
  `None`, as JSON has no word for them. Floats keep `DIGITS` digits.

  Raises:
    TypeError: for a value with no such form; the message names its type.

  >>> import numpy as np
  >>> plain({"rate": np.float32(0.1), "nll": [float("nan"), np.int64(3)]})
  {'rate': 0.1, 'nll': [None, 3]}
  """
  # Before the numbers: a bool is an integer in Python.
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, np.bool_):
    return bool(value)
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    return _rounded(float(value))
  if isinstance(value, Mapping):
    return {_key(k): plain(v) for k, v in value.items()}
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    names = [field.name for field in dataclasses.fields(value)]
    return {name: plain(getattr(value, name)) for name in names}
  if hasattr(value, "_asdict"):
    return plain(value._asdict())
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, list | tuple | range):
    return [plain(v) for v in value]
  if hasattr(value, "__array__"):
    return _plain_array(np.asarray(value))
  raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _key(key: Any) -> str:
  key = plain(key)
  return key if isinstance(key, str) else json.dumps(key)


def _rounded(value: float) -> float | None:
  return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _plain_array(array: np.ndarray) -> Any:
  """Lists of an array; bfloat16 and its like pass through float32."""
  if array.dtype.kind == "c":
    raise TypeError("cannot write complex numbers as JSON")
  if array.dtype.kind not in "biufSUO":
    try:
      array = array.astype(np.float32)
    except (TypeError, ValueError):
      raise TypeError(f"cannot write {array.dtype} as JSON") from None
  return plain(array.tolist())


def write_bytes(path: str | Path, data: bytes) -> Path:
  """Writes bytes atomically; missing folders are made.

  Args:
    path: where to.
    data: the whole content.

  Returns:
    The path.

  Raises:
    ValueError: where the folder or the file cannot be written.
  """
  path = Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, data)
  except OSError as error:
    reason = error.strerror or str(error)
    raise ValueError(f"cannot write {path}: {reason}") from error
  return path


def _replace(path: Path, data: bytes) -> None:
  # Beside the target: a rename is atomic within one file system only.
  temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
  # not `tempfile`: its files are private, ours obey the umask
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
  descriptor = os.open(temporary, flags, 0o666)
  try:
    with open(descriptor, "wb") as file:
      file.write(data)
      file.flush()
      # Otherwise a crash may leave the new name on an empty file.
      os.fsync(file.fileno())
    os.replace(temporary, path)
  # Ctrl-C is no Exception, and must leave no temporary file either.
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> Path:
  """Writes arrays by name as a compressed .npz file, atomically.

  Floats of JAX's own kinds (bfloat16, fp8) are widened to float32, which holds
  all of them: NumPy's format has no name for them, and would give back bytes.

  Raises:
    ValueError: where the file cannot be written.
  """
  out = io.BytesIO()
  np.savez_compressed(out, **{k: _named(x) for k, x in arrays.items()})
  return write_bytes(path, out.getvalue())


def _named(x: Any) -> np.ndarray:
  """An array of a kind that NumPy's format has a name for."""
  x = np.asarray(x)
  ours = x.dtype.kind == "V" and x.dtype.names is None
  return x.astype(np.float32) if ours else x


def read_npz(
  path: str | Path, most: int | None = None
) -> dict[str, np.ndarray]:
  """The arrays of an .npz file, also in an archive.

  Args:
    path: the file.
    most: bytes that all arrays may have; by default see `unpacking.ROOM`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for what is no such file, or has more bytes.
  """
  return unpacking.npz(path, read_bytes(path), most)


def write_text(path: str | Path, text: str) -> Path:
  """Writes text as UTF-8, atomically; line ends stay as they are.

  Half surrogate pairs, which no UTF-8 file can hold, become "?".
  """
  return write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: str | Path, value: Any) -> Path:
  """Writes `plain(value)` as JSON, atomically; a list of numbers is one line.

  Args:
    path: where to.
    value: dicts, lists, arrays, scalars; see `plain`.

  Returns:
    The path.

  Raises:
    TypeError: for a value with no JSON form.
    ValueError: where the file cannot be written.
  """
  return write_text(path, _json(plain(value)) + "\n")


def _json(value: Any, indent: str = "") -> str:
  """Indented JSON with what holds no lists and dicts on a line of its own."""
  line = functools.partial(json.dumps, allow_nan=False, ensure_ascii=False)
  inner = value.values() if isinstance(value, dict) else value
  flat = not isinstance(value, dict | list) or not any(
    isinstance(item, dict | list) for item in inner
  )
  text = line(value) if flat else ""
  if flat and (not isinstance(value, dict) or len(indent + text) <= 80):
    return text
  deeper = indent + "  "
  if isinstance(value, dict):
    items = [f"{line(k)}: {_json(v, deeper)}" for k, v in value.items()]
  else:
    items = [_json(item, deeper) for item in value]
  start, end = "{}" if isinstance(value, dict) else "[]"
  body = f",\n{deeper}".join(items)
  return f"{start}\n{deeper}{body}\n{indent}{end}"


def write_csv(
  path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Path:
  """Writes a table, atomically; NaN, infinities and `None` are empty cells.

  A text that a spreadsheet would run as a formula has a "'" before it, which
  `read_csv` takes away; numbers stay as they are.

  Args:
    path: where to.
    header: one name a column.
    rows: cells; strings, numbers or NumPy scalars.

  Returns:
    The path.

  Raises:
    ValueError: for a row of another length, or a file that cannot be written.
  """
  lines = [_line(header)]
  for i, row in enumerate(rows):
    cells = plain(list(row))
    if len(cells) != len(header):
      raise ValueError(
        f"row {i} has {len(cells)} cells, the header {len(header)}"
      )
    lines.append(_line(map(_cell_text, cells)))
  return write_text(path, "".join(lines))


def _line(cells: Iterable[Any]) -> str:
  """A row of a table, which ends with a line feed alone."""
  text = io.StringIO()
  # Characters of this end are quoted in cells, which readers need of both.
  csv.writer(text, lineterminator="\r\n").writerow(cells)
  return text.getvalue()[:-2] + "\n"


def _cell_text(value: Any) -> Any:
  """A plain value as a cell."""
  if isinstance(value, bool):
    return json.dumps(value)
  if isinstance(value, str) and _is_formula(value):
    return f"'{value}"
  return value


def _is_formula(text: str) -> bool:
  """Whether a cell would be run, or was kept from that."""
  start = text.lstrip("'")
  if len(start) < 2 or start[0] not in "=+-@\t\r":
    return False
  return not isinstance(_cell(text), int | float)


def read_csv(path: str | Path) -> tuple[list[str], list[list[Any]]]:
  """(header, rows) of a table that `write_csv` wrote, also in an archive.

  Cells that are numbers become numbers, empty ones `None`; the rest stay text.

  Raises:
    FileNotFoundError: if there is no such file.
  """
  text = read_bytes(path).decode("utf-8")
  header, *rows = csv.reader(io.StringIO(text, newline=""))
  return header, [[_cell(text) for text in row] for row in rows]


def _cell(text: str) -> Any:
  if text == "":
    return None
  if text.startswith("'") and _is_formula(text[1:]):
    return text[1:]
  # Integers first: `float` would take them as well.
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      pass
  return {"true": True, "false": False}.get(text, text)


def archive(contents: Mapping[str, bytes]) -> bytes:
  """An archive for a file named ARCHIVE, the same for the same contents.

  Args:
    contents: by path in the folder, with "/" between its parts.
  """
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
    for name, data in sorted(contents.items()):
      entry = tarfile.TarInfo(name)  # of no owner, and of the year 1970
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  return lzma.compress(out.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def archived(folder: str | Path) -> dict[Path, bytes]:
  """{path: content} of the files below a folder that an archive holds.

  The archive is the folder's own, or that of one of the two above it.
  """
  folder = Path(folder)
  for base in (folder, *folder.parents[:2]):
    if (base / ARCHIVE).is_file():
      state = (base / ARCHIVE).stat()
      found = _unpacked(base, state.st_ino, state.st_mtime_ns)
      return {p: data for p, data in found.items() if folder in p.parents}
  return {}


@functools.lru_cache(maxsize=8)
def _unpacked(base: Path, inode: int, changed: int) -> dict[Path, bytes]:
  """Files of an archive; `inode` and `changed` tell the cache of a new one.

  Raises:
    ValueError: as `unpacking.tar_xz`.
  """
  # All members at once: xz can only be read from its start.
  found = unpacking.tar_xz(base / ARCHIVE)
  return {base / name: data for name, data in found.items()}


def read_bytes(path: str | Path) -> bytes:
  """A file's content, from the archive if there is no such file.

  Raises:
    FileNotFoundError: if it is in neither.
    ValueError: for a folder, a pipe or a device, or one that is out of reach.
  """
  path = Path(path)
  if path.exists():
    return limits.read_bytes(path)
  found = archived(path.parent)
  if path not in found:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
  return found[path]


def files(folder: str | Path, suffix: str) -> list[Path]:
  """The files of a folder with a suffix, those of an archive among them."""
  folder = Path(folder)
  packed = (p for p in archived(folder) if p.parent == folder)
  found = {*folder.glob(f"*{suffix}"), *packed}
  return sorted(path for path in found if path.suffix == suffix)


def unpack(folder: str | Path) -> None:
  """Replaces the archive of a folder by the files that it holds.

  A file that is there already is newer, and stays.
  """
  folder = Path(folder)
  if not (folder / ARCHIVE).is_file():
    return
  for path, data in archived(folder).items():
    if not path.exists():
      write_bytes(path, data)
  # Last, so that an interruption loses nothing.
  (folder / ARCHIVE).unlink()


@contextlib.contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
  """`progress(steps done, steps in all)`, shown as a bar."""
  from tqdm import tqdm

  with tqdm(desc=name, unit="step", leave=False) as shown:

    def progress(done: int, total: int) -> None:
      shown.total = total
      shown.update(done - shown.n)

    yield progress
