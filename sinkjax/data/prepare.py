"""Corpora by name to ids for training and held-out ids, kept in the cache."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tokenizers

from sinkjax import outputs
from sinkjax.data.corpus import (
  Documents,
  characters,
  gather,
  need_template,
  tokenize,
  train_tokenizer,
)
from sinkjax.data.tokens import MANIFEST, CorpusError, TokenCorpus
from sinkjax.weights.folders import new_folder
from sinkjax.weights.packages import cache_folder
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.tokenizer_files import tokenizer_from_folder


class Prepared(NamedTuple):
  """The data of a run.

  Attributes:
    train: documents to train on.
    held_out: the other documents of the same corpora.
    tokenizer: that encoded both.
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
  """The ids of some corpora, split into training and held-out documents.

  Args:
    names: as for `tokenized`.
    vocab_size: of the tokenizer.
    held_out: share of the tokens held out, in whole documents.
    seed: of the choice of documents.
    tokenizer: to encode with, instead of training one.
    progress: called with (characters done, characters in all).

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
  """The ids of some corpora, from the cache if they were encoded before.

  Args:
    names: as for `corpus.gather`, or the one folder that `save` wrote.
    vocab_size: of the tokenizer, trained on all of the text.
    tokenizer: encode with this instead of training one.
    progress: called with (characters done, characters in all).

  Raises:
    ValueError: as `gather` and `train_tokenizer`; for a folder of ids beside
      other corpora, or with another tokenizer; for chats without a chat
      template; CorpusError for a damaged folder.

  Cost: about 15 s for 17 MB of text the first time; 1,000 chats take a second.
  """
  for name in names:
    folder = pathlib.Path(name).expanduser()
    if (folder / "ids" / MANIFEST).is_file():
      corpus, read = _read(folder)
      other = tokenizer is not None and _digest(read) != _digest(tokenizer)
      if len(names) > 1 or other:
        raise ValueError(
          f"{name} holds ids: it cannot be joined with other corpora or "
          "encoded again; start from the texts"
        )
      return corpus, tokenizer or read
  documents = gather(names, chats=True)
  need_template(documents.chats, tokenizer)
  folder = cache_folder() / "corpora" / _key(documents, vocab_size, tokenizer)
  with contextlib.suppress(CorpusError):
    return _cached(folder, documents, tokenizer)
  # Absent, incomplete or damaged: encoded again, by one process of those that
  # train together.
  work = folder.with_name(f".{folder.name}.encoding")
  with outputs.workspace(work, wait=True):
    with contextlib.suppress(CorpusError):
      return _cached(folder, documents, tokenizer)
    tokenizer = tokenizer or train_tokenizer(documents.texts, vocab_size)
    corpus = _encoded(documents, tokenizer, progress)
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as made:
      save(made, corpus, tokenizer)
  return corpus, tokenizer


def _cached(
  folder: pathlib.Path, documents: Documents, tokenizer: Tokenizer | None
) -> tuple[TokenCorpus, Tokenizer]:
  """What the cache holds for the same texts, under the names given now.

  Raises:
    CorpusError: for a folder that is absent or damaged.
  """
  corpus, read = _read(folder)
  # The folder is named by the texts; other files with the same ones, and other
  # packages, have other names, paths and licences.
  corpus.about |= {"name": documents.name, **documents.about}
  return corpus, tokenizer or read


def _encoded(
  documents: Documents,
  tokenizer: Tokenizer,
  progress: Callable[[int, int], Any],
) -> TokenCorpus:
  """The ids, with `progress` called after each document."""
  total, done = sum(map(characters, documents.texts)), 0

  def advance(more: int) -> None:
    nonlocal done
    done += more
    progress(done, total)

  return tokenize(documents, tokenizer, progress=advance)


def _key(
  documents: Documents, vocab_size: int, tokenizer: Tokenizer | None
) -> str:
  """The name of the cache folder: a hash of all that decides the ids."""
  made_of = {
    "texts": [source["sha256"] for source in documents.about["sources"]],
    "vocab_size": vocab_size,
    # Another version of the library may learn other merges from the same text.
    "tokenizers": tokenizers.__version__,
  }
  if tokenizer is not None:
    made_of["tokenizer"] = _digest(tokenizer)
  if any("chats" in source for source in documents.about["sources"]):
    # What else a template reads of the tokenizer.
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    made_of["chat_template"] = [tokenizer.chat_template, *ends]
  return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def save(
  folder: str | os.PathLike,
  corpus: TokenCorpus,
  tokenizer: Tokenizer,
  *,
  part_bytes: int = 60_000_000,
) -> None:
  """Writes a folder that `tokenized` reads; the ids, written last, complete it.

  Args:
    folder: must not exist, or be empty.
    corpus: ids.
    tokenizer: that made them.
    part_bytes: the greatest size of a file of ids.
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
