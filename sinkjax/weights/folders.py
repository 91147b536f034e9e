"""Folders that hold a model: their JSON files, and new ones written whole."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from sinkjax import limits, outputs
from sinkjax.weights.validate import WeightsError

MAX_JSON = limits.TOKENIZER


def read_bytes(path: pathlib.Path) -> bytes:
  """A file of at most `MAX_JSON` bytes.

  Raises:
    WeightsError: if it is not there, too large or unreadable.
  """
  try:
    return limits.read_bytes(path, MAX_JSON)
  except ValueError as error:
    raise WeightsError(str(error)) from None


def read_json(path: pathlib.Path) -> Any:
  """What a JSON file of at most `MAX_JSON` bytes holds.

  Raises:
    WeightsError: as `read_bytes`, or if it is not JSON.
  """
  raw = read_bytes(path)
  try:
    return json.loads(raw.decode("utf-8"))
  except (ValueError, RecursionError) as error:
    raise WeightsError(f"{path}: not valid JSON: {error}") from None


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
