"""Folders that a command writes to: one command at a time, all or as before.

A command that fails leaves a folder as it found it, but for what its next start
goes on from. What a killed command left beside a folder is cleared by the next
one that wants the place.
"""

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator

LOCK = ".lock"

UNFINISHED = "." + 16 * "[0-9a-f]" + ".tmp"
"""Files that `artifacts` has not yet given their names."""


@contextlib.contextmanager
def folder(out: pathlib.Path) -> Iterator[None]:
  """Makes `out`; a failure inside leaves no empty folder that it made.

  Raises:
    ValueError: if it cannot be made.
  """
  made = _make(out)
  try:
    yield
  except BaseException:
    _unmake(made)
    raise


@contextlib.contextmanager
def alone(
  out: pathlib.Path,
  *,
  keeps: Callable[[pathlib.Path], bool] = lambda path: False,
  wait: bool = False,
) -> Iterator[None]:
  """Makes and locks a folder; a failure inside takes away what is new in it.

  The system drops the lock when its process ends, however that happens, so
  that none is left behind by a crash.

  Args:
    out: the folder.
    keeps: whether a new file or folder of it stays after a failure, because
      the next start goes on from there.
    wait: for another process that has the folder, instead of refusing.

  Raises:
    ValueError: if another process holds it, or it cannot be made.
  """
  made = _make(out)
  try:
    with _locked(out, wait):
      for path in out.glob(UNFINISHED):
        remove(path)  # of a killed command: who writes here now holds the lock
      before = set(os.listdir(out))
      try:
        yield
      except BaseException:
        for name in sorted(set(os.listdir(out)) - before):
          if not keeps(out / name):
            remove(out / name)
        raise
  except BaseException:
    _unmake(made)
    raise


@contextlib.contextmanager
def workspace(path: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
  """An empty folder that no other process has, and that is gone afterwards.

  Args:
    path: the same for all who would do the same work, so that what a killed
      one left is found, and cleared.
    wait: as for `alone`.

  Raises:
    ValueError: as `alone`.
  """
  with alone(path, wait=wait):
    clear(path)
    try:
      yield
    finally:
      clear(path)
  with contextlib.suppress(OSError):  # another may wait for it
    path.rmdir()


def clear(path: pathlib.Path) -> None:
  """Removes all that a folder holds but for its lock."""
  for name in os.listdir(path):
    if name != LOCK:
      remove(path / name)


def remove(path: pathlib.Path) -> None:
  """Removes a file, a link or a whole folder, as far as that is possible."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()


def _make(out: pathlib.Path) -> list[pathlib.Path]:
  """Makes a folder; those that were missing, the deepest first."""
  missing = [p for p in (out, *out.parents) if not p.exists()]
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    _unmake(missing)
    reason = error.strerror or error
    raise ValueError(f"cannot make the folder {out}: {reason}") from None
  return missing


def _unmake(made: list[pathlib.Path]) -> None:
  for path in made:
    with contextlib.suppress(OSError):  # it holds something
      path.rmdir()


@contextlib.contextmanager
def _locked(out: pathlib.Path, wait: bool) -> Iterator[None]:
  import fcntl

  path = out / LOCK
  while True:
    try:
      descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except FileNotFoundError:  # its last holder has taken the folder away
      out.mkdir(parents=True, exist_ok=True)
      continue
    except OSError as error:
      raise ValueError(f"cannot write to {out}: {error.strerror}") from None
    with open(descriptor, "w") as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        if not wait:
          raise ValueError(
            f"another process is writing to {out}; wait for it, stop it, or "
            "choose another folder"
          ) from None
        print(f"waiting for another process: {out}", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
      # The file may have been removed by its former holder just before it was
      # locked here; then it keeps nobody else out.
      try:
        if os.stat(path).st_ino != os.fstat(lock.fileno()).st_ino:
          continue
      except FileNotFoundError:
        continue
      try:
        yield
      finally:
        path.unlink(missing_ok=True)
      return
