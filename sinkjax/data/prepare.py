"""Corpora by name to ids for training and held-out ids, once, in the cache."""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tokenizers

from sinkjax.data.corpus import gather, tokenize, train_tokenizer
from sinkjax.data.tokens import MANIFEST, CorpusError, TokenCorpus
from sinkjax.weights.packages import cache_folder
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_files import tokenizer_from_folder


class Prepared(NamedTuple):
  """What a run trains on.

  Attributes:
    train: documents to train on.
    held_out: documents of the same corpora that are not.
    tokenizer: how both were encoded.
  """

  train: TokenCorpus
  held_out: TokenCorpus
  tokenizer: Tokenizer


def prepare(
  names: Sequence[str],
  *,
  vocab_size: int,
  held_out: float = 0.02,
  seed: int = 0,
  tokenizer: Tokenizer | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Prepared:
  """The ids of some corpora, split; see `tokenized`.

  Args:
    held_out: share of the tokens held out, in whole documents.
    seed: of which documents.

  Raises:
    ValueError: as `tokenized` and `TokenCorpus.split`.
  """
  corpus, used = tokenized(
    names, vocab_size=vocab_size, tokenizer=tokenizer, progress=progress
  )
  return Prepared(*corpus.split(held_out, seed), used)


def tokenized(
  names: Sequence[str],
  *,
  vocab_size: int,
  tokenizer: Tokenizer | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> tuple[TokenCorpus, Tokenizer]:
  """Gathers, trains a tokenizer, encodes; from the cache where it was done.

  Args:
    names: as for `corpus.gather`, or the one folder that `save` wrote.
    vocab_size: of the tokenizer, trained on all of the text.
    tokenizer: encode with this instead of training one.
    progress: called with (characters done, characters in all).

  Raises:
    ValueError: as `gather` and `train_tokenizer`; for a folder of ids among
      others, or where another tokenizer is wanted; CorpusError for a damaged
      one.

  Cost: about 15 s for 17 MB of text the first time.
  """
  for name in names:
    folder = pathlib.Path(name).expanduser()
    if (folder / "ids" / MANIFEST).is_file():
      if len(names) > 1 or tokenizer is not None:
        raise ValueError(
          f"{name} holds ids: it cannot be joined with other corpora or "
          "encoded again; start from the texts"
        )
      return _read(folder)
  documents = gather(names)
  made_of = {
    "texts": [source["sha256"] for source in documents.about["sources"]],
    "vocab_size": vocab_size,
    "tokenizers": tokenizers.__version__,
  }
  if tokenizer is not None:
    made_of["tokenizer"] = _digest(tokenizer)
  key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
  folder = cache_folder() / "corpora" / key
  try:
    corpus, read = _read(folder)
    return corpus, tokenizer or read
  except CorpusError:
    pass  # none, half of it, or damaged: made again
  tokenizer = tokenizer or train_tokenizer(documents.texts, vocab_size)
  total, done = sum(map(len, documents.texts)), 0

  def advance(characters):
    nonlocal done
    done += characters
    progress(done, total)

  corpus = tokenize(documents, tokenizer, progress=advance)
  shutil.rmtree(folder, ignore_errors=True)
  save(folder, corpus, tokenizer)
  return corpus, tokenizer


def save(
  folder: str | os.PathLike,
  corpus: TokenCorpus,
  tokenizer: Tokenizer,
  *,
  part_bytes: int = 60_000_000,
) -> None:
  """Writes what `tokenized` reads, the ids last: with them it is whole.

  Args:
    folder: must not exist, or be empty.
    corpus: ids.
    tokenizer: that they are of.
    part_bytes: of one file of ids, at most.
  """
  folder = pathlib.Path(folder)
  tokenizer.save(folder / "tokenizer")
  corpus.save(folder / "ids", part_bytes=part_bytes)


def _read(folder: pathlib.Path) -> tuple[TokenCorpus, Tokenizer]:
  corpus = TokenCorpus.read(folder / "ids")
  tokenizer = tokenizer_from_folder(folder / "tokenizer")
  if tokenizer is None:
    raise CorpusError(f"{folder / 'tokenizer'} is missing")
  return corpus, tokenizer


def _digest(tokenizer: Tokenizer) -> str:
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save(folder)
    data = (pathlib.Path(folder) / "tokenizer.json").read_bytes()
  return hashlib.sha256(data).hexdigest()
