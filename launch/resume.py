"""Keeps the columns of unfinished maps in a file, so that a rerun resumes."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sinkjax import artifacts
from sinkjax.analysis.sensitivity import Columns
from sinkjax.transforms.jacobian_engine import SelfCheckError

NAME = "partial.npz"
EVERY = 10.0
"""Seconds between two writes."""


def is_partial(path: pathlib.Path) -> bool:
  """Whether the same command goes on from a file: see `outputs.alone`."""
  return path.name == NAME


class Partial:
  """Maps in progress, by name, kept in `NAME` of a folder.

  Args:
    folder: the launcher's --out.
    mark: what the maps depend on, as JSON can hold it.
    maps: empty `Columns`, filled from the file where there is one.
    overwrite: whether to discard a file of another command; a file of this
      command is used in any case.
    parts: folders in which other runs of this command left columns, which are
      taken over.

  Attributes:
    seconds: the time that earlier runs took.
    resumed: how many columns they completed.

  Raises:
    ValueError: for a file of another command, or one that cannot be read.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    mark: Any,
    maps: dict[str, Columns],
    *,
    overwrite: bool,
    parts: Sequence[pathlib.Path] = (),
  ):
    self._path, self.maps = folder / NAME, maps
    # As text, because an .npz file holds no dictionaries; the order of keys
    # must not count.
    self._mark = json.dumps(mark, sort_keys=True)
    # Monotonic: the wall clock may be set while a map is computed for hours.
    self._start, self._saved = time.monotonic(), time.monotonic()
    self.seconds, self._written = 0.0, 0
    for path in (self._path, *(part / NAME for part in parts)):
      if path.exists() and not self._read(path) and not overwrite:
        raise ValueError(
          f"{path} is damaged, or another command, model file or version "
          "left it; choose another --out or give --overwrite"
        )
    self.resumed = self._written = self.done()

  def _read(self, path: pathlib.Path) -> bool:
    """Adds to the maps; `False` for a file that is damaged or another's."""
    try:
      found = artifacts.read_npz(path, self._most())
      if str(found["mark"]) != self._mark:
        return False
      read = {
        name: Columns(found[f"{name}_values"], found[f"{name}_known"])
        for name in self.maps
      }
      seconds = float(found["seconds"])
      # Nothing of a file is taken before all of it was read.
      for name, columns in read.items():
        self.maps[name].take(columns)
      self.seconds += seconds
    except (OSError, KeyError, IndexError, TypeError, ValueError):
      return False
    return True

  def _most(self) -> int:
    """Bytes of the arrays of a file that can be this command's."""
    arrays = [
      array for one in self.maps.values() for array in (one.values, one.known)
    ]
    # Beside them the mark, of four bytes a character, and headers.
    more = 4 * len(self._mark) + (1 << 20)
    return sum(array.nbytes for array in arrays) + more

  def done(self) -> int:
    """The number of complete columns in all maps."""
    return sum(int(columns.known.sum()) for columns in self.maps.values())

  def total(self) -> int:
    """The number of columns in all maps that are wanted."""
    return sum(
      int(
        columns.known.size if columns.wanted is None else columns.wanted.sum()
      )
      for columns in self.maps.values()
    )

  def save(self, *, now: bool = True) -> None:
    """Writes new columns; without `now` only every `EVERY` seconds."""
    due = now or time.monotonic() - self._saved > EVERY
    if not due or self.done() == self._written:
      return
    arrays = {}
    for name, columns in self.maps.items():
      arrays[f"{name}_values"] = columns.values
      arrays[f"{name}_known"] = columns.known
    artifacts.write_npz(
      self._path, {"mark": self._mark, "seconds": self.elapsed(), **arrays}
    )
    self._saved, self._written = time.monotonic(), self.done()

  def announce(self) -> None:
    """Says how many columns are there from an earlier run, if any."""
    if self.resumed:
      print(
        f"Continuing: {self.resumed} of {self.total()} columns are there "
        "from an earlier run."
      )

  @contextlib.contextmanager
  def keeping(self) -> Iterator[None]:
    """Saves what is complete, also where what is inside is stopped."""
    try:
      yield
    except SelfCheckError:
      # Columns that contradict the model are no beginning to go on from.
      self.delete()
      raise
    # Ctrl-C is no Exception, and it is how a long run is usually stopped.
    except BaseException:
      self.save()
      if self.done():
        print(
          f"\nkept {self.done()} of {self.total()} columns: the same "
          "command continues from there",
          file=sys.stderr,
        )
      raise
    self.save()

  def elapsed(self) -> float:
    """Seconds that this run and earlier ones took."""
    return self.seconds + time.monotonic() - self._start

  def delete(self) -> None:
    """Removes the file: the maps are in the result."""
    self._path.unlink(missing_ok=True)
