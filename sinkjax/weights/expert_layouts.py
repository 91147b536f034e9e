"""The layout of one MLP where a layer's experts lie."""

import dataclasses
import math

import numpy as np

from sinkjax.weights.layout import Layout, Shape, Source


@dataclasses.dataclass(frozen=True)
class SideBySide(Layout):
  """One MLP's map, of which every expert has a part of the hidden layer.

  Expert e has the hidden dimensions e F to (e + 1) F of ours, [E, D, F] or, of
  the map down, [E, F, D]. The file has a matrix [W, D] or [D, W] as
  `torch.nn.Linear` does; what lies beyond W is read as zeros.

  Attributes:
    width: W, of the MLP's hidden layer.
    down: whether it is the map down.
  """

  width: int
  down: bool

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    if self.down:
      return shape[2], self.width
    return self.width, shape[1]

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`; the tensor is read whole."""
    return None

  def spare(self, shape: Shape) -> int:
    """See `Layout`."""
    return math.prod(self.stored_shape(shape)) - math.prod(shape)

  def read(self, source: Source, name: str, slot: np.ndarray) -> None:
    """See `Layout`."""
    tensor = source.read(name)
    rows = np.zeros(self._rows(slot).shape, np.float32)
    rows[: self.width] = tensor.T if self.down else tensor
    experts, hidden = len(slot), slot.shape[1 if self.down else 2]
    rows = rows.reshape(experts, hidden, -1)
    slot[...] = rows if self.down else rows.transpose(0, 2, 1)

  def write(self, slot: np.ndarray, tensor: np.ndarray) -> None:
    """See `Layout`."""
    rows = self._rows(slot)[: self.width]
    tensor[...] = rows.T if self.down else rows

  def _rows(self, slot: np.ndarray) -> np.ndarray:
    """[E F, D] one row for each hidden dimension."""
    slot = slot if self.down else slot.transpose(0, 2, 1)
    return slot.reshape(-1, slot.shape[2])
