"""Layouts of heads of which some dimensions alone are rotated."""

import dataclasses

import numpy as np

from sinkjax.weights.layout import Layout, Shape, Source


@dataclasses.dataclass(frozen=True)
class PartlyInterleaved(Layout):
  """The first dimensions of each head are rotary pairs, side by side.

  In the file dimensions 2 j and 2 j + 1 of them are a pair, ours are
  (j, j + rotary / 2); the others are in one order in both. Where all are
  rotated, `interleaved_rope` of the other layouts does it without a copy.

  Attributes:
    each: the layout beside that.
    rotary: how many they are.
    last: they are the last ones of each head in the file.
  """

  each: Layout
  rotary: int
  last: bool = False

  def _order(self, width: int) -> np.ndarray:
    """Which of our dimensions stands at each place of the file."""
    order = np.arange(width)
    order[: self.rotary] = order[: self.rotary].reshape(2, -1).T.reshape(-1)
    return np.roll(order, -self.rotary) if self.last else order

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return self.each.stored_shape(shape)

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`; the tensor is read whole."""
    return None

  def read(self, source: Source, name: str, slot: np.ndarray) -> None:
    """See `Layout`."""
    stored = np.empty_like(slot)
    self.each.read(source, name, stored)
    slot[..., self._order(slot.shape[-1])] = stored

  def write(self, slot: np.ndarray, tensor: np.ndarray) -> None:
    """See `Layout`."""
    stored = np.ascontiguousarray(slot[..., self._order(slot.shape[-1])])
    self.each.write(stored, tensor)
