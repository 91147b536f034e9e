"""Folders that hold a model: their JSON files, and new ones written whole."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from sinkjax import limits, outputs
from sinkjax.weights.formats import rawfile
from sinkjax.weights.validate import WeightsError

MAX_JSON = limits.TOKENIZER


def read_bytes(path: pathlib.Path, most: int | None = None) -> bytes:
  """A file of a model's folder, of at most `most` or `MAX_JSON` bytes.

  Raises:
    WeightsError: if it is not there, too large, unreadable or a link out of
      the folder.
  """
  require_inside(path.parent, path.name, path)
  try:
    return limits.read_bytes(path, MAX_JSON if most is None else most)
  except ValueError as error:
    raise WeightsError(str(error)) from None


def require_inside(
  folder: str | os.PathLike, name: str, speaker: str | os.PathLike
) -> None:
  """Raises for a file of a model's folder that is a link out of it.

  What is read is shown, recorded and, by `launch.convert`, written elsewhere:
  whoever made the folder must not choose other files of this machine for that.
  In the Hub's cache files are links to its own `blobs`.

  Args:
    folder: of the model.
    name: of a file in it.
    speaker: what the message begins with.
  """
  root = os.path.realpath(folder)
  roots = [root]
  if os.path.basename(os.path.dirname(root)) == "snapshots":
    roots.append(os.path.join(os.path.dirname(os.path.dirname(root)), "blobs"))
  real = os.path.realpath(os.path.join(folder, name))
  # Joined with "", a root ends in a separator: "model" must not admit
  # "model-2".
  if not any(real.startswith(os.path.join(r, "")) for r in roots):
    rawfile.refuse(
      speaker,
      f"{rawfile.show(name)} is a link to {rawfile.show(real, 200)}, "
      "outside the folder; expected a file inside it",
    )


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file of at most `MAX_JSON` bytes holds.

  Raises:
    WeightsError: as `read_bytes`, or if it is not JSON.
  """
  require_inside(path.parent, path.name, path)
  try:
    return limits.read_json(path, MAX_JSON)
  except ValueError as error:
    raise WeightsError(str(error)) from None


def read_optional_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file, empty where there is no such file.

  Raises:
    WeightsError: as `read_json`, or if it holds no object.
  """
  if not path.exists():
    return {}
  values = read_json(path)
  if not isinstance(values, dict):
    raise WeightsError(f"{path}: expected a JSON object")
  return values


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder to fill, which appears at `path` when the block ends well.

  It is filled beside `path` and then renamed, so that nobody ever sees half
  a model; where the block raises, nothing is left behind.

  Args:
    path: must not exist or be an empty folder; its parents are made.

  Raises:
    ValueError: for anything else at `path`, or if another process writes it,
      before the block is entered.
  """
  check_new(path)
  path = pathlib.Path(path).absolute()
  # The name is the same for all who would write there: a second one is refused,
  # and what a killed one left is cleared.
  work = path.parent / f".{path.name}.unfinished"
  with outputs.workspace(work):
    folder = work / "whole"
    folder.mkdir()
    yield folder
    if path.exists():
      path.rmdir()
    os.replace(folder, path)


def check_new(path: str | os.PathLike) -> None:
  """Refuses a path at which a new folder would hide or mix with something.

  Raises:
    ValueError: if there is anything but an empty folder.
  """
  path = pathlib.Path(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ValueError(f"{path} exists and is not an empty folder")
