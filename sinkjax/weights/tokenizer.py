r"""Text to token ids and back, with nothing added or hidden silently.

A thin wrapper over the `tokenizers` library. `encode` adds no BOS unless it is
asked to, reads "<|im_start|>" in a text as ordinary characters unless it is
asked not to, and warns of characters that the vocabulary cannot spell;
`decode` shows special tokens.

Where tokenizers come from: `tokenizer_files.py` (Hugging Face folders and the
glassllm package) and `tokenizer_gguf.py`.

Sharp edges: tokens that a file calls user-defined (or added, and not special)
are matched in every text, whatever `parse_special` says. The same text
encoded in two parts may give other ids than in one. SentencePiece models put
a space in front of a text and after every special token, and `decode` drops
only the first. Byte-level vocabularies may lack bytes (SmolLM2 has no token
for \x04): these are left out, as llama.cpp and transformers do, and `encode`
warns.
"""

import functools
import json
import operator
import os
import pathlib
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models

from sinkjax import limits
from sinkjax.weights import panics, tokenizer_rules
from sinkjax.weights.post_processor import template_bos, with_bos
from sinkjax.weights.validate import WeightsError, first_line

_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
NAMES = ("bos", "eos", "unk", "pad")
# No text has these bytes: a vocabulary without them can still spell all.
_NEVER_IN_UTF8 = frozenset([0xC0, 0xC1, *range(0xF5, 0x100)])


def _byte_alphabet() -> dict[str, int]:
  """The printable stand-in of each byte in byte-level BPE."""
  keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [byte for byte in range(256) if byte not in keep]
  table = {chr(byte): byte for byte in keep}
  return table | {chr(256 + i): byte for i, byte in enumerate(rest)}


_BYTES = _byte_alphabet()


