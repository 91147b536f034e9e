"""The form of a folder of results that is small enough for git.

What is left of an experiment is at most `FILES` files of `BYTES` in all:

  result.json      config, numbers and claims, as the experiment words them now
  *.png            the first figures of its report, in few colours
  *.csv            its tables, where there is room for them
  recorded.tar.xz  everything else: arrays, runs of a sweep, other tables

Everything is read from it as before, a sweep goes on from it without training,
and figures that are not there are drawn when they are needed. Where arrays do
not fit, they and large matrices of runs lose digits, but only as many as leave
every claim word for word the same; numbers and tables never change.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.experiments.harness.api import Experiment, Result
from sinkjax.experiments.harness.protocol import Judged, judge

FILES, BYTES = 6, 300_000
"""Limits of an experiment's folder."""

FIGURES, FIGURE_BYTES = 2, 80_000
"""How many figures are kept, and the size of each."""

BITS = (None, 24, 16, 12, 10, 8)
"""Significant bits of floats, as many as fit: all, float32's 24, and fewer. At
8 bits an error is at most 0.2 %, less than a figure shows."""

MATRIX = 256
"""Numbers from which an array, or a matrix in a run, counts as large: per-head
values of the models that we train are fewer, and so are timings, whose last
digits claims quote; maps over pairs of tokens are more."""


class _Shown(Mapping[str, bytes]):
  """Figures by file name, which remembers the order they are asked for in."""

  def __init__(self, drawn: Mapping[str, bytes]):
    self._drawn, self.order = drawn, {}

  def __getitem__(self, name: str) -> bytes:
    self.order.setdefault(name)
    return self._drawn[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._drawn)

  def __len__(self) -> int:
    return len(self._drawn)


def _said(claims: Sequence[Judged]) -> list[tuple[str, str, str]]:
  """What is read of claims; the last bits of a number do not show."""
  return [(claim.id, claim.verdict, claim.ours) for claim in claims]


def compact(
  folder: pathlib.Path,
  about: Mapping[str, Any],
  experiment: Experiment,
  result: Result,
) -> None:
  """Rewrites an experiment's folder in the compact form.

  Args:
    folder: of a complete result.
    about: what its result.json holds.
    experiment: whose result it is.
    result: as read from the folder.

  Raises:
    ValueError: if it does not fit, whatever is left out.
  """
  # Before claims had names, a result held its part of the report, too.
  about = {k: v for k, v in about.items() if k not in ("page", "complete")}
  claims = judge(experiment.claims(result), about.get("stated"))
  said = _said(claims)
  if experiment.condense is not None:
    result = experiment.condense(result)
  about |= {
    "title": experiment.title,
    "claims": [claim.record() for claim in claims],
    "complete": True,
  }
  artifacts.write_json(folder / "result.json", about)
  room = BYTES - (folder / "result.json").stat().st_size
  tables = {
    path.name: artifacts.read_bytes(path)
    for path in artifacts.files(folder, ".csv")
  }

  @functools.cache
  def figures(bits: int | None) -> list[tuple[str, bytes]]:
    return _figures(experiment, _shortened(result, bits))

  @functools.cache
  def archive(bits: int | None, with_tables: bool) -> bytes:
    arrays = {"arrays.npz": _npz(_shortened(result, bits).arrays)}
    others = tables if with_tables else {}
    return artifacts.archive({**arrays, **others, **_runs(folder, bits)})

  allowed = [
    bits
    for bits in BITS
    if _said(judge(experiment.claims(_shortened(result, bits)))) == said
  ]
  # The most figures, then the most digits, then tables as files of their own.
  for count, bits, packed in itertools.product(
    range(FIGURES, -1, -1), allowed, (False, True)
  ):
    left = {
      **dict(figures(bits)[:count]),
      **({} if packed else tables),
      artifacts.ARCHIVE: archive(bits, packed),
    }
    # The file result.json counts, too, and has its place already.
    if len(left) < FILES and sum(map(len, left.values())) <= room:
      _replace(folder, left)
      return
  raise ValueError(f"{folder} does not fit into {BYTES:,} bytes")


