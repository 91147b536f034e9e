"""Activations on disk: written in parts, read back as a source for grain.

A part is a safetensors file with `tokens` [N, T], `document` [N], `start` [N]
(where in its document a window begins) and an array [N, P, ...] for each site
and layer, P chosen positions. `capture.json`, written last, lists the parts
with their SHA-256.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax import artifacts, limits
from sinkjax.data.tokens import CorpusError
from sinkjax.weights.formats import safetensors_io

MANIFEST = "capture.json"
SCHEMA = 1
ABOUT = ("tokens", "document", "start")
"""What a part holds beside activations."""


class Windows(NamedTuple):
  """Pieces of documents, all of one length.

  Attributes:
    tokens: [N, T] ids, the prefix included.
    document: [N] the number of the document of each.
    start: [N] the token of the document with which it begins.
    left_out: tokens at the ends of documents that fill no window.
  """

  tokens: np.ndarray
  document: np.ndarray
  start: np.ndarray
  left_out: int

  def part(self, start: int, stop: int) -> dict[str, np.ndarray]:
    """Some windows, as a part holds them."""
    return {name: getattr(self, name)[start:stop] for name in ABOUT}


def cut(
  documents: Iterable[Sequence[int]],
  *,
  length: int,
  prefix: Sequence[int] = (),
  most: int | None = None,
  whole: bool = True,
) -> Windows:
  """Documents in windows, each with the prefix before it.

  Args:
    documents: ids of each.
    length: T, tokens of a window, prefix included.
    prefix: ids before every window.
    most: windows at most; no further document is then looked at.
    whole: cut all of a document; without it only its beginning, as of chats,
      whose template stands there alone.

  Raises:
    ValueError: where no document fills a window.

  >>> cut([[1, 2, 3, 4, 5]], length=3, prefix=[9]).tokens.tolist()
  [[9, 1, 2], [9, 3, 4]]
  """
  step, rows, places, left_out = length - len(prefix), [], [], 0
  if step < 1:
    raise ValueError(f"windows of {length} tokens have no room for a text")
  for number, ids in enumerate(documents):
    if most is not None and len(rows) >= most:
      break
    count = len(ids) // step if whole else min(1, len(ids) // step)
    left_out += len(ids) - count * step
    for at in range(0, count * step, step):
      rows.append([*prefix, *ids[at : at + step]])
      places.append((number, at))
  if not rows:
    raise ValueError(f"no document has {step} tokens: take a smaller length")
  document, start = np.array(places[:most], np.int32).T
  return Windows(np.array(rows[:most], np.int32), document, start, left_out)


def write_part(
  folder: pathlib.Path, number: int, arrays: Mapping[str, np.ndarray], mark: str
) -> str:
  """Writes a part whole, and returns the name of its file.

  Args:
    folder: where to.
    number: of the part, from 0.
    arrays: by name.
    mark: what the part was made from; `has_part` compares it.
  """
  from safetensors.numpy import save

  name = f"part-{number:05}.safetensors"
  arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
  data = save(arrays, metadata={"sinkjax": mark})
  artifacts.write_bytes(folder / name, data)
  return name


def has_part(folder: pathlib.Path, number: int, mark: str) -> bool:
  """Whether a part is there that was made from the same.

  Raises:
    ValueError: for one that was made from something else.
  """
  path = folder / f"part-{number:05}.safetensors"
  if not path.exists():
    return False
  if _mark(path) != mark:
    raise ValueError(
      f"{path} was captured by another command, or from another model or text; "
      "choose another --out or give --overwrite"
    )
  return True


def _mark(path: pathlib.Path) -> Any:
  """What a part says that it was made from; `None` for what is no part."""
  size = limits.regular(path)
  with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, limits.MANIFEST):
      return None
    try:
      return json.loads(file.read(length))["__metadata__"]["sinkjax"]
    except (KeyError, TypeError, ValueError, RecursionError):
      return None


def finish(folder: pathlib.Path, parts: Sequence[str]) -> dict[str, Any]:
  """Writes the manifest of complete parts, and returns it."""
  entries, arrays = [], {}
  for name in parts:
    tensors = safetensors_io.open_folder(folder / name).tensors
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    windows = tensors["tokens"].shape[0]
    entries.append({"file": name, "windows": windows, "sha256": digest})
    arrays = {
      key: {"dtype": tensor.dtype, "shape": [None, *tensor.shape[1:]]}
      for key, tensor in sorted(tensors.items())
    }
  manifest = {"schema": SCHEMA, "parts": entries, "arrays": arrays}
  artifacts.write_json(folder / MANIFEST, manifest)
  return manifest


def _own(name: Any) -> str:
  """A name in a manifest, which must not lead out of its folder.

  Raises:
    ValueError: for anything else.
  """
  if not limits.is_file_name(name):
    raise ValueError(f"{name!r:.80} is no name of a file")
  return name


class Activations(Sequence):
  """What `launch.capture` wrote, one window after the other.

    import grain
    from sinkjax.data.activations import Activations

    data = grain.MapDataset.source(Activations("out/acts")).shuffle(0).batch(64)

  A window is `{"tokens": [T], "resid_post.4": [P, D], ...}`, activations in
  float32. Only its own bytes are read.

  Args:
    folder: of --out.
    names: the arrays to read beside the ids; all by default.
    verify: compare the SHA-256 of every part, which reads all of them once.

  Raises:
    CorpusError: for a folder that is not complete or was changed, or a name
      that it does not have.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    names: Sequence[str] | None = None,
    *,
    verify: bool = False,
  ):
    self.folder = pathlib.Path(folder)
    try:
      manifest = limits.read_json(self.folder / MANIFEST, limits.MANIFEST)
      self.arrays = dict(manifest["arrays"])
      parts = [(_own(p["file"]), p["sha256"]) for p in manifest["parts"]]
      counts = [int(part["windows"]) for part in manifest["parts"]]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
      raise CorpusError(
        f"{self.folder} holds no complete capture: {type(error).__name__}: "
        f"{error}"
      ) from None
    known = [name for name in self.arrays if name not in ABOUT]
    self.names = list(known if names is None else names)
    if unknown := sorted(set(self.names) - set(known)):
      raise CorpusError(f"{self.folder} has no {unknown}; it has {known}")
    if verify:
      for name, digest in parts:
        data = (self.folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
          raise CorpusError(f"{self.folder / name} was changed")
    self._parts = [
      safetensors_io.open_folder(self.folder / name) for name, _ in parts
    ]
    self._ends = np.cumsum(counts)
    self._tokens = [part.read_raw("tokens") for part in self._parts]
    if counts != [len(tokens) for tokens in self._tokens] or not counts:
      raise CorpusError(f"{self.folder / MANIFEST} counts other windows")

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    index = range(len(self))[index]
    number = int(np.searchsorted(self._ends, index, side="right"))
    part, at = self._parts[number], index
    if number:
      at -= int(self._ends[number - 1])
    row = {"tokens": self._tokens[number][at]}
    for name in self.names:
      rest = part.tensors[name].shape[1:]
      box = (slice(at, at + 1), *(slice(0, size) for size in rest))
      row[name] = part.read_part(name, box)[0]
    return row
