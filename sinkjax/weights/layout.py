"""Where each of our parameters lies in a file, and in which order.

A `Leaf` names the file's tensor for one parameter, and its `Layout` turns that
tensor into ours and back: a format is a list of leaves, by which
`sinkjax.weights.assemble` reads and writes whole models. A family's lists are
in its file under `sinkjax.weights.families`. Layouts of parameters that share a
tensor are in `sinkjax.weights.fused_layouts`.

Ours, one layer at a time: kernels are [in..., out...], so queries are [D, H, K]
and the attention's output is [H, K, D]; biases are [out...].
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

Shape = tuple[int, ...]


@runtime_checkable
class Source(Protocol):
  """Named float32 tensors that can be read one by one, from threads too."""

  where: str

  def shapes(self) -> Mapping[str, Shape]:
    """The stored shape of every tensor."""
    ...

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """One tensor, written into `out` where given."""
    ...


@runtime_checkable
class RowSource(Source, Protocol):
  """A source that can also read a few rows of a large matrix."""

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    """[rows, columns], written into `out` where given."""
    ...


@runtime_checkable
class PartSource(Source, Protocol):
  """A source that can also read a box of a tensor."""

  def read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
    """The box, float32."""
    ...


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one parameter is stored; this one has our axes in our order.

  Subclasses say what differs: `stored_shape`, `in_file_order`, and `part` where
  one tensor holds several parameters. `read` and `write` follow from these
  and are inverse to each other.

  A `slot` is a C-contiguous array of our shape, of one layer.
  """

  def stored_shape(self, shape: Shape) -> Shape:
    """The shape of the whole tensor in the file, for our `shape`."""
    return shape

  def in_file_order(self, slot: np.ndarray) -> np.ndarray:
    """A view of `slot` whose C order is that of the file.

    It may have more axes than the tensor: sources fill by order, and so
    decode straight into their place, without a copy between.
    """
    return slot

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """The view of the file's tensor that belongs to `slot`."""
    return tensor

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """The box of the stored tensor that holds `index` of our `shape`.

    Returns:
      `None` where that is no box.
    """
    return index

  def spare(self, shape: Shape) -> int:
    """Numbers of the stored tensor that belong to no parameter.

    Below 0 where our slot has more numbers than the tensor.
    """
    return 0

  def stored_row(self, row: int) -> int:
    """Where a row of our table is in the stored one."""
    return row

  def read(self, source: Source, name: str, slot: np.ndarray) -> None:
    """Fills `slot` from the tensor of that name."""
    source.read(name, out=self.in_file_order(slot))

  def write(self, slot: np.ndarray, tensor: np.ndarray) -> None:
    """Fills what belongs to `slot` of a tensor of `stored_shape`."""
    part = self.part(tensor, slot)
    part[...] = self.in_file_order(slot).reshape(part.shape)


