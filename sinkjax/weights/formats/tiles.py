"""Streams a stored tensor into any float32 view, one cache-sized tile a time.

A `Codec` says how `block` elements are packed into `block_bytes` bytes. The
destination may be strided: the usual case is a checkpoint's `[out, in]`
matrix written into the `[in, out]` kernel of one layer inside a stacked
buffer. Where the rows of the tensor are the fast axis of the destination,
the packed bytes are transposed (they are few) instead of the floats (they
are many), and every numpy loop then runs along the destination.

Cost: time linear in the elements; at most about 4 MB of memory beside `out`.

Sharp edges: when `out` cannot be cut along rows of whole blocks (its axes
split a row in the middle of nowhere), one full float32 copy of the tensor is
made. After an error the contents of `out` are undefined.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sinkjax.weights.formats import rawfile

# Elements a tile: 1 MB of float32, which measured best (2 cores, 1 MB L2).
TILE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Codec:
  """How elements are stored. One of `values` and `kernel` is set.

  Attributes:
    block: elements in a block.
    block_bytes: bytes in a block.
    values: flat uint8 -> flat float32, in order.
    kernel: `kernel(raw, out)`; raw is uint8 [block_bytes, ...], out float32
      [block, ...], both any strides; returns False if a scale is not finite.
  """

  block: int
  block_bytes: int
  values: Callable[[np.ndarray], np.ndarray] | None = None
  kernel: Callable[[np.ndarray, np.ndarray], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor on disk: where it lies and how it is packed."""

  path: str
  name: str
  shape: tuple[int, ...]
  offset: int
  codec: Codec


def read(stored: Stored, out: np.ndarray | None = None) -> np.ndarray:
  """Reads the tensor as float32, into `out` if given, and returns it.

  Raises:
    WeightsError: the file ended early, a value is not finite, or `out` is
      not a writable float32 array with as many elements as the tensor.
  """
  size = math.prod(stored.shape)
  if out is None:
    try:
      out = np.empty(stored.shape, np.float32)
    except MemoryError:
      rawfile.refuse(
        stored.path,
        f"tensor {rawfile.show(stored.name)} needs {4 * size} bytes of "
        "memory as float32, more than can be had",
      )
  else:
    _check_out(stored, size, out)
  with np.errstate(all="ignore"):  # a non-finite scale is refused, not warned
    _fill(stored, out)
  return out


def handed(found: np.ndarray, out: np.ndarray | None) -> np.ndarray:
  """What was made whole, written into `out` where given, in its order."""
  if out is None:
    return found
  out[...] = found.reshape(out.shape)
  return out


def read_rows(
  stored: Stored, rows: Sequence[int], out: np.ndarray | None = None
) -> np.ndarray:
  """Reads some rows of a matrix as float32, and no other bytes.

  Args:
    stored: a matrix.
    rows: row numbers, in any order, also repeated. Neighbours that follow
      each other in the file are read at once.
    out: as for `read`, of shape [rows, columns].

  Raises:
    WeightsError: as `read`, or for a row that the matrix does not have.
  """
  rows, (count, row) = np.asarray(rows, np.int64), stored.shape
  if rows.size and not 0 <= rows.min() <= rows.max() < count:
    rawfile.refuse(
      stored.path,
      f"tensor {rawfile.show(stored.name)} has {count} rows: rows "
      f"{rows.min()} to {rows.max()} cannot be read",
    )
  part = dataclasses.replace(stored, shape=(len(rows), row))
  if out is None:
    out = np.empty(part.shape, np.float32)
  _check_out(part, len(rows) * row, out)
  _fill_rows(stored, rows, 0, out)
  return out


