"""What stands after the = of an edit's key: read, checked and written."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax import finite
from sinkjax.taps import ALL_SITES

Heads = tuple[tuple[int | None, int], ...]
"""(layer, head) of each; `None` for all layers."""

Ranges = tuple[tuple[int, int | None], ...]
"""(first, end) of each; `None` for the last layer and it included."""


@dataclasses.dataclass(frozen=True)
class Means:
  """The mean of every head's output; hashable.

  Attributes:
    shape: [L, H, W].
    flat: the numbers.
  """

  shape: tuple[int, ...]
  flat: tuple[float, ...]

  @classmethod
  def of(cls, array: np.ndarray) -> "Means":
    """Of [L, H, W]."""
    return cls(array.shape, tuple(map(float, array.ravel())))

  def array(self) -> np.ndarray:
    """[L, H, W]."""
    return np.reshape(np.array(self.flat), self.shape)


@dataclasses.dataclass(frozen=True)
class Value:
  """How a kind of value is read and written.

  Attributes:
    parse: of the text after the `=`; its ValueError says what is expected.
    write: the inverse.
    default: where the key is not given.
  """

  parse: Callable[[str], Any]
  write: Callable[[Any], str]
  default: Any


def _items(pattern: str, expected: str) -> Callable[[str], list[re.Match]]:
  """A reader of items of one form between commas."""

  def read(text: str) -> list[re.Match]:
    # Digits of other scripts are none here.
    found = [re.fullmatch(pattern, x, re.ASCII) for x in text.split(",")]
    if not all(found):
      raise ValueError(expected)
    return found

  return read


def _distinct(items: Sequence[Any]) -> tuple:
  if len(set(items)) < len(items):
    raise ValueError("without one named twice")
  return tuple(items)


def _number(text: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  # One that float32 cannot hold becomes infinite in the model.
  if not abs(number) <= finite.LARGEST:
    raise ValueError("a number of float32")
  return number


def _write_number(number: float) -> str:
  """As short as it can be read back."""
  short = f"{number:g}"
  return short if float(short) == number else repr(float(number))


_integers = _items(r"(\d{1,9})", "numbers from 0 on: 0 or 0,3")
_heads = _items(r"(?:(\d{1,9})\.)?(\d{1,9})", "LAYER.HEAD or HEAD, as 3.2,4.0")
_ranges = _items(r"(\d{1,9})|(\d{0,9}):(\d{0,9})", "layers: 3 or 3,5 or 3:6")
_neurons = _items(r"(\d{1,9}):(\d{1,9})", "LAYER:INDEX, as 11:507,12:3")


def _one_integer(text: str) -> int:
  found = _integers(text)
  if len(found) > 1:
    raise ValueError("one number from 0 on")
  return int(found[0][1])


def _read_range(found: re.Match) -> tuple[int, int | None]:
  if found[1]:
    return int(found[1]), int(found[1]) + 1
  start, end = int(found[2] or 0), int(found[3]) if found[3] else None
  if end is not None and end <= start:
    raise ValueError("FIRST:END with END after FIRST, as 3:6 for 3, 4 and 5")
  return start, end


def _write_range(one: tuple[int, int | None]) -> str:
  start, end = one
  return f"{start}" if end == start + 1 else f"{start or ''}:{end or ''}"


def _target(text: str) -> Any:
  if text in ("zero", "mean"):
    return 0.0 if text == "zero" else text
  try:
    some = tuple(_number(item) for item in text.split(","))
  except ValueError:
    raise ValueError("zero, mean, a number, or one for each neuron") from None
  return some[0] if len(some) == 1 else some


def _write_target(to: Any) -> str:
  if isinstance(to, Means) or to == "mean":
    return "mean"
  return ",".join(map(_write_number, to if isinstance(to, tuple) else (to,)))


def _read_site(text: str) -> str:
  if text not in ALL_SITES:
    raise ValueError(f"one of {', '.join(ALL_SITES)}")
  return text


INTEGER = Value(_one_integer, str, 0)
INTEGERS = Value(
  lambda text: _distinct([int(found[1]) for found in _integers(text)]),
  lambda some: ",".join(map(str, some)),
  (),
)
HEADS = Value(
  lambda text: _distinct(
    [(f[1] and int(f[1]), int(f[2])) for f in _heads(text)]
  ),
  lambda some: ",".join(
    f"{head}" if layer is None else f"{layer}.{head}" for layer, head in some
  ),
  (),
)
RANGES = Value(
  lambda text: tuple(map(_read_range, _ranges(text))),
  lambda some: ",".join(map(_write_range, some)),
  (),
)
NEURONS = Value(
  lambda text: _distinct([(int(f[1]), int(f[2])) for f in _neurons(text)]),
  lambda some: ",".join(f"{layer}:{index}" for layer, index in some),
  (),
)
NUMBER = Value(_number, _write_number, 0.0)
SITE = Value(_read_site, str, "")
TARGET = Value(_target, _write_target, 0.0)


def within(ranges: Ranges, size: int) -> list[int] | None:
  """The layers of some ranges; `None` for all.

  Raises:
    ValueError: for one beyond the last.

  >>> within(((1, 3), (5, None)), 7), within((), 7)
  ([1, 2, 5, 6], None)
  """
  if not ranges:
    return None
  found = set()
  for start, end in ranges:
    if start >= size or (end or 0) > size:
      worst = start if start >= size else end - 1
      raise ValueError(f"layer {worst} is not among 0 to {size - 1}")
    found |= set(range(start, size if end is None else end))
  return sorted(found)