@dataclasses.dataclass(frozen=True)
class Vector(Layout):
  """Flat: biases and the scales of norms.

  Attributes:
    interleaved_rope: rotary pairs lie side by side, (2 j, 2 j + 1), where ours
      are (j, j + K / 2).
  """

  interleaved_rope: bool = False

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return (math.prod(shape),)

  def in_file_order(self, slot: np.ndarray) -> np.ndarray:
    """See `Layout`; [H, K / 2, 2] where pairs are interleaved."""
    if not self.interleaved_rope:
      return slot.reshape(-1)
    return slot.reshape(-1, 2, slot.shape[-1] // 2).transpose(0, 2, 1)

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`."""
    return _flat_parts((shape, index))


@dataclasses.dataclass(frozen=True)
class Linear(Layout):
  """A matrix [out, in], as `torch.nn.Linear` has it.

  Attributes:
    inputs: how many of our first axes are the input: 2 for [H, K, D].
    interleaved_rope: see `Vector`.
  """

  inputs: int = 1
  interleaved_rope: bool = False

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return _matrix_shape(shape, self.inputs)[::-1]

  def in_file_order(self, slot: np.ndarray) -> np.ndarray:
    """See `Layout`; [H, K / 2, 2, in] where pairs are interleaved."""
    matrix = slot.reshape(_matrix_shape(slot.shape, self.inputs))
    if not self.interleaved_rope:
      return matrix.T
    pairs = matrix.reshape(len(matrix), -1, 2, slot.shape[-1] // 2)
    return pairs.transpose(1, 3, 2, 0)

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`."""
    n = self.inputs
    return _flat_parts((shape[n:], index[n:]), (shape[:n], index[:n]))


@dataclasses.dataclass(frozen=True)
class Reordered(Layout):
  """Our axes in another order.

  Attributes:
    order: which of ours is each of the file's; by default a matrix [out, in]
      of each expert.
  """

  order: tuple[int, ...] = (0, 2, 1)

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return tuple(shape[axis] for axis in self.order)

  def in_file_order(self, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    return slot.transpose(self.order)

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`."""
    return tuple(index[axis] for axis in self.order)


@dataclasses.dataclass(frozen=True)
class Kernel(Layout):
  """A matrix [in, out], as `Conv1D` of transformers and as flax have it.

  Attributes:
    inputs: see `Linear`.
    interleaved_rope: see `Vector`.
  """

  inputs: int = 1
  interleaved_rope: bool = False

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return _matrix_shape(shape, self.inputs)

  def in_file_order(self, slot: np.ndarray) -> np.ndarray:
    """See `Layout`; [in, H, K / 2, 2] where pairs are interleaved."""
    matrix = slot.reshape(_matrix_shape(slot.shape, self.inputs))
    if not self.interleaved_rope:
      return matrix
    pairs = matrix.reshape(len(matrix), -1, 2, slot.shape[-1] // 2)
    return pairs.transpose(0, 1, 3, 2)

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`."""
    n = self.inputs
    return _flat_parts((shape[:n], index[:n]), (shape[n:], index[n:]))


def _flat_parts(
  *groups: tuple[Shape, tuple[slice, ...]],
) -> tuple[slice, ...] | None:
  """One slice for each group of axes that the file has as one axis.

  Returns:
    `None` where a group is cut along another axis than its first: what is
    wanted is then no range.
  """
  parts = []
  for shape, index in groups:
    ranges = [
      at.indices(size)[:2] for at, size in zip(index, shape, strict=True)
    ]
    if any(
      (start, stop) != (0, size)
      for (start, stop), size in zip(ranges[1:], shape[1:], strict=True)
    ):
      return None
    inner = math.prod(shape[1:])
    start, stop = ranges[0] if ranges else (0, 1)
    parts.append(slice(start * inner, stop * inner))
  return tuple(parts)


def _matrix_shape(shape: Shape, inputs: int) -> tuple[int, int]:
  return math.prod(shape[:inputs]), math.prod(shape[inputs:])


@dataclasses.dataclass(frozen=True)
class Below(Layout):
  """A table behind rows that nothing reads.

  Attributes:
    rows: how many; they are written as zeros.
  """

  rows: int

  def stored_shape(self, shape: Shape) -> Shape:
    """See `Layout`."""
    return (shape[0] + self.rows, *shape[1:])

  def spare(self, shape: Shape) -> int:
    """See `Layout`."""
    return self.rows * math.prod(shape[1:])

  def stored_row(self, row: int) -> int:
    """See `Layout`."""
    return row + self.rows

  def part(self, tensor: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """See `Layout`."""
    return tensor[self.rows :]

  def stored_part(
    self, shape: Shape, index: tuple[slice, ...]
  ) -> tuple[slice, ...] | None:
    """See `Layout`."""
    start, stop, _ = index[0].indices(shape[0])
    return (slice(start + self.rows, stop + self.rows), *index[1:])

  def read(self, source: Source, name: str, slot: np.ndarray) -> None:
    """See `Layout`; the rows in front are read, too."""
    slot[...] = self.part(source.read(name), slot)

  def write(self, slot: np.ndarray, tensor: np.ndarray) -> None:
    """See `Layout`."""
    tensor[: self.rows] = 0
    super().write(slot, tensor)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Where one parameter lies in a file.

  Attributes:
    path: ours, "blocks/attn/q/kernel".
    name: theirs, "{i}" standing for the layer and "{e}" for the expert, where
      each has a tensor of its own.
    layout: how it is stored.
    norm_offset: what the file has added to a norm's scale, which it stores as
      1 + w where the model computes with 1 + w: GGUF does so, Hugging Face
      stores w.
    layers: the first layer and the one behind the last that have a tensor of
      this name; `None` for all. Where no leaf has a layer's part of a
      parameter, it is read as zeros and not written.
  """

  path: str
  name: str
  layout: Layout = Vector()
  norm_offset: float = 0.0
  layers: tuple[int, int] | None = None

  @property
  def per_layer(self) -> bool:
    """Whether the parameter is stacked over layers."""
    return "{i}" in self.name

  def places(
    self, shape: Shape, layer: int | None = None
  ) -> list[tuple[tuple[int, ...], str]]:
    """Every tensor of the file that the parameter is in: (index, its name).

    Args:
      shape: of our parameter, which `index` takes a part of.
      layer: where our parameter is that of one layer, without that axis.
    """
    found: list[tuple[tuple[int, ...], str]] = [((), self.name)]
    if "{i}" in self.name:
      layers = range(shape[0]) if layer is None else [layer]
      if self.layers is not None:
        layers = [i for i in layers if self.layers[0] <= i < self.layers[1]]
      shape = shape[1:] if layer is None else shape
      found = [
        ((i,) if layer is None else (), self.name.replace("{i}", str(i)))
        for i in layers
      ]
    if "{e}" in self.name:
      found = [
        ((*index, e), name.replace("{e}", str(e)))
        for index, name in found
        for e in range(shape[0])
      ]
    return found

  def read(self, source: Source, name: str, slot: np.ndarray) -> None:
    """Fills our `slot` from a source's tensor, one of `places`."""
    self.layout.read(source, name, slot)
    if self.norm_offset:
      slot -= np.float32(self.norm_offset)

  def read_part(
    self,
    source: Source,
    name: str,
    shape: Shape,
    index: tuple[slice, ...],
    out: np.ndarray,
  ) -> None:
    """Fills `out` with a part of our slot, rounded to its dtype.

    A part that is no box of the file's tensor is cut out of the whole.

    Args:
      source: what is read.
      name: one of `places`.
      shape: of the slot.
      index: of every axis of the slot a slice.
      out: C-contiguous, of any float dtype.
    """
    part = self.layout.stored_part(shape, index)
    if part is None or not isinstance(source, PartSource):
      slot = np.empty(shape, np.float32)
      self.read(source, name, slot)
      out[...] = slot[index]
      return
    values = source.read_part(name, part)
    if self.norm_offset:
      values -= np.float32(self.norm_offset)
    view = self.layout.in_file_order(out)
    view[...] = values.reshape(view.shape)

  def write(self, slot: np.ndarray, tensor: np.ndarray) -> None:
    """Fills what belongs to this parameter of a file's tensor."""
    if self.norm_offset:
      # Not in place: the slot is the caller's parameter.
      slot = slot + np.float32(self.norm_offset)
    self.layout.write(slot, tensor)