class Tokenizer:
  """A vocabulary and its rules.

  Attributes:
    vocab_size: number of ids, the largest id plus one.
    bos_id: id of the beginning-of-sequence token, or `None`.
    eos_id: id of the end-of-sequence token, or `None`.
    end_ids: every id that ends a text: instruct models end a turn with a
      token of its own.
    unk_id: id of the unknown token, or `None`.
    pad_id: id of the padding token, or `None`.
    add_bos: whether the file says that texts begin with BOS. `encode` does
      not act on it; callers that follow it say so.
    chat_template: the file's Jinja template, or `None`.
    rows: the rows of the embedding that goes with it, set by who loads both;
      `None` where there is no model.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    end_ids: Collection[int] = (),
    unk_id: int | None = None,
    pad_id: int | None = None,
    add_bos: bool = False,
    chat_template: str | None = None,
  ):
    # A file may ask for cut or padded ids, or for random merges.
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
      backend.model.dropout = None
    self._backend = backend
    vocab = backend.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab.values(), default=-1) + 1
    if len(set(vocab.values())) != len(vocab):
      raise WeightsError(f"tokenizer: {_same_id(vocab)}")
    if self.vocab_size > limits.TOKENS:
      raise WeightsError(
        f"tokenizer: id {self.vocab_size - 1} is beyond {limits.TOKENS} tokens"
      )
    self.bos_id, self.eos_id = bos_id, eos_id
    self.unk_id, self.pad_id = unk_id, pad_id
    self.add_bos, self.chat_template = add_bos, chat_template
    self.rows: int | None = None
    for name in NAMES:
      token = getattr(self, f"{name}_id")
      if token is not None and not 0 <= token < self.vocab_size:
        raise WeightsError(
          f"tokenizer: {name}_id {token} is outside the vocabulary of "
          f"{self.vocab_size}"
        )
    # Lists of published configs name ids of larger relatives, too.
    known = (i for i in (eos_id, *end_ids) if i is not None)
    self.end_ids = frozenset(i for i in known if 0 <= i < self.vocab_size)
    if add_bos and bos_id is None:
      raise WeightsError("tokenizer: adds a BOS token but names none")
    added = backend.get_added_tokens_decoder()
    self._added = frozenset(added)
    self._special = frozenset(i for i, t in added.items() if t.special)
    self._byte_level = isinstance(backend.decoder, decoders.ByteLevel)
    self._byte_fallback = "ByteFallback" in _part_types(backend.decoder)
    self._missing = bytes(
      byte
      for char, byte in _BYTES.items()
      if self._byte_level and char not in vocab and byte not in _NEVER_IN_UTF8
    )

  def encode(
    self, text: str, *, add_bos: bool = False, parse_special: bool = False
  ) -> list[int]:
    """The ids of a text. Linear in its length: about 1 MB/s.

    Args:
      text: any string.
      add_bos: put BOS first.
      parse_special: read the names of special tokens in the text as those
        tokens, instead of as ordinary characters.

    Raises:
      ValueError: for `add_bos` where there is no BOS, for a text with half
        a surrogate pair, or for one with a token that the model has no
        embedding of.
      TypeError: for anything but a string.

    Warns:
      UserWarning: where the vocabulary has neither tokens nor an unknown
        token for some characters, which are then missing from the ids.
    """
    if not isinstance(text, str):
      raise TypeError(f"text must be a str, got {type(text).__name__}")
    if add_bos and self.bos_id is None:
      raise ValueError("this tokenizer has no BOS token to add")
    if self._backend.encode_special_tokens is parse_special:
      self._backend.encode_special_tokens = not parse_special
    try:
      raw = text.encode("utf-8")
    except UnicodeEncodeError as error:
      raise ValueError(f"text is not valid Unicode: {error}") from None
    lost = self._lost(text, raw)
    if lost:
      message = f"the vocabulary has no token for {lost}: left out"
      warnings.warn(message, UserWarning, stacklevel=2)
    ids = self._ids(text)
    ids = [self.bos_id, *ids] if add_bos else ids
    if self.rows is not None and max(ids, default=0) >= self.rows:
      token = next(token for token in ids if token >= self.rows)
      raise ValueError(
        f"token {self.token(token)!r} has id {token}, but the model's "
        f"embedding has only {self.rows} rows"
      )
    return ids

  def _ids(self, text: str) -> list[int]:
    """The backend's ids.

    Raises:
      ValueError: where the backend fails on a damaged tokenizer's rules.
    """
    try:
      with panics.as_errors():
        tokenizer_rules.require_speed(self._backend, text)
        return self._backend.encode(text, add_special_tokens=False).ids
    except Exception as error:
      raise ValueError(
        f"the tokenizer's rules fail on this text: {first_line(error)}"
      ) from None

  def _lost(self, text: str, raw: bytes) -> str:
    """What of the text the vocabulary cannot spell, for a message."""
    if self._missing and len(raw.translate(None, self._missing)) != len(raw):
      absent = sorted(set(raw) & set(self._missing))
      return ", ".join(f"byte 0x{byte:02x}" for byte in absent)
    if self._alphabet is not None:
      normalizer = self._backend.normalizer
      shown = text
      if normalizer:
        with panics.as_errors():
          shown = normalizer.normalize_str(text)
      return ", ".join(map(repr, sorted(set(shown) - self._alphabet)))
    return ""

  @functools.cached_property
  def _alphabet(self) -> frozenset[str] | None:
    """The characters that can be spelled, `None` where all can."""
    model = self._backend.model
    if not isinstance(model, models.BPE) or self._backend.pre_tokenizer:
      return None
    if model.unk_token is not None or model.byte_fallback:
      return None
    return frozenset(t for t in self._backend.get_vocab() if len(t) == 1)

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of some ids; special tokens are shown unless skipped.

    Bytes that are no whole character become U+FFFD.

    Raises:
      ValueError: for an id outside the vocabulary.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    ids = [self._check(token) for token in ids]
    if skip_special:
      ids = [token for token in ids if token not in self._special]
    pieces = [self._piece(token) for token in ids]
    if not self._byte_level:
      return self._backend.decode(ids, skip_special_tokens=False)
    # Tokens may split a character: their bytes are joined before decoding.
    raw = map(self._bytes, ids, pieces)
    return b"".join(raw).decode("utf-8", "replace")

  def _check(self, token: int) -> int:
    token = operator.index(token)
    if not 0 <= token < self.vocab_size:
      raise ValueError(
        f"token id {token} is outside the vocabulary of {self.vocab_size}"
      )
    return token

  def _piece(self, token: int) -> str:
    piece = self._backend.id_to_token(token)
    if piece is None:
      raise ValueError(
        f"token id {token} is not in the vocabulary of {self.vocab_size}, "
        "which has gaps"
      )
    return piece

  def _bytes(self, token: int, piece: str) -> bytes:
    """What a token of a byte-level vocabulary stands for."""
    if token not in self._added and all(char in _BYTES for char in piece):
      return bytes(_BYTES[char] for char in piece)
    return piece.encode("utf-8")

  def token(self, token: int) -> str:
    r"""One token for people: " the", "\n" for a newline, "\xe2" for a byte.

    Backslashes are doubled and all that does not print is escaped, so that
    tokens that differ do not look alike.

    Raises:
      ValueError: for an id outside the vocabulary.
    """
    token = self._check(token)
    piece = self._backend.id_to_token(token)
    if piece is None:
      return f"<unused {token}>"
    if self._byte_level:
      return _show(self._bytes(token, piece))
    if token in self._added:
      return _show(piece.encode("utf-8"))
    if self._byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", piece):
      byte = int(piece[3:5], 16)
      char = "▁" if byte == 32 else chr(byte)
      if byte < 128 and self._backend.token_to_id(char) is None:
        return _show(bytes([byte]))
      return f"\\x{byte:02x}"
    return _show(piece.replace("▁", " ").encode("utf-8"))

  def token_to_id(self, text: str) -> int | None:
    r"""The id of one token, or `None`.

    Args:
      text: what `token` shows (" the", "\n" in two characters), the same
        unescaped (a real newline), or the entry as the vocabulary spells it
        ("Ġthe"), in this order: "é" is the letter, not the byte that
        byte-level BPE spells so.
    """
    for shown in (text, _show(text.encode("utf-8", "surrogatepass"))):
      if shown in self._shown:
        return self._shown[shown]
    try:
      return self._backend.token_to_id(text)
    except UnicodeEncodeError:  # half a surrogate pair
      return None

  @functools.cached_property
  def _shown(self) -> dict[str, int]:
    # Of tokens that look alike the lowest id stays, as it is entered last.
    ids = reversed(range(self.vocab_size))
    return {self.token(token): token for token in ids}

  def save(self, path: str | os.PathLike) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` for transformers.

    Where other tokens than EOS end a text, `generation_config.json`, too.

    Args:
      path: a folder, made if need be.
    """
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    data = json.loads(self._backend.to_str())
    processor = data.get("post_processor")
    if self.add_bos and template_bos(processor, "post_processor") is None:
      bos = self._backend.id_to_token(self.bos_id)
      data["post_processor"] = with_bos(processor, bos, self.bos_id)
    text = json.dumps(data, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    config: dict[str, Any] = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "add_bos_token": self.add_bos,
      # By this transformers would drop spaces before punctuation in decoding.
      "clean_up_tokenization_spaces": False,
    }
    for name in NAMES:
      token = getattr(self, f"{name}_id")
      if token is not None:
        config[f"{name}_token"] = self._backend.id_to_token(token)
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")
    if self.end_ids - {self.eos_id}:
      text = json.dumps({"eos_token_id": sorted(self.end_ids)}) + "\n"
      (folder / "generation_config.json").write_text(text, "utf-8")