def read_part(stored: Stored, part: tuple[slice, ...]) -> np.ndarray:
  """Reads a box of the tensor as float32, and no other bytes of its rows.

  Along a row the bytes are those of whole blocks, so that up to one block at
  each end is read and dropped.

  Args:
    stored: a tensor.
    part: of every axis a slice without a step.

  Raises:
    WeightsError: as `read`.
  """
  *lead, row = stored.shape or (1,)
  start, stop, _ = (part or (slice(None),))[-1].indices(row)
  rows = np.arange(math.prod(lead)).reshape(lead)[part[:-1]]
  block = stored.codec.block
  first, last = start // block * block, -(-stop // block) * block
  out = np.empty((rows.size, last - first), np.float32)
  _fill_rows(stored, rows.ravel(), first, out)
  return out[:, start - first : stop - first].reshape(*rows.shape, -1)


def _fill_rows(
  stored: Stored, rows: np.ndarray, column: int, out: np.ndarray
) -> None:
  """Fills `out` [rows, columns] with some rows, from a column on."""
  width, codec = out.shape[1], stored.codec
  whole, raw_row, skipped = (
    n // codec.block * codec.block_bytes
    for n in ((stored.shape or (1,))[-1], width, column)
  )
  step = _rows_a_tile(width)
  buffer = np.empty(min(step, len(rows)) * raw_row, np.uint8)
  with np.errstate(all="ignore"), rawfile.open_binary(stored.path) as file:
    for start in range(0, len(rows), step):
      chunk = rows[start : start + step]
      raw = buffer[: len(chunk) * raw_row]
      follows = np.diff(chunk) == 1
      if raw_row != whole:  # between two parts of rows there are other bytes
        follows[:] = False
      ends = np.flatnonzero(~follows) + 1
      for first, last in itertools.pairwise([0, *ends, len(chunk)]):
        file.seek(stored.offset + int(chunk[first]) * whole + skipped)
        bytes_ = memoryview(raw[first * raw_row : last * raw_row])
        rawfile.read_exact(file, bytes_, stored.path)
      _decode_or_refuse(stored, raw, width, out[start : start + step])


def _check_out(stored: Stored, size: int, out: object) -> None:
  name = rawfile.show(stored.name)
  if not isinstance(out, np.ndarray) or out.dtype != np.float32:
    got = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
    rawfile.refuse(
      stored.path,
      f"tensor {name}: out must be a float32 numpy array, got {got}",
    )
  if out.size != size or not out.flags.writeable:
    rawfile.refuse(
      stored.path,
      f"tensor {name} has shape {list(stored.shape)} ({size} elements): "
      f"out must be writable with as many, got {list(out.shape)}",
    )


