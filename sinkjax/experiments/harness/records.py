"""Recorded experiments: results, claims and sections made from their files."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sinkjax import artifacts, limits
from sinkjax.experiments import BY_NAME, REGISTRY, Entry
from sinkjax.experiments.harness import chat_start
from sinkjax.experiments.harness.api import Experiment, Result
from sinkjax.experiments.harness.protocol import Judged, judge
from sinkjax.report import html


class Recorded(NamedTuple):
  """One experiment as its folder holds it.

  Attributes:
    entry: the experiment.
    folder: where its files are.
    about: what `result.json` says beside the numbers.
    result: what was measured, plain.
  """

  entry: Entry
  folder: pathlib.Path
  about: dict[str, Any]
  result: Result

  def claims(self) -> list[Judged]:
    """The claims with their verdicts, made from the files."""
    with _of(self.folder):
      return judge(
        self.entry.load().claims(self.result), self.about.get("stated")
      )

  def sections(self) -> list[html.Section]:
    """Its part of the report; figures that are no files are drawn."""
    experiment = self.entry.load()
    figures = _Figures(self.folder, experiment, self.result)
    with _of(self.folder):
      sections = experiment.sections(self.result, figures)
    said = []
    if (edit := self.about["request"].get("edit")) is not None:
      said.append(f"Measured on the edited model: {edit}.")
    if (texts := self.about["request"].get("texts")) is not None:
      said.append(
        f"The {texts['count']} texts are those of {texts['file']} (SHA-256 "
        f"{texts['sha256'][:12]}), in place of the experiment's own."
      )
    if (chat := self.result.numbers.get("chat_template")) is not None:
      said.append(chat_start.describe(chat))
    body = "\n\n".join([*said, sections[0].body])
    return [dataclasses.replace(sections[0], body=body), *sections[1:]]


class _Figures(Mapping[str, bytes]):
  """The figures by file name: from the folder, else drawn at the first need."""

  def __init__(
    self, folder: pathlib.Path, experiment: Experiment, result: Result
  ):
    self._folder, self._experiment = folder, experiment
    self._result = result
    self._drawn: dict[str, bytes] | None = None

  def __getitem__(self, name: str) -> bytes:
    path = self._folder / name
    return limits.read_bytes(path) if path.is_file() else self._all()[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._all())

  def __len__(self) -> int:
    return len(self._all())

  def _all(self) -> dict[str, bytes]:
    if self._drawn is None:
      self._drawn = self._experiment.draw(self._result)
    return self._drawn


def stored(path: pathlib.Path) -> dict[str, Any] | None:
  """The object in a file of JSON; `None` where there is none.

  Raises:
    ValueError: for a pipe or a device in its place.
  """
  if not path.exists():
    return None
  limits.regular(path)  # which says what else stands there
  try:
    found = limits.read_json(path, limits.MANIFEST)
  except ValueError:
    return None
  return found if isinstance(found, dict) else None


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `result.json` holds; `None` for none or one that is not complete."""
  found = stored(folder / "result.json") or {}
  asked = isinstance(found.get("request"), dict)
  return found if asked and found.get("complete") is True else None


def _of(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Says of which folder the files are that lack something."""
  return limits.lacking(
    folder,
    f"{folder}: its recorded files are damaged, or of another version",
    "measure again with --overwrite",
    OSError,
  )


_KINDS = {"name": str, "numbers": dict, "seconds": int | float, "device": str}
"""Of what `result.json` holds beside the request, where a report needs it."""


def recorded(folder: pathlib.Path, about: dict[str, Any]) -> Recorded:
  """An experiment's folder, `result.json` having been read."""
  for key, kind in _KINDS.items():
    if not isinstance(about[key], kind):
      raise TypeError(f"{key} is {about[key]!r:.40}")
  entry, request = BY_NAME[about["name"]], about["request"]
  experiment = entry.load()
  scale = request.get("scale", "demo")
  # Fields that are newer than the file get the defaults of its scale.
  config = experiment.configured(scale, request["config"])
  arrays = artifacts.read_npz(folder / "arrays.npz")
  tables = {
    path.name: artifacts.read_csv(path)
    for path in artifacts.files(folder, ".csv")
  }
  model = request.get("model")
  result = Result(about["numbers"], tables, arrays, config, model)
  return Recorded(entry, folder, about, result)


def measured(folder: pathlib.Path) -> Recorded | None:
  """An experiment's folder, read; `None` where nothing complete is there.

  Files of every earlier version are read, too.
  """
  about = read(folder)
  if about is None:
    return None
  with _of(folder):
    return recorded(folder, about)


def every(out: pathlib.Path) -> list[Recorded]:
  """All complete experiments of a folder of results, in registry order."""
  found = [measured(out / entry.name) for entry in REGISTRY]
  return [one for one in found if one is not None]
