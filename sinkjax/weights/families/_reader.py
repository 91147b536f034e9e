"""Typed access to the JSON of a `config.json`."""

import math
from typing import Any

from sinkjax import finite
from sinkjax.field_checks import MAX_LAYERS
from sinkjax.weights.validate import WeightsError

_ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_accurate": "gelu_tanh",
  "gelu_python": "gelu",
  "gelu_python_tanh": "gelu_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu2",
  "xielu": "xielu",
}
ACTIVATION_NAMES = {
  "silu": "silu",
  "gelu": "gelu",
  "gelu_tanh": "gelu_pytorch_tanh",
  "quick_gelu": "quick_gelu",
  "relu": "relu",
  "relu2": "relu2",
  "xielu": "xielu",
}
"""Our activations as transformers calls them."""
_REQUIRED = object()


class Reader:
  """Typed access to a JSON object, with errors that name the key.

  Args:
    values: the object.
    where: the file, for messages.
  """

  def __init__(self, values: dict[str, Any], where: str):
    self.values, self.where = values, where
    self._last = ""

  def refused(self, error: Exception) -> WeightsError:
    """What arithmetic on a value says, with the key that was read last."""
    value = str(self.values.get(self._last))[:40]
    return WeightsError(f"{self.where}: {self._last}={value}: {error}")

  def get(self, key: str, kind: type, default: Any = None) -> Any:
    """A value of a kind; `null` and no such key are the default.

    Raises:
      WeightsError: for a value of another kind, or more layers than a model
        can have.
    """
    self._last, value = key, self.values.get(key)
    if value is None:
      if default is _REQUIRED:
        raise WeightsError(f"{self.where}: {key!r} is missing")
      return default
    # JSON often has a float without its point, as 10000.
    value = typed(value, kind, f"{self.where}: {key!r}")
    # Every so many layers; the remainder is taken before the config is made.
    if kind is int and key.endswith("pattern") and value < 1:
      raise WeightsError(
        f"{self.where}: {key!r} must be at least 1, got {value}"
      )
    # Lists of one entry a layer are made before the config is validated.
    if kind is int and "layer" in key and value > MAX_LAYERS:
      raise WeightsError(
        f"{self.where}: {key!r} must be at most {MAX_LAYERS}, got {value}"
      )
    return value

  def need(self, key: str, kind: type) -> Any:
    """As `get`, of a key that must be there."""
    return self.get(key, kind, _REQUIRED)

  def activation(self, *keys: str, default: str) -> str:
    """Our name of the activation that the first of some keys names."""
    name = next((self.values[k] for k in keys if self.values.get(k)), default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
      raise WeightsError(
        f"{self.where}: unknown activation {name!r}; known: "
        f"{sorted(_ACTIVATIONS)}"
      )
    return _ACTIVATIONS[name]

  def token(self, key: str) -> int | None:
    """A token id, the first one of a list."""
    value = self.values.get(key)
    if isinstance(value, list) and value:
      value = value[0]
    if value is not None and (
      not isinstance(value, int) or isinstance(value, bool)
    ):
      raise WeightsError(f"{self.where}: {key!r} must be a token id")
    return value


def typed(value: Any, kind: type, what: str) -> Any:
  """A value of a kind; a whole number will do for a float.

  Args:
    value: as the file has it.
    kind: the type that it must have.
    what: the file and the key, for the message.

  Raises:
    WeightsError: for a value of another kind, or a number beyond float32.
  """
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    # `float` fails beyond its own range, which is larger.
    value = float(value) if abs(value) <= finite.LARGEST else math.inf
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise WeightsError(f"{what} must be {kind.__name__}, got {value!r:.40}")
  if kind is float and not abs(value) <= finite.LARGEST:
    raise WeightsError(
      f"{what} must be a finite number of float32, got {value!r:.40}"
    )
  return value
