"""Keeps each finished part of a measurement, so that a stopped one goes on.

A measurement on a model calls `subject.kept(what, make, ...)` for each part
that takes long: a text, a batch, a condition. The part's arrays are written
before the next one begins. The same command, started again, reads them in place
of calling `make`, and the result is bit for bit that of an uninterrupted run.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import sinkjax
from sinkjax import artifacts, limits, provenance, sharding

FOLDER = "unfinished"
"""Inside an experiment's folder, until its result is written."""

SECONDS = "seconds of this part"
"""Beside a part's arrays in its file."""


def plainly(what: str, make: Callable, *args: Any, **kwargs: Any) -> Any:
  """`make(*args, **kwargs)` in NumPy: a measurement that is kept nowhere.

  Args:
    what: the part in a word or two.
    make: gives an array, or a nest of dicts, tuples and dataclasses of arrays;
      a dataclass becomes the dict of its fields, a named tuple a tuple.
    *args: of `make`.
    **kwargs: of `make`.

  >>> plainly("losses", lambda: {"texts": (1.0, [2.0, 3.0])})
  {'texts': (array(1.), array([2., 3.]))}
  """
  return nested(flat(make(*args, **kwargs)))


def flat(value: Any, *path: str | int) -> dict[str, np.ndarray]:
  """The arrays of a nest by their path, in JSON: names in a dict, numbers in a
  tuple."""
  if dataclasses.is_dataclass(value):
    value = vars(value)
  if isinstance(value, tuple):
    value = dict(enumerate(value))
  if not isinstance(value, Mapping):
    return {json.dumps(path): sharding.to_host(value)}
  found = {}
  for key, inner in value.items():
    found |= flat(inner, *path, key)
  return found


def nested(arrays: Mapping[str, np.ndarray]) -> Any:
  """What `flat` took apart."""
  by_path = {tuple(json.loads(name)): value for name, value in arrays.items()}
  return _inner(by_path)


def _inner(by_path: dict[tuple, np.ndarray]) -> Any:
  if list(by_path) == [()]:
    return by_path[()]
  members: dict[str | int, dict[tuple, np.ndarray]] = {}
  for (first, *rest), value in by_path.items():
    members.setdefault(first, {})[tuple(rest)] = value
  found = {key: _inner(inner) for key, inner in members.items()}
  return tuple(found.values()) if 0 in found else found


class Kept:
  """`plainly`, with each part in a file; see `FOLDER`.

  Parts are numbered in the order of the calls, which is the same in every run
  of one request. Timings are no parts: those that are compared have to be of
  one process.

  Attributes:
    seconds: what the parts that were read had taken.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    request: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    overwrite: bool = False,
  ):
    """Takes up what is there of the same request.

    Args:
      folder: of the experiment.
      request: what was asked for.
      weights: the bytes of the models. Where they, the code, the packages or
        the device have changed, parts are measured again.
      overwrite: clear what is there.

    Raises:
      ValueError: where the folder holds parts of another request.
    """
    self._folder, self._count, self.seconds = folder / FOLDER, 0, 0.0
    self._about = artifacts.plain(
      {"request": request, "made_with": {"weights": weights, **_here()}}
    )
    old = _read(self._folder / "request.json")
    if overwrite or old is None:
      self.clear()
    elif old["request"] != self._about["request"]:
      raise ValueError(
        f"{folder} holds parts of an unfinished measurement with other flags; "
        "choose another --out or give --overwrite"
      )
    elif old != self._about:
      print(
        f"{folder.name}: the weights, the code, the packages or the device "
        "have changed since an unfinished measurement: measured from the start"
      )
      self.clear()
    found = len(list(self._folder.glob("*.npz")))
    if found:
      print(f"{folder.name}: goes on after {found} parts of an earlier run")

  def __call__(
    self, what: str, make: Callable, *args: Any, **kwargs: Any
  ) -> Any:
    """As `plainly`, or what an earlier run kept of this part."""
    path = self._next(what)
    self._count += 1
    if path.exists():
      arrays = artifacts.read_npz(path)
      try:
        self.seconds += float(arrays.pop(SECONDS))
        return nested(arrays)
      except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
          f"{path} is no part of a measurement ({error}); remove it, or give "
          "--overwrite"
        ) from None
    start = time.monotonic()
    made = flat(make(*args, **kwargs))
    if not self._folder.exists():
      artifacts.write_json(self._folder / "request.json", self._about)
    taken = {SECONDS: time.monotonic() - start}
    artifacts.write_npz(path, made | taken)
    return nested(made)

  def has(self, what: str) -> bool:
    """Whether an earlier run kept the part that comes next.

    Args:
      what: the part in a word or two.
    """
    return self._next(what).exists()

  def _next(self, what: str) -> pathlib.Path:
    return self._folder / f"{self._count:05d}-{what}.npz"

  def clear(self) -> None:
    """Removes all parts."""
    shutil.rmtree(self._folder, ignore_errors=True)


def _here() -> dict[str, Any]:
  """The code, the packages and the device that compute."""
  # Not the commit: a checkout may differ from it, and a package has none.
  root, source = pathlib.Path(sinkjax.__file__).parent, hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    source.update(path.read_bytes())
  return {
    "code": source.hexdigest(),
    "versions": provenance.versions(),
    "device": provenance.device(),
  }


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """What was asked for of the parts; `None` where that cannot be read."""
  try:
    found = limits.read_json(path)
  except ValueError:
    return None
  whole = isinstance(found, dict) and "request" in found
  return found if whole else None
