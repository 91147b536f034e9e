"""The fields of a GGUF file that describe its tokenizer, of checked types."""

import math
from typing import Any

from sinkjax.weights.validate import WeightsError, warn


class Fields:
  """`tokenizer.ggml.*`, each of the type that it must have.

  Every method raises `WeightsError` where it has not.
  """

  def __init__(self, metadata: dict[str, Any]):
    self._values = metadata

  def _get(self, key: str) -> Any:
    return self._values.get(f"tokenizer.ggml.{key}")

  def bad(self, key: str, expected: str) -> WeightsError:
    """An error that says what the field is, and what was expected."""
    found = self._get(key)
    what = type(found).__name__
    if found is None:
      what = "nothing"
    elif isinstance(found, list) or getattr(found, "ndim", 0):
      what = f"{what} of {len(found)}"
    return WeightsError(
      f"tokenizer: tokenizer.ggml.{key} is {what}; expected {expected}"
    )

  def text(self, key: str, required: bool = False) -> str | None:
    """A string, `None` where the file has none."""
    value = self._get(key)
    if value is None and not required:
      return None
    if not isinstance(value, str):
      raise self.bad(key, "a string")
    return value

  def flag(self, key: str, default: bool) -> bool:
    """True or false."""
    value = self._get(key)
    if value is None:
      return default
    if not isinstance(value, bool):
      raise self.bad(key, "true or false")
    return value

  def strings(self, key: str, may_be_empty: bool = False) -> list[str]:
    """A list of strings of valid Unicode."""
    value = self._get(key)
    if not isinstance(value, list) or not (value or may_be_empty):
      raise self.bad(key, "an array of strings")
    for i, item in enumerate(value):
      if not isinstance(item, str):
        kind = type(item).__name__
        raise self.bad(key, f"an array of strings; entry {i} is {kind}")
    try:
      "".join(value).encode("utf-8")
    except UnicodeEncodeError as error:
      raise self.bad(key, f"valid Unicode ({error.reason})") from None
    return value

  def numbers(self, key: str, length: int, kind: type) -> list | None:
    """A finite number of a kind for each token; `None` without any."""
    value = self._get(key)
    if value is None:
      return None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list) or len(value) != length:
      raise self.bad(key, f"an array of {length} numbers, one a token")
    allowed = (int,) if kind is int else (int, float)
    for i, item in enumerate(value):
      # The exact type, because a bool is an instance of int.
      if type(item) not in allowed or not math.isfinite(item):
        raise self.bad(
          key, f"{kind.__name__} numbers; entry {i} is {str(item)[:40]!r}"
        )
    return list(value)

  def token(self, key: str, size: int) -> int | None:
    """A token id; one outside the vocabulary is ignored, with a warning."""
    value = self._get(key)
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, int):
      raise self.bad(key, "a token id")
    if not 0 <= value < size:
      warn(
        f"tokenizer: {key} {value} is outside the vocabulary of {size}: ignored"
      )
      return None
    return value

  def chat_template(self) -> str | None:
    """The template, `None` where the file has none."""
    value = self._values.get("tokenizer.chat_template")
    if value is not None and not isinstance(value, str):
      raise WeightsError(
        f"tokenizer: tokenizer.chat_template is {type(value).__name__}; "
        "expected a string"
      )
    return value
