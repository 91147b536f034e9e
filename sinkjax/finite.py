"""Refusal of numbers that are not finite, before they become a result.

NaN compares as false with everything: a rate of heads above a threshold would
count them as below it, and an argmax would choose an answer. So what is
measured is checked where it comes out of the model, and what is written is
checked once more.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
"""A number of a config beyond this becomes infinite in float32."""

LEAST = float(np.finfo(np.float32).tiny)
"""One closer to 0 has an infinite inverse there, or becomes 0."""


class NotFiniteError(ValueError):
  """A measured number is NaN or infinite."""


def where(values: Any) -> tuple[int, ...] | None:
  """The index of the first element that is not finite, `None` if all are.

  >>> where(np.array([[1.0, 2.0], [3.0, np.nan]]))
  (1, 1)
  """
  values = np.asarray(values)
  if values.dtype.kind not in "fcV":  # V: bfloat16 and its like
    return None
  if values.dtype.kind == "V":
    values = values.astype(np.float32)
  bad = ~np.isfinite(values)
  if not bad.any():
    return None
  return tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))


def require(values: Any, what: str, axes: Sequence[str] = ()) -> None:
  """Raises unless every number is finite.

  Args:
    values: an array or a number.
    what: their name, for the message.
    axes: the names of the axes, such as ("layer", "head"); the message says
      where on them the first such number stands.

  Raises:
    NotFiniteError: names what is not finite, where, and the likely cause.

  >>> require([[0.5, float("nan")]], "the sink score", ("layer", "head"))
  Traceback (most recent call last):
  ...
  sinkjax.finite.NotFiniteError: the sink score is nan at layer 0, head 1: the
  activations or weights of this model overflow, so nothing can be measured
  """
  at = where(values)
  if at is not None:
    place = ", ".join(f"{a} {i}" for a, i in zip(axes, at, strict=False))
    raise NotFiniteError(
      f"{what} is {np.asarray(values)[at]}{' at ' if place else ''}{place}: "
      "the activations or weights of this model overflow, so nothing can be "
      "measured"
    )


def require_result(
  numbers: Any, arrays: Mapping[str, np.ndarray], name: str
) -> None:
  """Raises unless what an experiment hands over is finite.

  A quantity that is undefined is `None`. A mean over groups may lack its
  interval, where one group is all there is, but not its value. In an array
  whose name begins with "log", -inf is the logarithm of zero.

  Args:
    numbers: dicts and lists of numbers, to any depth.
    arrays: by name.
    name: of the experiment, for the message.

  Raises:
    NotFiniteError: names the first number or array that is not finite.
  """
  for path, value in _numbers(numbers, ""):
    if where(value) is not None:
      raise NotFiniteError(
        f"{name}: {path.lstrip('.')} is {value}, and no result: the "
        "activations of this model overflow, or a text is too short"
      )
  for key, array in arrays.items():
    if key.startswith("log"):
      array = np.where(np.isneginf(array), 0, array)
    at = where(array)
    if at is not None:
      raise NotFiniteError(
        f"{name}: the array {key} is {array[at]} at {list(at)}, and no result: "
        "the activations of this model overflow, or a text is too short"
      )


def _numbers(value: Any, path: str) -> Iterator[tuple[str, Any]]:
  """(path, number or array) of everything in a nest."""
  if hasattr(value, "_asdict"):
    value = value._asdict()
    if "groups" in value:  # a mean with its interval
      value = {"value": value["value"]}
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    for key, item in value.items():
      yield from _numbers(item, f"{path}.{key}")
  elif isinstance(value, list | tuple):
    for i, item in enumerate(value):
      yield from _numbers(item, f"{path}[{i}]")
  elif isinstance(value, float | np.floating) or hasattr(value, "__array__"):
    yield path, value


def require_fields(config: Any, of: str = "") -> None:
  """Raises unless every number in a config's fields fits float32.

  Args:
    config: a dataclass; the dataclasses in its fields are checked as well.
    of: what its name begins with in the message.

  Raises:
    ValueError: names the field.
  """
  for path, value in _numbers(config, of):
    if isinstance(value, float) and not abs(value) <= LARGEST:
      raise ValueError(
        f"{path.lstrip('.')} must be a finite number of float32, got {value}"
      )
    if isinstance(value, float) and 0 < abs(value) < LEAST:
      raise ValueError(
        f"{path.lstrip('.')} must be 0, or at least {LEAST:.3g} in size, got "
        f"{value}"
      )
