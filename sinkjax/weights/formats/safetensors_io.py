"""Safetensors, one file or a sharded folder: checked headers -> tensors.

`open_folder` reads and checks headers and the index only; `read` reads the
bytes of one tensor and widens them to float32 in any view, tile by tile.

Cost: `open_folder` is linear in the headers; `read` is linear in the
elements and takes about 4 MB beside its output.

Sharp edges: a shard that is a symbolic link must stay inside its folder, or
inside `blobs` of the same Hugging Face cache entry, which is how that cache
stores every file. With both `model.safetensors` and an index in a folder,
the single file is read, as Hugging Face does.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from sinkjax.weights.folders import require_inside
from sinkjax.weights.formats import (
  gguf_dequant,
  rawfile,
  safetensors_header,
  tiles,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# As the header of one file; shards are a few GB each, so models have hundreds.
MAX_INDEX = safetensors_header.MAX_HEADER
MAX_SHARDS = 4096
_TO_FLOAT32 = {
  "F32": tiles.Codec(1, 4, values=gguf_dequant.float32_values),
  "F16": tiles.Codec(1, 2, values=gguf_dequant.float16_values),
  "BF16": tiles.Codec(1, 2, values=gguf_dequant.bfloat16_values),
}


@dataclasses.dataclass(frozen=True)
class SafeTensor:
  """Where a tensor lies.

  Attributes:
    name: as stored.
    dtype: the format's name of the type, for example `BF16`.
    shape: slowest axis first; () for a scalar.
    file: the path of the file that holds it.
    offset: first byte, counted from the start of the file.
    n_bytes: bytes on disk.
  """

  name: str
  dtype: str
  shape: tuple[int, ...]
  file: str
  offset: int
  n_bytes: int


@dataclasses.dataclass(frozen=True, eq=False)
class SafetensorsFolder:
  """Checked headers of one file or of all shards.

  Attributes:
    path: the folder or file.
    tensors: by name, shard after shard.
  """

  path: str
  tensors: dict[str, SafeTensor]

  def read(self, name: str, out: np.ndarray | None = None) -> np.ndarray:
    """Reads one F32, F16 or BF16 tensor as float32, exactly.

    Args:
      name: a name in `tensors`.
      out: a writable float32 numpy array or view with as many elements, in C
        order, as the tensor; any strides, any splitting of its axes.

    Returns:
      `out`, or a new array of the tensor's shape. Thread safe.

    Raises:
      WeightsError: no such tensor, another dtype, `out` does not fit, the
        file changed, or values are not finite (`out` is then undefined).
    """
    return tiles.read(self._stored(name), out)

  def read_rows(
    self, name: str, rows: Sequence[int], out: np.ndarray | None = None
  ) -> np.ndarray:
    """Reads some rows of a matrix as float32, and no other bytes.

    Args:
      name: a matrix in `tensors`.
      rows: row numbers, in any order.
      out: as for `read`, of shape [rows, columns].

    Returns:
      `out`, or a new array. Thread safe.

    Raises:
      WeightsError: as `read`, or for a row that is not there.
    """
    return tiles.read_rows(self._stored(name), rows, out)

  def read_part(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
    """Reads a box of a tensor as float32, and no other bytes.

    Args:
      name: a name in `tensors`.
      part: of every axis a slice without a step.

    Raises:
      WeightsError: as `read`.
    """
    return tiles.read_part(self._stored(name), part)

  def check_dtype(self, name: str) -> None:
    """Raises WeightsError for a tensor that `read` would refuse unread."""
    self._stored(name)

  def _stored(self, name: str) -> tiles.Stored:
    tensor = self._tensor(name)
    codec = _TO_FLOAT32.get(tensor.dtype)
    if codec is None:
      rawfile.refuse(
        tensor.file,
        f"tensor {rawfile.show(name)} is {tensor.dtype}; only "
        f"{', '.join(_TO_FLOAT32)} are read as float32 weights",
      )
    return tiles.Stored(tensor.file, name, tensor.shape, tensor.offset, codec)

  def read_raw(self, name: str) -> np.ndarray:
    """Reads one tensor in its stored dtype (BF16 and F8 via ml_dtypes).

    For what `read` refuses: the packed blocks and scales of a quantised file,
    which are no weights until somebody has put them together. Values are
    returned as stored; float ones are checked to be finite.

    Raises:
      WeightsError: as `read`, but for the dtype.
    """
    tensor = self._tensor(name)
    dtype = safetensors_header.DTYPES[tensor.dtype]
    raw = np.empty(tensor.n_bytes, np.uint8)
    with rawfile.open_binary(tensor.file) as file:
      file.seek(tensor.offset)
      rawfile.read_exact(file, memoryview(raw), tensor.file)
    fault = None
    if tensor.dtype == "BOOL" and raw.max() > 1:
      fault = "bytes other than 0 and 1; expected bools"
    values = raw.view(dtype).reshape(tensor.shape)
    with np.errstate(all="ignore"):  # signalling NaNs warn
      finite = "F" not in tensor.dtype or np.isfinite(values).all()
    if not finite:
      fault = "NaN or infinite values; expected finite weights"
    if fault:
      rawfile.refuse(tensor.file, f"tensor {rawfile.show(name)} holds {fault}")
    return values

  def _tensor(self, name: str) -> SafeTensor:
    tensor = self.tensors.get(name)
    if tensor is None:
      rawfile.refuse(
        self.path,
        f"has no tensor {rawfile.show(name)}; it has {len(self.tensors)}: "
        + rawfile.show(", ".join(list(self.tensors)[:4]), 120),
      )
    return tensor


def open_folder(path: str | os.PathLike) -> SafetensorsFolder:
  """Reads and checks the headers of a safetensors file or folder.

  Args:
    path: a folder with `model.safetensors`, with
      `model.safetensors.index.json` and its shards, or with one safetensors
      file of any other name; or one file.

  Returns:
    The checked headers. No tensor bytes are read.

  Raises:
    WeightsError: with one line, for anything else: pickles, damaged headers,
      tensors that do not tile their file, an index that disagrees with its
      shards or leaves its folder.
  """
  if not isinstance(path, str | os.PathLike) or not os.path.isdir(path):
    rawfile.file_size(path)
    return SafetensorsFolder(os.fspath(path), _file_tensors(os.fspath(path)))
  folder = os.fspath(path)
  if os.path.lexists(os.path.join(folder, SINGLE)):
    tensors = _file_tensors(_inside(folder, folder, SINGLE))
  elif os.path.lexists(os.path.join(folder, INDEX)):
    tensors = _sharded_tensors(folder, _inside(folder, folder, INDEX))
  else:
    tensors = _file_tensors(_inside(folder, folder, _only_file(folder)))
  return SafetensorsFolder(folder, tensors)


def _only_file(folder: str) -> str:
  """The one safetensors file of a folder without the usual names.

  Raises:
    WeightsError: where there is none, or more than one.
  """
  try:
    names = sorted(os.listdir(folder))
  except OSError as error:
    rawfile.refuse(folder, f"cannot be listed ({error.strerror})")
  # Files such as "._model.safetensors" are some system's notes on others.
  names = [name for name in names if not name.startswith(".")]
  found = [name for name in names if name.endswith(".safetensors")]
  if len(found) != 1:
    _refuse_folder(folder, names, found)
  return found[0]


def _refuse_folder(folder: str, names: list[str], found: list[str]) -> None:
  neither = f"has neither {SINGLE} nor {INDEX}"
  if found:
    listed = rawfile.show(", ".join(found[:4]), 120)
    rawfile.refuse(
      folder,
      f"{neither}, but {len(found)} safetensors files: {listed}; add the "
      f"index of the shards, or call the one to read {SINGLE}",
    )
  ggufs = [name for name in names if name.endswith(".gguf")]
  if ggufs:
    rawfile.refuse(
      folder,
      f"{neither}, but {rawfile.show(ggufs[0])}: pass the path of that file",
    )
  pickles = [name for name in names if rawfile.is_pickle_name(name)]
  if pickles:
    rawfile.refuse(
      folder,
      f"has only pickles ({rawfile.show(pickles[0])}), which can run code "
      f"when read and never are; {rawfile.ACCEPTED}",
    )
  rawfile.refuse(folder, neither)


def _inside(folder: str, speaker: str, name: str) -> str:
  """The path of `name` in the folder, if that is where it really is."""
  path = os.path.join(folder, name)
  require_inside(folder, name, speaker)
  return path


def _file_tensors(path: str) -> dict[str, SafeTensor]:
  entries, _ = safetensors_header.read_header(path)
  return {
    name: SafeTensor(name, dtype, shape, path, offset, n_bytes)
    for name, (dtype, shape, offset, n_bytes) in entries.items()
  }


def _read_index(path: str) -> dict[str, str]:
  """The checked `weight_map` of an index: {tensor name: shard name}."""
  size = rawfile.file_size(path)
  if size > MAX_INDEX:
    rawfile.refuse(path, f"is {size} bytes; expected at most {MAX_INDEX}")
  data = bytearray(size)
  with rawfile.open_binary(path) as file:
    rawfile.read_exact(file, memoryview(data), path)
  index = safetensors_header.parse_object(path, bytes(data), "the index")
  weights = index.get("weight_map")
  if not isinstance(weights, dict) or not weights:
    rawfile.refuse(
      path,
      f"weight_map is {rawfile.show(weights)}; expected an object of "
      "tensor names and file names",
    )
  shards = set()
  for name, shard in weights.items():
    if not isinstance(shard, str):
      rawfile.refuse(
        path,
        f"weight_map gives {rawfile.show(shard)} for tensor "
        f"{rawfile.show(name)}; expected a file name",
      )
    shards.add(shard)
  for shard in sorted(shards):
    _check_shard_name(path, shard)
  if len(shards) > MAX_SHARDS:
    rawfile.refuse(
      path, f"names {len(shards)} shards; expected at most {MAX_SHARDS}"
    )
  return weights


def _check_shard_name(path: str, shard: str) -> None:
  if rawfile.is_pickle_name(shard):
    rawfile.refuse(
      path,
      f"names the pickle {rawfile.show(shard)}, which is never read; "
      f"{rawfile.ACCEPTED}",
    )
  if (
    not shard.endswith(".safetensors")
    or any(sign in shard for sign in "/\\:\0")
    or not shard.isprintable()
    or len(shard) > 255
  ):
    rawfile.refuse(
      path,
      f"names the shard {rawfile.show(shard)}; expected the plain name of a "
      ".safetensors file in the same folder",
    )


def _sharded_tensors(folder: str, path: str) -> dict[str, SafeTensor]:
  weights = _read_index(path)
  tensors: dict[str, SafeTensor] = {}
  for shard in sorted(set(weights.values())):
    if not os.path.lexists(os.path.join(folder, shard)):
      rawfile.refuse(path, f"names the shard {shard}, which is missing")
    held = _file_tensors(_inside(folder, path, shard))
    for name in held:
      shown = rawfile.show(name)
      if name in tensors:
        other = os.path.basename(tensors[name].file)
        rawfile.refuse(path, f"tensor {shown} is in both {other} and {shard}")
      if name not in weights:
        rawfile.refuse(path, f"tensor {shown} of {shard} is not in the index")
    tensors |= held
  for name, shard in weights.items():
    found = tensors.get(name)
    if found is None or os.path.basename(found.file) != shard:
      rawfile.refuse(
        path,
        f"puts tensor {rawfile.show(name)} into {shard}, which does not "
        "hold it",
      )
  return tensors
