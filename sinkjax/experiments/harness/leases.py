"""Who works on what, among processes that share a folder, on any hosts.

A lease is a file that names its holder and that the holder renews. It ends with
the work; that of a process that has died is taken over: at once where the
process is known to be gone, as on one's own host, and otherwise when the file
has not been renewed for `EXPIRES` seconds, counted by the clock of whoever
waits, so that clocks of hosts need not agree. Leases of one piece of work are
numbered and the highest holds: a takeover is the creation of the next number,
which a shared file system gives to one process alone.
"""

import contextlib
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sinkjax import artifacts, limits

BEAT = 15.0
"""Seconds between renewals: a small file, seldom enough for a shared disk."""

EXPIRES = 120.0
"""Seconds without renewal after which a holder counts as dead: eight renewals,
and twice the minute for which network file systems may show an old file."""


WAIT = 2.0
"""Seconds between two looks at what others work on: little beside work of
minutes, and no load on a shared disk."""


class TakenOverError(Exception):
  """Another process has taken the work over, so this one drops it."""


class Lease:
  """One's own hold on a piece of work, renewed by a thread until it is let go.

  Attributes:
    lost: whether another process has taken over, as after a long sleep.
  """

  def __init__(self, base: pathlib.Path, number: int):
    self.lost = False
    self._base, self._number = base, number
    self._about = {**_here(), "token": uuid.uuid4().hex, "beat": 0}
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._write()
    self._thread.start()

  def require(self) -> None:
    """Returns while the work is one's own.

    Raises:
      TakenOverError: once it is another's.
    """
    if self.lost:
      raise TakenOverError(self._base.name)

  def release(self) -> None:
    """Lets the work go; another's lease stays."""
    self._over.set()
    self._thread.join()
    for path in _leases(self._base):
      if _number(path) < self._number or self._is_own(path):
        path.unlink(missing_ok=True)

  def _is_own(self, path: pathlib.Path) -> bool:
    return _read(path).get("token") == self._about["token"]

  def _renew(self) -> None:
    while not self._over.wait(BEAT):
      if any(_number(path) > self._number for path in _leases(self._base)):
        self.lost = True
        return
      self._about["beat"] += 1
      # A disk that is full for a moment ends no run: the next beat may pass.
      with contextlib.suppress(OSError, ValueError):
        self._write()

  def _write(self) -> None:
    artifacts.write_json(_path(self._base, self._number), self._about)


class Watch:
  """What a process has seen of others' leases, to tell when they expire."""

  def __init__(self) -> None:
    self._seen: dict[pathlib.Path, tuple[Any, float]] = {}
    self._told: set[str] = set()

  @contextlib.contextmanager
  def hold(self, base: pathlib.Path) -> Iterator[Lease | None]:
    """One's own lease of `base` while the block lasts, `None` if another's.

    Args:
      base: a path; leases are files beside it whose names begin with its name.

    Raises:
      ValueError: where no file can be written.
    """
    lease = self._take(base)
    try:
      yield lease
    finally:
      if lease is not None:
        lease.release()

  def tell(self, base: pathlib.Path) -> None:
    """Says, once, for whom this process waits and what that one works on."""
    found = _leases(base)
    about = _read(found[-1]) if found else {}
    if "process" not in about:
      return
    who = f"process {about['process']} of host {about['host']}"
    text = f"waiting for {who}, which works on {base.name}"
    if text not in self._told:
      self._told.add(text)
      print(text, file=sys.stderr)

  def _take(self, base: pathlib.Path) -> Lease | None:
    found = _leases(base)
    if found and self._is_alive(found[-1]):
      return None
    number = _number(found[-1]) + 1 if found else 1
    try:
      flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
      os.close(os.open(_path(base, number), flags, 0o666))
    except FileExistsError:  # another was first
      return None
    except OSError as error:
      raise ValueError(
        f"cannot write to {base.parent}: {error.strerror}"
      ) from None
    try:
      return Lease(base, number)
    except BaseException:  # an empty lease would keep others waiting
      _path(base, number).unlink(missing_ok=True)
      raise

  def _is_alive(self, path: pathlib.Path) -> bool:
    about, now = _read(path), time.monotonic()
    if _is_gone(about):
      return False
    known, since = self._seen.get(path, (None, now))
    if known != about:
      since = now
    self._seen[path] = about, since
    return now - since < EXPIRES


def share(
  folder: pathlib.Path,
  names: Sequence[str],
  is_missing: Callable[[str], bool],
  work: Callable[[str], Any],
) -> None:
  """Does each piece of work that no other process does, and awaits the rest.

  Args:
    folder: that the processes share.
    names: of the pieces, in the order in which they are taken.
    is_missing: whether a piece is still to be done, asked while it is held.
    work: does a piece.

  Raises:
    ValueError: where no file can be written.
  """
  watch, left = Watch(), list(names)
  while left:
    before = len(left)
    for name in list(left):
      with watch.hold(folder / name) as lease:
        if lease is None:
          continue
        if is_missing(name):
          work(name)
        left.remove(name)
    if len(left) == before:
      for name in left:
        watch.tell(folder / name)
      time.sleep(WAIT)


def _here() -> dict[str, Any]:
  """What tells this process from every other one."""
  return {
    "host": socket.gethostname(),
    # Containers of one machine may share its name, and number processes anew.
    "kernel": [_text("/proc/sys/kernel/random/boot_id"), _link("pid")],
    "process": os.getpid(),
    "began": _began(os.getpid()),
  }


def _is_gone(about: dict[str, Any]) -> bool:
  """Whether a holder is known to have ended; of other hosts nothing is."""
  own = _here()
  if any(about.get(key) != own[key] for key in ("host", "kernel")):
    return False
  try:
    os.kill(about["process"], 0)
  except ProcessLookupError:
    return True
  except OSError:  # of another user
    return False
  # The number may be in use again, by a process that began later.
  return about["began"] != _began(about["process"])


def _began(process: int) -> str | None:
  """When a process began, in the kernel's ticks; `None` where it cannot say."""
  # The name, in parentheses, may hold spaces; the 20th field behind it.
  found = (_text(f"/proc/{process}/stat") or "").rpartition(")")[2].split()
  return found[19] if len(found) > 19 else None


def _text(path: str) -> str | None:
  try:
    return pathlib.Path(path).read_text().strip()
  except OSError:  # no Linux, or no such process
    return None


def _link(kind: str) -> str | None:
  try:
    return os.readlink(f"/proc/self/ns/{kind}")
  except OSError:
    return None


def _path(base: pathlib.Path, number: int) -> pathlib.Path:
  return base.parent / f"{base.name}.lease-{number:06d}"


def _number(path: pathlib.Path) -> int:
  return int(path.name.rpartition("-")[2])


def _leases(base: pathlib.Path) -> list[pathlib.Path]:
  """The lease files of `base`, the one that holds last."""
  prefix = f"{base.name}.lease-"
  names = [x for x in os.listdir(base.parent) if x.startswith(prefix)]
  return [base.parent / x for x in sorted(names) if x[len(prefix) :].isdigit()]


def _read(path: pathlib.Path) -> dict[str, Any]:
  """A lease's content; empty for one that is being made, or is gone."""
  try:
    found = limits.read_json(path)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}
