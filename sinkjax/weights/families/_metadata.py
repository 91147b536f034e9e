"""Typed access to the metadata of a GGUF file."""

from typing import Any

from sinkjax.weights.families._reader import typed
from sinkjax.weights.formats.gguf import GGUFFile
from sinkjax.weights.validate import WeightsError


class Metadata:
  """Typed access to `{architecture}.key`, with errors that name the key."""

  def __init__(self, file: GGUFFile, architecture: str):
    self.values, self.where = file.metadata, str(file.path)
    self.tensors = file.tensors
    self.architecture, self._last = architecture, ""
    self.read: set[str] = set()

  def refused(self, error: Exception) -> WeightsError:
    """What arithmetic on a value says, with the key that was read last."""
    value = str(self.values.get(self._last))[:40]
    return WeightsError(f"{self.where}: {self._last}={value}: {error}")

  def has(self, name: str) -> bool:
    """Whether the first layer has a tensor of that name."""
    return f"blk.0.{name}" in self.tensors

  def get(self, key: str, kind: type, default: Any = None) -> Any:
    """A value of a kind, or the default.

    Raises:
      WeightsError: for a value of another kind.
    """
    name = self._last = f"{self.architecture}.{key}"
    self.read.add(key)
    value = self.values.get(name, default)
    if value is None:
      return None
    return typed(value, kind, f"{self.where}: {name}")

  def token(self, key: str, size: int) -> int | None:
    """The id of a special token, `None` for one outside the vocabulary.

    The tokenizer, which has the same key, warns of it.

    Raises:
      WeightsError: for anything but an integer.
    """
    name = f"tokenizer.ggml.{key}"
    value = self.values.get(name)
    if value is None:
      return None
    if not isinstance(value, int) or isinstance(value, bool):
      raise WeightsError(
        f"{self.where}: {name} must be a token id, got {value!r:.40}"
      )
    return value if 0 <= value < size else None

  def need(self, key: str, kind: type) -> Any:
    """As `get`, of a key that must be there."""
    value = self.get(key, kind)
    if value is None:
      raise WeightsError(f"{self.where}: {self.architecture}.{key} is missing")
    return value