def _same_id(vocab: dict[str, int]) -> str:
  """Which two tokens have one id."""
  found: dict[int, str] = {}
  for token, token_id in vocab.items():
    other = found.setdefault(token_id, token)
    if other != token:
      return f"{other[:40]!r} and {token[:40]!r} have the same id {token_id}"
  return "two tokens have the same id"


def _part_types(part: Any) -> list[str]:
  """The type names in a part of a tokenizer."""
  state = part.__getstate__().decode("utf-8") if part is not None else ""
  return re.findall(r'"type": ?"(\w+)"', state)


def _show(raw: bytes) -> str:
  r"""UTF-8 that prints, "\n", "\u00a0", and "\xNN" for other bytes."""
  text = raw.decode("utf-8", "surrogateescape")
  if text.isprintable() and "\\" not in text:
    return text
  return "".join(map(_escape, text))


def _escape(char: str) -> str:
  code = ord(char)
  if char in _ESCAPES:
    return _ESCAPES[char]
  if 0xDC80 <= code <= 0xDCFF:
    return f"\\x{code - 0xDC00:02x}"
  if char.isprintable():
    return char
  return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def build(
  model: models.Model,
  special: Sequence[str],
  user_defined: Sequence[str],
  **parts: Any,
) -> tokenizers.Tokenizer:
  """A backend from its parts, with its added tokens."""
  backend = tokenizers.Tokenizer(model)
  for name, part in parts.items():
    if part is not None:
      setattr(backend, name, part)
  # Added tokens are looked for in the text itself, before a normaliser replaces
  # its spaces.
  added = functools.partial(tokenizers.AddedToken, normalized=False)
  backend.add_special_tokens([added(token) for token in special])
  backend.add_tokens([added(token) for token in user_defined])
  return backend
