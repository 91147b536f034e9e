"""Quantised tensors of safetensors folders, as the float32 that they stand for.

Two forms are read. MXFP4 (gpt-oss): a tensor's `_blocks` hold two 4-bit floats
a byte, the low half first, 32 of them in a row share a power of two in
`_scales`, and the last two axes are turned. Blocks of fp8 (DeepSeek, Qwen 3):
`weight` is in 8-bit floats, and each box of `weight_block_size` entries has a
factor in `weight_scale_inv`.

A quantised tensor is read whole, also where a few rows are asked for.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sinkjax.weights.formats import rawfile, tiles
from sinkjax.weights.formats.safetensors_io import SafeTensor, SafetensorsFolder
from sinkjax.weights.validate import WeightsError

# OCP Microscaling Formats 1.0: FP4 (E2M1), and scales that are exponents.
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4 = np.concatenate([_FP4, -_FP4])
_BYTES_A_BLOCK = 16
_EXPONENT_OF_ONE = 127
_NO_NUMBER = 255
_BOX = [128, 128]
_BLOCKS, _SCALES, _FACTORS = "_blocks", "_scales", "_scale_inv"


def mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """[..., G, 16] bytes and [..., G] exponents -> [..., 32 G] float32."""
  values = _FP4[np.stack([blocks & 15, blocks >> 4], axis=-1)]
  values = values.reshape(*scales.shape, 2 * blocks.shape[-1])
  exponents = scales.astype(np.int32) - _EXPONENT_OF_ONE
  with np.errstate(over="ignore"):  # who reads them refuses infinities
    found = np.ldexp(values, exponents[..., None])
  return found.reshape(*scales.shape[:-1], -1)


def fp8_blocks(
  values: np.ndarray, factors: np.ndarray, box: Sequence[int]
) -> np.ndarray:
  """[R, C] float32 times the factor of its box, [R / rows, C / columns]."""
  rows, columns = (
    np.arange(n) // b for n, b in zip(values.shape, box, strict=True)
  )
  with np.errstate(over="ignore"):  # as above
    return values * factors[rows[:, None], columns]


class Dequantised:
  """A folder whose quantised tensors have the names and shapes of plain ones.

  Args:
    folder: as stored.
    stated: `quantization_config` of `config.json`.
  """

  def __init__(self, folder: SafetensorsFolder, stated: dict[str, Any]):
    self._folder = folder
    self._box = stated.get("weight_block_size") or _BOX
    if not (
      isinstance(self._box, list)
      and len(self._box) == 2
      and all(type(n) is int and n > 0 for n in self._box)
    ):
      raise WeightsError(
        f"{folder.path}: weight_block_size={self._box!r:.80} must be two sizes"
      )
    self.tensors: dict[str, SafeTensor] = {}
    for name, tensor in folder.tensors.items():
      plain = self._plain(name)
      if plain is not None:
        shape = self._shape(name, tensor)
        self.tensors[plain] = dataclasses.replace(tensor, shape=shape)
    self._check()

  def _plain(self, name: str) -> str | None:
    """The name without what the form adds; `None` for scales."""
    held = self._folder.tensors
    if name.endswith(_BLOCKS):
      return name.removesuffix(_BLOCKS)
    if name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in held:
      return None
    if name.endswith(_FACTORS) and name.removesuffix(_FACTORS) in held:
      return None
    return name

  def _shape(self, name: str, tensor: SafeTensor) -> tuple[int, ...]:
    if not name.endswith(_BLOCKS):
      return tensor.shape
    if len(tensor.shape) < 3 or tensor.shape[-1] != _BYTES_A_BLOCK:
      rawfile.refuse(
        tensor.file,
        f"tensor {rawfile.show(name)} has shape {tensor.shape}; blocks of "
        f"MXFP4 have {_BYTES_A_BLOCK} bytes",
      )
    *lead, rows, groups, size = tensor.shape
    return (*lead, 2 * groups * size, rows)

  def _check(self) -> None:
    """Scales that are not there, or are not as many as they should be."""
    for name in self.tensors:
      pair = self._pair(name)
      if pair is None:
        continue
      values, scales = (self._folder.tensors.get(x) for x in pair)
      if scales is None:
        rawfile.refuse(
          values.file, f"tensor {rawfile.show(pair[1])} of scales is missing"
        )
      want = values.shape[:-1]
      if pair[0] == name:
        want = tuple(
          math.ceil(n / b)
          for n, b in zip(values.shape, self._box, strict=False)
        )
      if scales.shape != want or len(values.shape) < 2:
        rawfile.refuse(
          values.file,
          f"tensor {rawfile.show(pair[1])} has shape {scales.shape}; "
          f"{rawfile.show(pair[0])} of {values.shape} needs {want}",
        )

  def _pair(self, name: str) -> tuple[str, str] | None:
    """The stored names of values and scales of a quantised tensor."""
    held = self._folder.tensors
    if name + _BLOCKS in held:
      return name + _BLOCKS, name + _SCALES
    if name in held and held[name].dtype.startswith("F8"):
      return name, name + _FACTORS
    return None

  def check_dtype(self, name: str) -> None:
    """See `SafetensorsFolder`."""
    if self._pair(name) is None:
      self._folder.check_dtype(name)

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """See `SafetensorsFolder`."""
    pair = self._pair(name)
    if pair is None:
      return self._folder.read(name, out=out)
    if pair[0] == name:
      values = self._folder.read_raw(name).astype(np.float32)
      found = fp8_blocks(values, self._folder.read(pair[1]), self._box)
    else:
      found = self._read_mxfp4(*pair)
    if not np.isfinite(found).all():
      rawfile.refuse(
        self.tensors[name].file,
        f"tensor {rawfile.show(name)} holds values beyond float32",
      )
    return tiles.handed(found, out)

  def _read_mxfp4(self, blocks: str, scales: str) -> np.ndarray:
    packed = self._folder.read_raw(blocks)
    exponents = self._folder.read_raw(scales)
    for name, array in ((blocks, packed), (scales, exponents)):
      if array.dtype != np.uint8:
        rawfile.refuse(
          self._folder.tensors[name].file,
          f"tensor {rawfile.show(name)} is {array.dtype}; MXFP4 is in bytes",
        )
    if (exponents == _NO_NUMBER).any():
      rawfile.refuse(
        self._folder.tensors[scales].file,
        f"tensor {rawfile.show(scales)} holds scales that are no numbers",
      )
    shape = self.tensors[blocks.removesuffix(_BLOCKS)].shape
    found = np.empty(shape, np.float32)
    # One matrix at a time: all experts of a layer are gigabytes.
    for at in np.ndindex(shape[:-2]):
      found[at] = mxfp4(packed[at], exponents[at]).T
    return found

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    """See `SafetensorsFolder`."""
    if self._pair(name) is None:
      return self._folder.read_rows(name, rows, out=out)
    return tiles.handed(self.read(name)[list(rows)], out)

  def read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
    """See `SafetensorsFolder`."""
    if self._pair(name) is None:
      return self._folder.read_part(name, part)
    return self.read(name)[part].copy()
