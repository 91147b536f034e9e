"""GGUF files: bytes -> a checked header -> float32 tensors.

`open_gguf` reads and checks the header only; `read_tensor` reads the bytes of
one tensor with plain file reads (mapped pages would count as memory) and
dequantises them tile by tile into any float32 view.

Cost: `open_gguf` is linear in the header (0.05 s for 49k tokens and 49k
merges); `read_tensor` is linear in the elements, about 1.5 ns each, and takes
about 4 MB beside its output.

A model in parts (`NAME-00001-of-00003.gguf` and so on) is one file here,
whichever part is named.

Sharp edges: llama-architecture files store q and k rows permuted for
interleaved RoPE; tensors come out here as stored.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from sinkjax.weights.formats import (
  gguf_dequant,
  gguf_header,
  gguf_parts,
  rawfile,
  tiles,
)


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
  """Where a tensor lies.

  Attributes:
    name: as stored, for example `blk.0.attn_q.weight`.
    file: the path of the file, or part, that holds it.
    shape: numpy order, slowest axis first (the reverse of ggml's `ne`).
    type: the quantisation type.
    offset: first byte, counted from the start of the file.
    n_bytes: bytes on disk.
  """

  name: str
  file: str
  shape: tuple[int, ...]
  type: GGMLQuantizationType
  offset: int
  n_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class GGUFFile:
  """A checked header.

  Attributes:
    path: the file; of a model in parts the first.
    version: 2 or 3.
    metadata: Python scalars, str, list[str] for string arrays, numpy arrays
      for number arrays, lists of those for nested arrays.
    tensors: by name, in file order, part after part.
  """

  path: str
  version: int
  metadata: dict[str, Any]
  tensors: dict[str, GGUFTensor]


def open_gguf(path: str | os.PathLike) -> GGUFFile:
  """Reads and checks the header of a GGUF file, or of all parts of a model.

  Args:
    path: a little-endian GGUF file, version 2 or 3, or any part of a model.

  Returns:
    The header. No tensor bytes are read.

  Raises:
    WeightsError: with one line, for anything else: another or a damaged
      format, counts, lengths, shapes or offsets that do not fit the file
      exactly, duplicate or unknown things, parts that are not there or do not
      belong together.
  """
  named = _open_one(path)
  count = named.metadata.get("split.count", 1)
  if type(count) is not int or count <= 1:
    return named
  paths = gguf_parts.parts(path)
  if len(paths) != count:
    rawfile.refuse(
      path,
      f"is one of {count} parts of a model; their names must end in "
      f"-00001-of-{count:05d}.gguf and so on",
    )
  missing = [part for part in paths if not os.path.exists(part)]
  if missing:
    rawfile.refuse(
      path,
      f"is one of {count} parts of a model, and "
      f"{rawfile.show(os.path.basename(missing[0]))} is not beside it",
    )
  return _joined([_open_one(part) for part in paths])


def _joined(found: Sequence[GGUFFile]) -> GGUFFile:
  """All parts as one file; the first has the metadata."""
  first, tensors = found[0], {}
  total = first.metadata.get("split.tensors.count")
  for i, part in enumerate(found):
    own = [part.metadata.get(f"split.{key}") for key in ("no", "count")]
    if own != [i, len(found)]:
      rawfile.refuse(
        part.path,
        f"says that it is part {own[0]!r:.20} of {own[1]!r:.20}, counted from "
        f"0; expected part {i} of {len(found)}",
      )
    for name, tensor in part.tensors.items():
      if name in tensors:
        rawfile.refuse(
          part.path, f"tensor {rawfile.show(name)} is in two parts"
        )
      tensors[name] = tensor
  if total is not None and total != len(tensors):
    rawfile.refuse(
      first.path,
      f"its parts have {len(tensors)} tensors, {total!r:.20} are announced",
    )
  return dataclasses.replace(first, tensors=tensors)


def _open_one(path: str | os.PathLike) -> GGUFFile:
  """One file, whether or not it is a part."""
  size = rawfile.file_size(path)
  with rawfile.open_binary(path) as file:
    reader = gguf_header.Reader(os.fspath(path), file, size)
    version = gguf_header.read_version(reader)
    n_tensors = reader.u64("the tensor count")
    n_pairs = reader.u64("the metadata count")
    # The least bytes of a pair are 8 of its key's length, 4 of a type and 1 of
    # a value; of a tensor 8 of its name's length, 4 of the number of axes, 8 of
    # one axis, 4 of a type and 8 of an offset.
    reader.count(n_pairs, 13, gguf_header.MAX_PAIRS, "metadata")
    reader.count(n_tensors, 32, gguf_header.MAX_TENSORS, "tensors")
    metadata = gguf_header.read_metadata(reader, n_pairs)
    align = gguf_header.alignment(reader, metadata)
    infos = [gguf_header.read_tensor_info(reader, i) for i in range(n_tensors)]
    start = gguf_header.check_layout(reader, infos, align)
  tensors: dict[str, GGUFTensor] = {}
  for name, shape, type_, offset, n_bytes in infos:
    if name in tensors:
      rawfile.refuse(path, f"tensor {rawfile.show(name)} is there twice")
    if gguf_dequant.codec(type_) is None:
      rawfile.refuse(
        path,
        f"tensor {rawfile.show(name)} is stored as {type_.name}, which "
        "cannot be dequantised here",
      )
    tensors[name] = GGUFTensor(
      name, os.fspath(path), shape, type_, start + offset, n_bytes
    )
  return GGUFFile(os.fspath(path), version, metadata, tensors)


def read_tensor(
  file: GGUFFile, name: str, out: np.ndarray | None = None
) -> np.ndarray:
  """Reads one tensor as float32.

  Args:
    file: from `open_gguf`.
    name: a name in `file.tensors`.
    out: a writable float32 numpy array or view with as many elements, in C
      order, as the tensor; any strides. It may split the tensor's axes, for
      example a [H * K, D] tensor into a strided view [H, K / 2, 2, D].

  Returns:
    `out`, or a new array of the tensor's shape. Thread safe: each call opens
    the file for itself.

  Raises:
    WeightsError: no such tensor, `out` does not fit, the file changed, or
      the tensor holds NaN or infinite values (`out` is then undefined).
  """
  return tiles.read(_stored(file, name), out)


def read_rows(
  file: GGUFFile, name: str, rows: Sequence[int], out: np.ndarray | None = None
) -> np.ndarray:
  """Reads some rows of a matrix as float32, and no other bytes.

  Args:
    file: from `open_gguf`.
    name: a matrix in `file.tensors`; a row is a whole number of blocks.
    rows: row numbers, in any order.
    out: as for `read_tensor`, of shape [rows, columns].

  Returns:
    `out`, or a new array. Thread safe.

  Raises:
    WeightsError: as `read_tensor`, or for a row that is not there.
  """
  return tiles.read_rows(_stored(file, name), rows, out)


def read_part(file: GGUFFile, name: str, part: tuple[slice, ...]) -> np.ndarray:
  """Reads a box of a tensor as float32, in whole blocks of its rows.

  Args:
    file: from `open_gguf`.
    name: a name in `file.tensors`.
    part: of every axis a slice without a step.

  Raises:
    WeightsError: as `read_tensor`.
  """
  return tiles.read_part(_stored(file, name), part)


def _stored(file: GGUFFile, name: str) -> tiles.Stored:
  tensor = file.tensors.get(name)
  if tensor is None:
    rawfile.refuse(
      file.path,
      f"has no tensor {rawfile.show(name)}; it has {len(file.tensors)}: "
      + rawfile.show(", ".join(list(file.tensors)[:4]), 120),
    )
  codec = gguf_dequant.codec(tensor.type)
  return tiles.Stored(tensor.file, name, tensor.shape, tensor.offset, codec)
