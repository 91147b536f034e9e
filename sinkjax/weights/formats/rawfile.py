"""Files as untrusted bytes: what may be opened, and exact reads from it.

Everything below raises `WeightsError` with one line that starts with the
path. Names that come out of a file are shown as a cut `repr`, so a hostile
name can neither break the line nor fill the screen.
"""

import os
import stat
from typing import BinaryIO, NoReturn

from sinkjax.weights.validate import WeightsError

ACCEPTED = "safetensors and GGUF files are accepted"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")


def show(value: object, limit: int = 80) -> str:
  """A one-line `repr` of `value`, cut in the middle past `limit`."""
  if isinstance(value, str | bytes) and len(value) > 4 * limit:
    value = value[: 4 * limit]
  try:
    text = repr(value)
  except RecursionError:
    text = f"a deeply nested {type(value).__name__}"
  if len(text) <= limit:
    return text
  return f"{text[: limit - 12]}...{text[-8:]}"


def refuse(path: str | os.PathLike, message: str) -> NoReturn:
  """Raises the one-line `WeightsError` for `path`."""
  shown = os.fspath(path)
  if not isinstance(shown, str) or not shown.isprintable():
    shown = show(shown, 300)
  raise WeightsError(f"{shown}: {message}")


def is_pickle_name(name: str) -> bool:
  """Whether the file name is one that torch gives to pickles."""
  return name.lower().endswith(_PICKLE_SUFFIXES)


def is_pickle_magic(start: bytes) -> bool:
  """Whether the first bytes are those of a pickle or of a zip archive."""
  pickled = len(start) > 1 and start[0] == 0x80 and 1 <= start[1] <= 5
  return pickled or start[:4] in _ZIP_MAGICS


def refuse_pickle(path: str | os.PathLike) -> NoReturn:
  """Says that pickles are never read, and what is."""
  refuse(
    path,
    "is a pickle (or is named like one), which can run code when read "
    f"and never is; {ACCEPTED}",
  )


def file_size(path: str | os.PathLike) -> int:
  """Size in bytes of a regular, non-empty file that is not a pickle by name.

  Raises:
    WeightsError: nothing there, a folder, a pipe or device, no permission,
      zero bytes, or the name of a pickle.
  """
  if not isinstance(path, str | os.PathLike) or isinstance(
    os.fspath(path), bytes
  ):
    raise WeightsError(
      f"expected a path as str or os.PathLike of str, got {show(path)}"
    )
  try:
    info = os.stat(path)
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or str(error)
    refuse(path, f"cannot be opened ({reason}); expected a weight file")
  if stat.S_ISDIR(info.st_mode):
    refuse(path, "is a folder; expected a single weight file")
  if not stat.S_ISREG(info.st_mode):
    refuse(path, "is not a regular file; expected a weight file")
  if is_pickle_name(os.fspath(path)):
    refuse_pickle(path)
  if not info.st_size:
    refuse(path, f"is empty (0 bytes); {ACCEPTED}")
  return info.st_size


def open_binary(path: str | os.PathLike) -> BinaryIO:
  """Opens for unbuffered reading; an `OSError` becomes one line."""
  try:
    return open(path, "rb", buffering=0)
  except OSError as error:
    refuse(path, f"cannot be read ({error.strerror})")


def read_exact(file: BinaryIO, view: memoryview, path: str) -> None:
  """Fills `view` from the file's position, or refuses a file cut short."""
  done = 0
  while done < len(view):
    try:
      got = file.readinto(view[done:])
    except OSError as error:
      refuse(path, f"read failed ({error.strerror})")
    if not got:
      refuse(
        path,
        f"ends {len(view) - done} bytes early; it was changed or cut "
        "after its header was read",
      )
    done += got
