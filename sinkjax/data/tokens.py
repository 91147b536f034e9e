"""A tokenised corpus: one flat array of ids, and where its documents start.

On disk: `corpus.json` (sources, and the SHA-256 of every file; written last),
`documents.npy`, and `tokens-00000.npy`, ... of a limited size each, in the
smallest type that holds the vocabulary.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sinkjax import limits
from sinkjax.weights.folders import new_folder

MANIFEST = "corpus.json"
SCHEMA = 1
_HEADER = 128  # bytes of a .npy file before its numbers


class CorpusError(ValueError):
  """A corpus folder with a missing or changed file."""


class TokenCorpus:
  """Documents as ids.

  Attributes:
    tokens: [N] ids of all documents.
    starts: [documents] where each begins.
    lengths: [documents] tokens of each.
    vocab_size: ids are below it.
    about: name, licence and sources, for people.
    digest: SHA-256 of the ids and the documents' ends, which identifies the
      corpus that a run was trained on.
  """

  def __init__(
    self,
    tokens: np.ndarray,
    ends: np.ndarray,
    vocab_size: int,
    about: dict[str, Any] | None = None,
    digest: str | None = None,
  ):
    self.tokens, self.vocab_size = tokens, vocab_size
    self._ends = np.asarray(ends, np.int64)
    self.starts = np.concatenate([[0], self._ends[:-1]])
    self.lengths = self._ends - self.starts
    self.about = about or {}
    self.digest = digest or _digest(tokens, self._ends)

  def __len__(self) -> int:
    return len(self.lengths)

  @classmethod
  def of(
    cls,
    documents: Iterable[Sequence[int]],
    *,
    vocab_size: int,
    about: dict[str, Any] | None = None,
  ) -> "TokenCorpus":
    """The corpus of these documents, each given by its ids.

    Raises:
      ValueError: for an id outside the vocabulary, or no documents.
    """
    dtype = smallest_dtype(vocab_size)
    parts, ends, total = [], [], 0
    for document in documents:
      # Checked in 64 bits: the narrow type would wrap too large an id into the
      # vocabulary.
      array = np.asarray(document, np.int64)
      if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(
          f"document {len(ends)} has an id outside the vocabulary of "
          f"{vocab_size}"
        )
      total += array.size
      parts.append(array.astype(dtype))
      ends.append(total)
    if not ends:
      raise ValueError("a corpus needs at least one document")
    return cls(np.concatenate(parts), np.array(ends), vocab_size, about)

  def part(self, documents: Sequence[int]) -> "TokenCorpus":
    """Some of the documents, by number.

    >>> corpus = TokenCorpus.of([[1, 2], [3], [4, 5]], vocab_size=6)
    >>> corpus.part([2, 1]).tokens.tolist()
    [4, 5, 3]
    """
    return TokenCorpus.of(
      (
        self.tokens[self.starts[i] : self.starts[i] + self.lengths[i]]
        for i in documents
      ),
      vocab_size=self.vocab_size,
      about=self.about,
    )

  def split(
    self, held_out: float, seed: int = 0
  ) -> tuple["TokenCorpus", "TokenCorpus"]:
    """(for training, held out), in whole documents.

    Args:
      held_out: share of the tokens that is held out, at least one document.
      seed: of the choice of documents.

    Raises:
      ValueError: if one side would have no document.
    """
    order = np.random.default_rng(seed).permutation(len(self))
    grown = np.cumsum(self.lengths[order])
    count = 1 + int(np.searchsorted(grown, held_out * len(self.tokens)))
    if not 0 < held_out < 1 or count >= len(self):
      raise ValueError(
        f"held_out must leave documents on both sides of {len(self)}, got "
        f"{held_out}"
      )
    return self.part(sorted(order[count:])), self.part(sorted(order[:count]))

  def save(
    self, folder: str | os.PathLike, *, part_bytes: int = 60_000_000
  ) -> None:
    """Writes a folder for `read`, completely or not at all.

    Args:
      folder: must not exist, or be empty.
      part_bytes: the greatest size of a file of ids.

    Raises:
      ValueError: for a folder that is not empty, or too small a part.
    """
    size = (part_bytes - _HEADER) // self.tokens.itemsize
    if size < 1:
      raise ValueError(f"part_bytes must hold a token, got {part_bytes}")
    with new_folder(folder) as made:
      files = {}
      arrays = {"documents.npy": self._ends} | {
        f"tokens-{i:05d}.npy": self.tokens[at : at + size]
        for i, at in enumerate(range(0, max(1, len(self.tokens)), size))
      }
      for name, array in arrays.items():
        np.save(made / name, array)
        files[name] = _file_digest(made / name)
      manifest = {
        "schema": SCHEMA,
        "vocab_size": self.vocab_size,
        "documents": len(self),
        "tokens": len(self.tokens),
        "digest": self.digest,
        "about": self.about,
        "files": files,
      }
      (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")

  @classmethod
  def read(cls, folder: str | os.PathLike) -> "TokenCorpus":
    """The corpus that `save` wrote.

    Raises:
      CorpusError: naming a file that is missing or was changed.
    """
    folder = pathlib.Path(folder)
    try:
      manifest = limits.read_json(folder / MANIFEST, limits.MANIFEST)
      if manifest["schema"] != SCHEMA:
        raise ValueError(f"schema {manifest['schema']!r}, expected {SCHEMA}")
      files = {str(name): str(sha) for name, sha in manifest["files"].items()}
      names = sorted(files)
      vocab_size, about = manifest["vocab_size"], dict(manifest["about"])
      if type(vocab_size) is not int or not 0 < vocab_size <= limits.TOKENS:
        raise ValueError(f"vocab_size is {vocab_size!r:.40}")
      digest = str(manifest["digest"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      reason = f"{type(error).__name__}: {error}"
      raise CorpusError(f"{folder}: no valid {MANIFEST}: {reason}") from None
    for name in names:
      path = folder / name
      # A manifest must not lead to a file outside its folder.
      if not _is_inside(path, name):
        raise CorpusError(f"{path} is missing")
      if _file_digest(path) != files[name]:
        raise CorpusError(f"{path} is not what was written")
    if "documents.npy" not in files or len(files) < 2:
      raise CorpusError(f"{folder / MANIFEST} lists too few files")
    parts = [
      _array(folder / name, mapped=True)
      for name in names
      if name.startswith("tokens-")
    ]
    # A single part stays mapped from its file; several must be copied to be one
    # array.
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    ends = _array(folder / "documents.npy")
    # Whoever wrote other arrays could write their SHA-256 as well.
    steps = np.diff(ends, prepend=0)
    if not len(ends) or np.any(steps < 0) or ends[-1] != len(tokens):
      raise CorpusError(
        f"{folder / 'documents.npy'}: ends of documents must grow up to the "
        f"number of ids, {len(tokens)}"
      )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
      raise CorpusError(
        f"{folder}: it has an id of {tokens.max()} and "
        f"a vocabulary of {vocab_size}"
      )
    return cls(tokens, ends, vocab_size, about, digest)


def _array(path: pathlib.Path, *, mapped: bool = False) -> np.ndarray:
  """The integers of a .npy file.

  Raises:
    CorpusError: for a file that holds anything else.
  """
  try:
    found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
  except (OSError, EOFError, ValueError, MemoryError) as error:
    reason = (str(error).splitlines() or ["it is cut"])[0]
    raise CorpusError(f"{path}: not a readable .npy: {reason}") from None
  if not isinstance(found, np.ndarray) or found.ndim != 1:
    raise CorpusError(f"{path}: expected a list of integers")
  if found.dtype.kind not in "iu":
    raise CorpusError(f"{path}: expected integers, got {found.dtype}")
  return found


def smallest_dtype(vocab_size: int) -> type:
  """The unsigned type that holds every id.

  >>> smallest_dtype(65536).__name__, smallest_dtype(65537).__name__
  ('uint16', 'uint32')
  """
  return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _is_inside(path: pathlib.Path, name: str) -> bool:
  """Whether a listed name is that of a file in the folder itself."""
  try:
    return limits.is_file_name(name) and path.is_file()
  except (OSError, ValueError):  # a name that no file can have
    return False


def _digest(tokens: np.ndarray, ends: np.ndarray) -> str:
  # One type and byte order, whatever the ids are stored in: the digest
  # identifies the corpus across machines and formats.
  found = hashlib.sha256(np.ascontiguousarray(tokens, "<u4").data)
  found.update(np.ascontiguousarray(ends, "<i8").data)
  return found.hexdigest()


def _file_digest(path: pathlib.Path) -> str:
  with open(path, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
