"""A narrow embedding, as one of the width of the model's layers.

OPT-350M embeds tokens in E < D numbers, which `project_in` takes to D, and its
logits are made of the E numbers to which `project_out` takes the last layer's.
With both matrices multiplied into the tables the model is the same function, up
to rounding, and has an embedding and an unembedding of its own, as any other.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sinkjax.weights.formats import rawfile, tiles
from sinkjax.weights.formats.safetensors_io import SafeTensor, SafetensorsFolder

_IN, _OUT = "project_in.weight", "project_out.weight"
_EMBED, _UNEMBED = "embed_tokens.weight", "lm_head.weight"


class _Product(NamedTuple):
  """A table [V, D].

  Attributes:
    table: the stored one, [V, E].
    matrix: its projection.
    axis: that of D in the projection.
  """

  table: str
  matrix: str
  axis: int


class Projected:
  """A folder whose two tables have its projections multiplied into them.

  Folders without projections are as they were.

  Args:
    folder: as stored.
  """

  def __init__(self, folder: SafetensorsFolder):
    self._folder = folder
    self.tensors: dict[str, SafeTensor] = dict(folder.tensors)
    self._made: dict[str, _Product] = {}
    embed = self._named(_EMBED)
    if embed is None:
      return
    found = [self._named(name) for name in (_IN, _OUT)]
    if None in found:
      return
    to_model, to_logits = found
    head = self._named(_UNEMBED)
    # `torch.nn.Linear` has [out, in].
    self._add(embed, _Product(embed, to_model, 0))
    self._add(head or _UNEMBED, _Product(head or embed, to_logits, 1))
    for name in found:
      del self.tensors[name]

  def _named(self, ending: str) -> str | None:
    """The tensor of that name, whatever the prefix."""
    names = (n for n in self._folder.tensors if f".{n}".endswith(f".{ending}"))
    return next(names, None)

  def _add(self, name: str, product: _Product) -> None:
    table, matrix, axis = product
    stored, by = (self._folder.tensors[n] for n in (table, matrix))
    sizes = stored.shape, by.shape
    if [len(s) for s in sizes] != [2, 2] or sizes[0][1] != sizes[1][1 - axis]:
      rawfile.refuse(
        by.file,
        f"tensor {rawfile.show(matrix)} has shape {by.shape}, which does not "
        f"go with {rawfile.show(table)} of {stored.shape}",
      )
    shape = (stored.shape[0], by.shape[axis])
    self.tensors[name] = dataclasses.replace(stored, shape=shape)
    self._made[name] = product

  def check_dtype(self, name: str) -> None:
    """See `SafetensorsFolder`."""
    made = self._made.get(name)
    for stored in (name,) if made is None else made[:2]:
      self._folder.check_dtype(stored)

  def _times(self, name: str, rows: np.ndarray) -> np.ndarray:
    """[R, E] rows of a stored table -> [R, D]."""
    _, matrix, axis = self._made[name]
    stored = self._folder.read(matrix).astype(np.float64)
    # In float32 a row would depend, in its last digit, on how many are read
    # with it: a layer-by-layer model would not be the whole one.
    made = rows.astype(np.float64) @ (stored if axis == 1 else stored.T)
    return made.astype(np.float32)

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """See `SafetensorsFolder`."""
    if name not in self._made:
      return self._folder.read(name, out=out)
    return tiles.handed(
      self._times(name, self._folder.read(self._made[name].table)), out
    )

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    """See `SafetensorsFolder`."""
    if name not in self._made:
      return self._folder.read_rows(name, rows, out=out)
    stored = self._folder.read_rows(self._made[name].table, rows)
    return tiles.handed(self._times(name, stored), out)

  def read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
    """See `SafetensorsFolder`."""
    if name not in self._made:
      return self._folder.read_part(name, part)
    table = self._made[name].table
    stored = self._folder.read_part(table, (part[0], slice(None)))
    return self._times(name, stored)[:, part[1]].copy()
