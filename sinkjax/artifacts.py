"""Atomic outputs: a reader sees the old file or the new one, never half.

Every function writes a temporary file in the folder of the target, syncs it
to disk and renames it. A failure leaves the old file and nothing else.
"""

import contextlib
import csv
import dataclasses
import io
import json
import math
import numbers
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 7
"""Significant digits of a float in JSON and CSV: what float32 resolves."""


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
  temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
  # not `tempfile`: its files are private, ours obey the umask
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
  descriptor = os.open(temporary, flags, 0o666)
  try:
    with open(descriptor, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_npz(path: str | Path, arrays: Mapping[str, Any]) -> Path:
  """Writes arrays by name as a compressed .npz file, atomically.

  Raises:
    ValueError: where the file cannot be written.
  """
  out = io.BytesIO()
  np.savez_compressed(out, **arrays)
  return write_bytes(path, out.getvalue())


def write_text(path: str | Path, text: str) -> Path:
  """Writes text as UTF-8, atomically; line ends stay as they are.

  Half surrogate pairs, which no UTF-8 file can hold, become "?".
  """
  return write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: str | Path, value: Any) -> Path:
  """Writes `plain(value)` as indented JSON, atomically.

  Args:
    path: where to.
    value: dicts, lists, arrays, scalars; see `plain`.

  Returns:
    The path.

  Raises:
    TypeError: for a value with no JSON form.
    ValueError: where the file cannot be written.
  """
  text = json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)
  return write_text(path, text + "\n")


def write_csv(
  path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Path:
  """Writes a table, atomically; NaN, infinities and `None` are empty cells.

  Args:
    path: where to.
    header: one name a column.
    rows: cells; strings, numbers or NumPy scalars.

  Returns:
    The path.

  Raises:
    ValueError: for a row of another length, or a file that cannot be written.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(header)
  for i, row in enumerate(rows):
    cells = plain(list(row))
    if len(cells) != len(header):
      raise ValueError(
        f"row {i} has {len(cells)} cells, the header {len(header)}"
      )
    writer.writerow(
      [json.dumps(c) if isinstance(c, bool) else c for c in cells]
    )
  return write_text(path, text.getvalue())


def read_csv(path: str | Path) -> tuple[list[str], list[list[Any]]]:
  """(header, rows) of a table that `write_csv` wrote.

  Cells that are numbers become numbers, empty ones `None`; the rest stay text.
  """
  with open(path, newline="", encoding="utf-8") as stream:
    header, *rows = csv.reader(stream)
  return header, [[_cell(text) for text in row] for row in rows]


def _cell(text: str) -> Any:
  if text == "":
    return None
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      pass
  return {"true": True, "false": False}.get(text, text)


@contextlib.contextmanager
def folder(out: Path) -> Iterator[None]:
  """Makes `out`; a failure inside leaves no empty folder behind.

  Raises:
    ValueError: if it cannot be made.
  """
  new = not out.exists()
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"cannot make --out={out}: {error.strerror}") from None
  try:
    yield
  except BaseException:
    if new and not any(out.iterdir()):
      out.rmdir()
    raise


@contextlib.contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
  """`progress(steps done, steps in all)`, shown as a bar."""
  from tqdm import tqdm

  with tqdm(desc=name, unit="step", leave=False) as shown:

    def progress(done: int, total: int) -> None:
      shown.total = total
      shown.update(done - shown.n)

    yield progress
