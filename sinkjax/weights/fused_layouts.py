"""Layouts of parameters that share one tensor of a file.

Many files hold a layer's queries, keys and values in one matrix. Each of the
three is a `Leaf` of its own, with that tensor's name and one of these layouts.
"""

import dataclasses

import numpy as np

from sinkjax.weights.layout import Kernel, Layout, Shape, Source


@dataclasses.dataclass(frozen=True)
class _Fused(Layout):
  """One of several parameters that a tensor holds.

  Attributes:
    each: how each of them would be stored alone.
    index: which it is; of queries, keys and values, 0 to 2.
  """

  each: Layout
  index: int

  @property
  def _out_axis(self) -> int:
    return 1 if isinstance(self.each, Kernel) else 0

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    alone = list(self.each.stored_shape(shape))
    alone[self._out_axis] *= 3
    return tuple(alone)

  def in_file_order(self, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    return self.each.in_file_order(slot)

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`; the tensor is read whole."""
    return None

  def read(self, source: Source, name: str, slot: np.ndarray) -> None:
    """See `Layout`; the whole tensor is read for each of its parts."""
    view = self.in_file_order(slot)
    part = self.part(source.read(name), slot)
    view[...] = part.reshape(view.shape)


@dataclasses.dataclass(frozen=True)
class FusedThirds(_Fused):
  """All queries, then all keys, then all values, along the output."""

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    return np.split(tensor, 3, axis=self._out_axis)[self.index]


@dataclasses.dataclass(frozen=True)
class FusedRows(_Fused):
  """All of the first parameter, then all of the next, along the output.

  Attributes:
    sizes: of each of them along that axis.
  """

  sizes: tuple[int, ...]

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    alone = list(self.each.stored_shape(shape))
    alone[self._out_axis] = sum(self.sizes)
    return tuple(alone)

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    start = sum(self.sizes[: self.index])
    rows = [slice(None)] * tensor.ndim
    rows[self._out_axis] = slice(start, start + self.sizes[self.index])
    return tensor[tuple(rows)]


@dataclasses.dataclass(frozen=True)
class FusedHeads(_Fused):
  """Query, key and value of head 0, then of head 1, and so on.

  For as many key heads as query heads, and the output as first axis.
  """

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    heads, width = slot.shape[-2:]
    return tensor.reshape(heads, 3, width, *tensor.shape[1:])[:, self.index]


@dataclasses.dataclass(frozen=True)
class FusedGroups(_Fused):
  """The parts of KV head 0, then those of KV head 1, and so on.

  Attributes:
    rows: of each part in a group, as of a group's queries, its key and value.
    groups: KV heads.
  """

  rows: tuple[int, ...]
  groups: int

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    alone = list(self.each.stored_shape(shape))
    alone[self._out_axis] = self.groups * sum(self.rows)
    return tuple(alone)

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    start = sum(self.rows[: self.index])
    own = slice(start, start + self.rows[self.index])
    return tensor.reshape(self.groups, -1, *tensor.shape[1:])[:, own]


@dataclasses.dataclass(frozen=True)
class Alternating(_Fused):
  """The numbers of two parameters in turn, along the last axis."""

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return (*shape[:-1], 2 * shape[-1])

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    return tensor[..., self.index :: 2]