def _fill(stored: Stored, out: np.ndarray) -> None:
  codec = stored.codec
  row = stored.shape[-1] if stored.shape else 1
  axis = _row_axis(out, row)
  if out.flags.c_contiguous and (axis is None or row > TILE):
    row = codec.block * math.gcd(row // codec.block, TILE // codec.block)
    out, axis = out.reshape(-1, row), 1
  if axis is None:
    whole = np.empty(stored.shape, np.float32)
    _fill(stored, whole)
    out[...] = whole.reshape(out.shape)
    return
  rows = _rows_a_tile(row)
  raw_row = row // codec.block * codec.block_bytes
  buffer = np.empty(min(rows, max(1, out.size // row)) * raw_row, np.uint8)
  with rawfile.open_binary(stored.path) as file:
    file.seek(stored.offset)
    for tile in _tiles(out, axis, rows):
      raw = buffer[: tile.size // row * raw_row]
      rawfile.read_exact(file, memoryview(raw), stored.path)
      _decode_or_refuse(stored, raw, row, tile)


def _rows_a_tile(row: int) -> int:
  rows = max(1, TILE // row)
  return rows - (rows % 64 if rows > 64 else 0)  # whole cache lines if turned


def _row_axis(out: np.ndarray, row: int) -> int | None:
  """The axis of `out` from which on its axes make up one row."""
  product = 1
  for axis in range(out.ndim, -1, -1):
    if product == row and axis < out.ndim:
      return axis
    if axis:
      product *= out.shape[axis - 1]
  return None


def _tiles(out: np.ndarray, axis: int, rows: int) -> Iterator[np.ndarray]:
  """Cuts `out` in C order into pieces of at most `rows` rows.

  A piece is 2-D [rows, row] where the strides allow it.
  """
  flat = _merged(out, axis)
  if flat is not None:
    for start in range(0, len(flat), rows):
      yield flat[start : start + rows]
    return
  inner = math.prod(out.shape[1:axis])
  if axis and inner > rows:
    for part in out:
      yield from _tiles(part, axis - 1, rows)
    return
  if not axis:
    yield out[None]
    return
  step = rows // inner
  for start in range(0, len(out), step):
    yield out[start : start + step]


def _merged(out: np.ndarray, axis: int) -> np.ndarray | None:
  """`out` as a 2-D view [rows, row], or None if its strides forbid it."""
  lead = _merge(out.shape[:axis], out.strides[:axis])
  trail = _merge(out.shape[axis:], out.strides[axis:])
  if lead is None or trail is None:
    return None
  return np.lib.stride_tricks.as_strided(
    out, (lead[0], trail[0]), (lead[1], trail[1])
  )


def _merge(
  shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, int] | None:
  """Length and stride of the one axis that these axes amount to."""
  axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
  if not axes:
    return 1, 4
  for (_, outer), (n, inner) in zip(axes, axes[1:], strict=False):
    if outer != n * inner:
      return None
  return math.prod(n for n, _ in axes), axes[-1][1]


def _decode_or_refuse(
  stored: Stored, raw: np.ndarray, row: int, tile: np.ndarray
) -> None:
  if not _decode(raw, row, tile, stored.codec):
    rawfile.refuse(
      stored.path,
      f"tensor {rawfile.show(stored.name)} holds NaN or infinite "
      "values; expected finite weights",
    )


def _decode(raw: np.ndarray, row: int, tile: np.ndarray, codec: Codec) -> bool:
  """Decodes whole rows into `tile`; False if something is not finite."""
  rows = tile.size // row
  if codec.values is not None:
    values = codec.values(raw)
    tile[...] = values.reshape(tile.shape)
    return bool(np.isfinite(values).all())
  if tile.shape == (rows, row):
    return _run_kernel(raw, tile, codec)
  if _rows_are_fast(tile, rows, row):
    scratch = np.empty((row, rows), np.float32).T
  else:
    scratch = np.empty((rows, row), np.float32)
  finite = _run_kernel(raw, scratch, codec)
  tile[...] = scratch.reshape(tile.shape)
  return finite


def _rows_are_fast(tile: np.ndarray, rows: int, row: int) -> bool:
  """Whether the fastest axis of `tile` runs over rows, not inside one."""
  fast = min(
    (axis for axis in range(tile.ndim) if tile.shape[axis] > 1),
    key=lambda axis: abs(tile.strides[axis]),
    default=tile.ndim - 1,
  )
  return rows > 1 and math.prod(tile.shape[fast:]) > row


def _run_kernel(raw: np.ndarray, tile: np.ndarray, codec: Codec) -> bool:
  """Runs the block kernel on a 2-D tile, with loops along its fast axis."""
  rows, row = tile.shape
  blocks = row // codec.block
  if rows > 1 and abs(tile.strides[0]) < abs(tile.strides[1]):
    turned = np.ascontiguousarray(raw.reshape(rows, -1).T)
    source = turned.reshape(blocks, codec.block_bytes, rows)
    target = tile.T.reshape(blocks, codec.block, rows)
    return codec.kernel(source.swapaxes(0, 1), target.swapaxes(0, 1))
  source = raw.reshape(rows, blocks, codec.block_bytes)
  target = tile.reshape(rows, blocks, codec.block)
  return codec.kernel(np.moveaxis(source, -1, 0), np.moveaxis(target, -1, 0))