def _figures(experiment: Experiment, result: Result) -> list[tuple[str, bytes]]:
  """The first figures of the experiment's part of the report, made small."""
  shown = _Shown(experiment.draw(result))
  experiment.sections(result, shown)
  return [(name, small_figure(shown[name])) for name in shown.order][:FIGURES]


def small_figure(png: bytes) -> bytes:
  """A PNG in as many colours as fit FIGURE_BYTES.

  They are chosen so that none is far off: by frequency, the colour of a thin
  line would become that of another. If 64 do not fit, the picture shrinks, too.
  """
  from PIL import Image

  image = Image.open(io.BytesIO(png)).convert("RGB")
  while True:
    for colours in (256, 128, 64):
      out = io.BytesIO()
      # Dithering scatters pixels, which PNG compresses badly.
      few = image.quantize(
        colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
      )
      few.save(out, "png", optimize=True)
      if len(out.getvalue()) <= FIGURE_BYTES:
        return out.getvalue()
    image = image.resize(tuple(4 * side // 5 for side in image.size))


def _shortened(result: Result, bits: int | None) -> Result:
  arrays = {name: _rounded(x, bits) for name, x in result.arrays.items()}
  return dataclasses.replace(result, arrays=arrays)


def _rounded(array: np.ndarray, bits: int | None) -> np.ndarray:
  """Floats of that many significant bits, as float32 where it holds them."""
  if bits is None or array.dtype.kind != "f" or array.size < MATRIX:
    return array
  fraction, exponent = np.frexp(array.astype(np.float64))
  # Rounding in binary leaves the dropped bits zero, and zeros compress well.
  wide = np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits)
  # What is beyond the range of float32 becomes infinite or zero here, fails the
  # comparison below, and stays in float64.
  with np.errstate(over="ignore", under="ignore"):
    narrow = wide.astype(np.float32)
  return narrow if np.array_equal(narrow, wide, equal_nan=True) else wide


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
  """An .npz file that is not compressed: the archive does that better."""
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def _runs(folder: pathlib.Path, bits: int | None) -> dict[str, bytes]:
  """{path in the folder: content} of every run's outcome."""
  found = {}
  for path in _run_files(folder):
    outcome = json.loads(artifacts.read_bytes(path))
    # Runs have seven digits already, which is what 24 bits hold.
    if bits is not None and bits < 24:
      outcome = _shorter(outcome, math.ceil(bits * math.log10(2)))
    text = json.dumps(outcome, ensure_ascii=False, separators=(",", ":"))
    found[path.relative_to(folder).as_posix()] = text.encode()
  return found


def _run_files(folder: pathlib.Path) -> list[pathlib.Path]:
  packed = (p for p in artifacts.archived(folder) if p.parent.name == "runs")
  return sorted({*folder.rglob("runs/*.json"), *packed})


def _shorter(value: Any, digits: int, large: bool = False) -> Any:
  """A run's outcome with that many digits in its large matrices."""
  if isinstance(value, dict):
    return {key: _shorter(item, digits) for key, item in value.items()}
  if isinstance(value, list):
    nested = bool(value) and isinstance(value[0], list)
    large = large or (nested and np.array(value, object).size >= MATRIX)
    return [_shorter(item, digits, large) for item in value]
  if large and isinstance(value, float):
    return float(f"{value:.{digits}g}")
  return value


def _replace(folder: pathlib.Path, left: Mapping[str, bytes]) -> None:
  """Writes what is left; then what it replaces goes, but no trained model."""
  old = [*folder.glob("*.png"), *folder.glob("*.csv"), *folder.glob("*.npz")]
  for name, data in left.items():
    artifacts.write_bytes(folder / name, data)
  runs = {path.parent for path in _run_files(folder)}
  for at in runs:
    # Before there were leases, runs had locks, and nothing removed these.
    for pattern in ("*.json", "*.lease-*", "*.lock"):
      old += at.glob(pattern)
  for path in old:
    if path.name not in left:
      path.unlink()
  # A folder comes before the one that holds it: only empty ones can go.
  for at in sorted(runs, reverse=True):
    for empty in (at, at.parent):
      with contextlib.suppress(OSError):  # it holds models, or is gone
        empty.rmdir()
