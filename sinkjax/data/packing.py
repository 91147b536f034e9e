"""Documents to windows of T tokens: every row of the paper's packing table.

`Packing` configures how a window is filled, where BOS stands, which tokens may
attend to which, and which are predicted. A window is

    tokens     [T]  ids
    positions  [T]  of each token
    segments   [T]  0 for what every later token may attend to, else the number
                    of the document; a token attends to its own segment and to
                    segment 0, see `transforms.branches.separate`
    weights    [T]  True where the token is a target: it is predicted from the
                    token before it

Sharp edges: with reset positions and a pinned BOS a document starts at
position 1, so that BOS is always the position before it; likewise after
registers.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from sinkjax.data.tokens import TokenCorpus

MASKS = ("causal", "document")
BOS = ("none", "document", "pinned")
FILLS = ("concatenate", "first_fit", "best_fit")

OPEN_WINDOWS = 64
"""Windows that the packers fill at a time."""


@dataclasses.dataclass(frozen=True)
class Packing:
  """One row of the packing table.

  Attributes:
    length: T, tokens of a window.
    mask: "causal", or "document" to hide other documents.
    bos: "none"; "document" for one at the start of each document; "pinned"
      for one at position 0 of every window, to which every token may attend.
    eos: one at the end of each document.
    reset_positions: positions count from each document's start.
    fill: "concatenate" all documents and split; or keep documents whole where
      they fit a window, by "first_fit" or "best_fit".
    cross_targets: the first token of a document is predicted from the last of
      the document before it.
    registers: tokens without text at the start of every window, before a
      pinned BOS, to which every token may attend.
    seed: of the order of the documents.
  """

  length: int
  mask: str = "causal"
  bos: str = "none"
  eos: bool = False
  reset_positions: bool = False
  fill: str = "concatenate"
  cross_targets: bool = False
  registers: int = 0
  seed: int = 0

  def __post_init__(self):
    for name, valid in (("mask", MASKS), ("bos", BOS), ("fill", FILLS)):
      if getattr(self, name) not in valid:
        raise ValueError(
          f"packing.{name} must be one of {list(valid)}, got "
          f"{getattr(self, name)!r}"
        )
    if self.registers < 0:
      raise ValueError(
        f"packing.registers must not be negative, got {self.registers}"
      )
    if self.length < 2 + self.registers:
      raise ValueError(
        f"packing.length must be at least {2 + self.registers}, got "
        f"{self.length}"
      )

  @property
  def front(self) -> int:
    """Tokens of no document at the start of every window."""
    return self.registers + (self.bos == "pinned")

  @property
  def content(self) -> int:
    """Tokens of documents in a window."""
    return self.length - self.front

  def prefix(self, bos_id: int | None, register_id: int | None) -> list[int]:
    """The ids in front of a text that is read by itself.

    Args:
      bos_id: needed where `bos` is not "none".
      register_id: of the first register, needed where there are any; the
        others follow.

    Raises:
      ValueError: for a missing id that is needed.
    """
    if self.bos != "none" and bos_id is None:
      raise ValueError(f"packing.bos={self.bos!r} needs a BOS token")
    if self.registers and register_id is None:
      raise ValueError(f"packing.registers={self.registers} need an id")
    registers = [register_id + i for i in range(self.registers)]
    return registers + [bos_id] * (self.bos != "none")


class Windows(Sequence):
  """The windows of a corpus, by number.

  Every token of every document is in exactly one window; a window that is not
  full ends in padding of weight 0 and a segment of its own.

  Args:
    corpus: the documents.
    packing: how they are packed.
    bos_id: needed where `packing.bos` is not "none".
    eos_id: needed where `packing.eos`.
    register_id: of the first of `packing.registers`.

  Raises:
    ValueError: for a missing id that is needed, or an empty corpus.

  Cost: the plan is 16 bytes a window, and 16 for each document where they are
  kept whole; a window is read when it is asked for.

  >>> corpus = TokenCorpus.of([[5, 6, 7], [8, 9]], vocab_size=10)
  >>> packing = Packing(4, mask="document", bos="pinned")
  >>> window = Windows(corpus, packing, bos_id=1)[0]
  >>> window["tokens"].tolist(), window["segments"].tolist()
  ([1, 5, 6, 7], [0, 1, 1, 1])
  """

  def __init__(
    self,
    corpus: TokenCorpus,
    packing: Packing,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    register_id: int | None = None,
  ):
    prefix = packing.prefix(bos_id, register_id)
    if packing.eos and eos_id is None:
      raise ValueError("packing.eos needs an EOS token")
    self.corpus, self.packing = corpus, packing
    self.bos_id, self.eos_id = bos_id, eos_id
    self._front = prefix[: packing.front]
    order = np.random.default_rng(packing.seed).permutation(len(corpus))
    self._order = order
    self._before = int(packing.bos == "document")
    sizes = corpus.lengths[order] + self._before + int(packing.eos)
    # The stream: all documents in this order, with their BOS and EOS.
    self._starts = np.concatenate([[0], np.cumsum(sizes)])
    if not self._starts[-1]:
      raise ValueError("the corpus has no tokens")
    if packing.fill == "concatenate":
      at = np.arange(0, self._starts[-1], packing.content)
      ends = np.minimum(at + packing.content, self._starts[-1])
      self._pieces = np.stack([at, ends], axis=1)
      self._first = np.arange(len(at) + 1)
    else:
      self._pieces, self._first = _fit(self._cut(), packing)

  def _cut(self) -> np.ndarray:
    """[N, 2] start and end in the stream of each piece to keep whole."""
    content, pieces = self.packing.content, []
    for start, end in zip(self._starts[:-1], self._starts[1:], strict=True):
      at = np.arange(start, end, content)
      pieces.append(np.stack([at, np.minimum(at + content, end)], axis=1))
    return np.concatenate(pieces)

  def __len__(self) -> int:
    return len(self._first) - 1

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {name: rows[0] for name, rows in self.rows([index]).items()}

  def rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """Some windows as one batch, {"tokens": [B, T], ...}.

    Raises:
      IndexError: for a number that no window has.

    Cost: a tenth of reading them one by one.
    """
    indices, packing = np.asarray(indices, np.int64), self.packing
    wrong = indices[(indices < 0) | (indices >= len(self))]
    if wrong.size:
      raise IndexError(f"window {wrong[0]} of {len(self)}")
    first, end = self._first[indices], self._first[indices + 1]
    pieces = self._pieces[_ranges(first, end)]
    sizes = pieces[:, 1] - pieces[:, 0]
    # Places in the stream of all windows' tokens, with their piece and row.
    at = _ranges(pieces[:, 0], pieces[:, 1])
    piece = np.repeat(np.arange(len(pieces)), sizes)
    row = np.repeat(np.arange(len(indices)), end - first)[piece]
    ends = np.cumsum(np.bincount(row, minlength=len(indices)))
    begins = np.concatenate([[0], ends[:-1]])
    front = packing.front
    column = front + np.arange(len(at)) - begins[row]
    document = np.searchsorted(self._starts, at, side="right") - 1
    new = np.ones(len(at), bool)
    new[1:] = (np.diff(document) != 0) | (np.diff(piece) != 0)
    starts = np.flatnonzero(new)
    number = np.cumsum(new)

    shape = len(indices), packing.length
    tokens = np.zeros(shape, np.int32)
    tokens[row, column] = self._tokens(at, document)
    tokens[:, :front] = self._front
    positions = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    if packing.reset_positions:
      positions[row, column] = front + np.arange(len(at)) - starts[number - 1]
    segments = np.full(shape, -1, np.int32)
    segments[:, :front] = 0
    apart = packing.mask == "document"
    segments[row, column] = number - number[begins[row]] + 1 if apart else 0
    weights = np.zeros(shape, bool)
    weights[row, column] = True if packing.cross_targets else ~new
    # BOS and registers predict the token after them, if that is text.
    weights[:, front] = bool(front) and tokens[:, front] != self.bos_id
    return {
      "tokens": tokens,
      "positions": positions,
      "segments": segments,
      "weights": weights,
    }

  def _tokens(self, at: np.ndarray, document: np.ndarray) -> np.ndarray:
    """The ids at places of the stream."""
    number = self._order[document]
    offset = at - self._starts[document] - self._before
    size = self.corpus.lengths[number]
    inside = (offset >= 0) & (offset < size)
    where = self.corpus.starts[number] + np.where(inside, offset, 0)
    # A document may be empty at the very end: its BOS must not read past it.
    where = np.minimum(where, len(self.corpus.tokens) - 1)
    found = self.corpus.tokens[where].astype(np.int32)
    if self._before:
      found[offset < 0] = self.bos_id
    if self.packing.eos:
      found[offset >= size] = self.eos_id
    return found


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """starts[0], ..., ends[0] - 1, starts[1], ...: one range after the other.

  >>> _ranges(np.array([3, 7]), np.array([5, 10])).tolist()
  [3, 4, 7, 8, 9]
  """
  sizes = ends - starts
  before = np.cumsum(sizes) - sizes
  return np.repeat(starts - before, sizes) + np.arange(sizes.sum())


class _Places:
  """Pieces of a stream in the form that grain's packers take: addresses."""

  def __init__(self, pieces: np.ndarray):
    self._pieces = pieces

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    # Counted from 1, because 0 is the packers' padding.
    return {"at": np.arange(*self._pieces[index]) + 1}


def _fit(pieces: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
  """Pieces by window, and the number of each window's first piece."""
  packer: Any = {
    "first_fit": grain.experimental.FirstFitPackIterDataset,
    "best_fit": grain.experimental.BestFitPackIterDataset,
  }[packing.fill]
  packed = packer(
    grain.MapDataset.source(_Places(pieces)).to_iter_dataset(
      grain.ReadOptions(num_threads=0)
    ),
    length_struct={"at": packing.content},
    num_packing_bins=OPEN_WINDOWS,
    shuffle_bins=False,
  )
  found, first = [], [0]
  for window in packed:
    number = window["at_segment_ids"]
    for k in range(1, number.max(initial=0) + 1):
      places = window["at"][number == k] - 1
      found.append((places[0], places[-1] + 1))
    first.append(len(found))
  return np.array(found), np.array(first)
