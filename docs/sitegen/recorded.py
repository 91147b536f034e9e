"""What docs/results holds: every experiment that was run, on what, and when."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sinkjax.experiments.harness import records
from sinkjax.experiments.harness.protocol import Judged, Verdict
from sinkjax.report.html import Section

DOCS = pathlib.Path(__file__).parents[1]
RESULTS = DOCS / "results"


class Run(NamedTuple):
  """One experiment on one subject.

  Attributes:
    folder: its name in docs/results.
    recorded: its files, read.
    claims: made from them, with their verdicts.
  """

  folder: str
  recorded: records.Recorded
  claims: list[Judged]

  @property
  def name(self) -> str:
    """The experiment's."""
    return self.recorded.entry.name

  @property
  def measured_on(self) -> str:
    """The model, or the scale of models trained for this."""
    request = self.recorded.about["request"]
    return request.get("model") or f"{request['scale']} scale"

  @property
  def has_new_texts(self) -> bool:
    """Whether nobody had looked at its texts when its claims were made."""
    return "stated" in self.recorded.about

  @property
  def subject(self) -> str:
    """What it is on, and whether that was new texts."""
    return self.measured_on + ", new texts" * self.has_new_texts

  @property
  def files(self) -> pathlib.Path:
    """The folder of its files, relative to docs."""
    return self.recorded.folder.relative_to(DOCS)

  def sections(self) -> list[Section]:
    """The experiment's part of a report; `figure` is a file's name."""
    entry, result = self.recorded.entry, self.recorded.result
    return entry.load().sections(result, _Names(self.recorded.folder))


class _Names(Mapping[str, bytes]):
  """In place of the figures by name: the names themselves.

  A page links to the files that are there, so none has to be drawn to know
  what its section says.
  """

  def __init__(self, folder: pathlib.Path):
    self._files = [path.name for path in sorted(folder.glob("*.png"))]

  def __getitem__(self, name: str) -> bytes:
    return name.encode()

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)

  def __contains__(self, name: Any) -> bool:
    return name in self._files


def folders() -> list[pathlib.Path]:
  """The folders of docs/results that hold experiments."""
  return sorted({path.parents[1] for path in RESULTS.glob("*/*/result.json")})


def runs(dtype: str = "float32") -> list[Run]:
  """Every complete experiment, folder by folder, in registry order.

  Args:
    dtype: of the weights; runs in another one are no findings of their own.

  Raises:
    ValueError: where one experiment was recorded twice on one subject.
  """
  found: dict[tuple[str, str], Run] = {}
  for folder in folders():
    for one in records.every(folder):
      if one.about["request"].get("dtype", "float32") != dtype:
        continue
      run = Run(folder.name, one, one.claims())
      if (before := found.get((run.name, run.subject))) is not None:
        raise ValueError(
          f"{run.name} on {run.subject} is in {before.folder} and {folder.name}"
        )
      found[run.name, run.subject] = run
  return list(found.values())


def counted(claims: list[Judged]) -> str:
  """'3 supported, 1 inconclusive' and so on, without what there is none of."""
  counts = {v: sum(c.verdict == v for c in claims) for v in Verdict}
  return ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
