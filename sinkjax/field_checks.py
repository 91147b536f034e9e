"""What a field of a config must be; every error names the field."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

# Beyond these a file is damaged: no model has a thousand layers, and 2^27 is
# hundreds of times the largest vocabulary.
MAX_LAYERS = 4096
MAX_SIZE = 1 << 27


def one_of(name: str, value: Any, valid: Collection[str]) -> None:
  """Raises unless it is one of the valid values."""
  if value not in valid:
    raise ValueError(f"{name} must be one of {list(valid)}, got {value!r}")


def positive(name: str, value: Any) -> None:
  """Raises unless it is a finite number above 0."""
  # True is an int in Python, and no size or scale.
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not (number and math.isfinite(value) and value > 0):
    raise ValueError(f"{name} must be a positive number, got {value!r}")


def plain(field: dataclasses.Field, value: Any) -> None:
  """Raises for anything but a number, or a bool, where one belongs."""
  if field.type is bool and not isinstance(value, bool):
    raise ValueError(f"{field.name} must be true or false, got {value!r:.80}")
  other = value is None or isinstance(value, str | bytes | list | tuple | dict)
  if field.type is float and other:
    raise ValueError(f"{field.name} must be a number, got {value!r:.80}")


def positive_int(name: str, value: Any) -> None:
  """Raises unless it is an integer above 0, and no more than a model has."""
  if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
    raise ValueError(f"{name} must be a positive integer, got {value!r}")
  limit = MAX_LAYERS if name == "n_layers" else MAX_SIZE
  if value > limit:
    raise ValueError(f"{name} must be at most {limit}, got {value}")
