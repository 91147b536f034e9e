r"""Tokenizers rebuilt from the vocabulary inside a GGUF file.

"gpt2" is byte-level BPE behind the pre-tokenizer that the file names; "llama"
is SentencePiece's BPE: the best-scored neighbouring pair is merged first,
spaces are "▁", and what is left falls back to bytes. Both give llama.cpp's
ids; the regular expressions are in `pre_tokenizers.py`.

Cost: 0.1 s for 49k tokens and 49k merges; for "llama" the merges are found
again from the scores, 0.2 s for 32k tokens.

Sharp edges: where user-defined tokens overlap in a text, the leftmost is
taken here and the longest in llama.cpp. A control token is never put together
from ordinary characters; llama.cpp does so if every step on the way is a
token. A "llama" piece with a character that is no token of its own is never
made. Beside a byte that the vocabulary lacks, its neighbours may merge, as in
transformers; llama.cpp keeps them apart. Characters new in Unicode 16 are
letters, digits and so on here, and not yet in llama.cpp. Where scores are
equal llama.cpp merges the leftmost pair, here the longest piece is made first:
runs of spaces come out the same, other ties may not. `add_space_prefix` of a
"gpt2" file and `add_eos_token` are not acted on (llama.cpp neither, unless
asked to add special tokens).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax.weights.pre_tokenizers import (
  ADD_BOS,
  CHARACTERS,
  PRE_TOKENIZERS,
  WHOLE_WORDS,
)
from sinkjax.weights.tokenizer import Tokenizer, build
from sinkjax.weights.validate import WeightsError, first_line, warn

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Ends of a text or turn: control tokens even where the file does not say so.
_ENDS = """
  <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|>
  <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS]
  <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[
  <｜end▁of▁sentence｜>
"""
_CONTROL_TEXTS = frozenset(_ENDS.split())

# SentencePiece's own, which its trainer gives where it is not told otherwise.
MERGES = 16
"""Merges for each token, at most: of Llama 2's vocabulary and Gemma's there are
two. Tokens that are the beginnings of one long token have half their number."""

_USUAL_IDS = {"bos": 1, "eos": 2, "unknown": 0}


def tokenizer_from_gguf(metadata: dict[str, Any]) -> Tokenizer:
  """The tokenizer that a GGUF header describes.

  Args:
    metadata: the file's keys and values: `tokenizer.ggml.*` and
      `tokenizer.chat_template`. Other keys are not read.

  Raises:
    WeightsError: for an unknown model or pre-tokenizer, arrays of the wrong
      type or of unequal length, duplicate tokens, malformed merges, merges of
      unknown tokens, or more merges than a vocabulary of text has.

  Warns:
    WeightsWarning: for the id of a special token outside the vocabulary, which
      is ignored.
  """
  read = _Fields(metadata)
  rules = _rules(read)
  vocab = rules.vocab
  ids = {
    name: read.token(f"{name}_token_id", len(vocab))
    for name in ("bos", "eos", "unknown", "padding")
  }
  # The ends of a turn and of a message.
  ends = [read.token(f"{name}_token_id", len(vocab)) for name in ("eot", "eom")]
  if rules.kind == "llama":
    fitting = {vocab[t] for t in (rules.special if rules.stated else vocab)}
    for name, usual in _USUAL_IDS.items():
      if ids[name] is None and usual in fitting:
        ids[name] = usual
  return Tokenizer(
    rules.backend,
    bos_id=ids["bos"],
    eos_id=ids["eos"],
    end_ids=[i for i in ends if i is not None],
    unk_id=ids["unknown"],
    pad_id=ids["padding"],
    add_bos=read.flag(
      "add_bos_token", rules.add_bos and ids["bos"] is not None
    ),
    chat_template=read.chat_template(),
  )


def backend_from_gguf(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
  """The rules alone of `tokenizer_from_gguf`, without the special ids.

  Raises:
    WeightsError: as `tokenizer_from_gguf`.
  """
  return _rules(_Fields(metadata)).backend


class _Rules(NamedTuple):
  """A vocabulary with its rules.

  Attributes:
    kind: "gpt2" or "llama".
    vocab: ids by token.
    types: of each id, and whether the file has them.
    stated: see `types`.
    special: control tokens and the unknown one.
    backend: the rules.
    add_bos: whether BOS comes first unless the file says otherwise.
  """

  kind: str
  vocab: dict[str, int]
  types: list[int]
  stated: bool
  special: list[str]
  backend: tokenizers.Tokenizer
  add_bos: bool


def _rules(read: "_Fields") -> _Rules:
  kind = read.text("model", required=True)
  if kind not in ("gpt2", "llama"):
    raise WeightsError(
      f"tokenizer: unknown model {kind[:80]!r}; known: gpt2 (byte-level BPE), "
      "llama (SentencePiece BPE)"
    )
  vocab = _vocabulary(read)
  stated = read.numbers("token_type", len(vocab), int)
  types = list(stated or [NORMAL] * len(vocab))
  for token in _CONTROL_TEXTS & vocab.keys():
    types[vocab[token]] = CONTROL
  scores = read.numbers("scores", len(vocab), float)
  special = [t for t, i in vocab.items() if types[i] in (CONTROL, UNKNOWN)]
  user = [t for t, i in vocab.items() if types[i] == USER_DEFINED]
  if kind == "gpt2":
    backend, add_bos = _byte_level(read, vocab, special, user)
  else:
    backend = _sentencepiece(read, vocab, scores, types, special, user)
    add_bos = True
  return _Rules(kind, vocab, types, bool(stated), special, backend, add_bos)


def _vocabulary(read: "_Fields") -> dict[str, int]:
  """Ids by token; empty tokens get names, so that each has its own."""
  tokens = [
    token or f"[EMPTY_{i}]" for i, token in enumerate(read.strings("tokens"))
  ]
  vocab = {token: i for i, token in enumerate(tokens)}
  for i, token in enumerate(tokens):
    if vocab[token] != i:
      raise WeightsError(
        f"tokenizer: duplicate token {token[:80]!r}: ids {i} and {vocab[token]}"
      )
  return vocab


def _byte_level(
  read: "_Fields",
  vocab: dict[str, int],
  special: Sequence[str],
  user: Sequence[str],
) -> tuple[tokenizers.Tokenizer, bool]:
  """Byte-level BPE, and whether BOS comes first by default."""
  pre = read.text("pre") or "default"
  if pre in CHARACTERS:
    raise WeightsError(
      f"tokenizer: pre-tokenizer {pre!r} merges characters in place of bytes, "
      "which is not read; use the model's Hugging Face folder, whose "
      "tokenizer.json is"
    )
  if pre not in PRE_TOKENIZERS:
    raise WeightsError(
      f"tokenizer: unknown pre-tokenizer {pre[:80]!r}; known: "
      f"{', '.join(sorted(PRE_TOKENIZERS))}"
    )
  lines = read.strings("merges", may_be_empty=True)
  merges = [tuple(line.split(" ")) for line in lines]
  # Of a merge that is there twice the first counts.
  merges = list(dict.fromkeys(merges))
  try:
    model = models.BPE(vocab, merges, ignore_merges=pre in WHOLE_WORDS)
  except Exception as error:  # the library raises bare Exception
    # The library does not tell which merge it refuses; a search for it takes
    # time only where a file is bad.
    _explain_merges(lines, vocab)
    reason = first_line(error)
    raise WeightsError(f"tokenizer: bad merges: {reason}") from None
  splits = [
    pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    for regex in PRE_TOKENIZERS[pre]
  ]
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend = build(
    model,
    special,
    user,
    pre_tokenizer=pre_tokenizers.Sequence([*splits, level]),
    decoder=decoders.ByteLevel(),
  )
  return backend, pre in ADD_BOS


def _explain_merges(lines: Sequence[str], vocab: dict[str, int]) -> None:
  """Raises for the first merge that cannot be used."""
  for i, line in enumerate(lines):
    parts = line.split(" ")
    if len(parts) != 2 or not all(parts):
      raise WeightsError(
        f"tokenizer: merge {i} is {line[:80]!r}; expected two tokens with a "
        "space between"
      )
    for token in (*parts, "".join(parts)):
      if token not in vocab:
        raise WeightsError(
          f"tokenizer: merge {i}, {line[:80]!r}: {token[:80]!r} is not in the "
          "vocabulary"
        )


def _sentencepiece(
  read: "_Fields",
  vocab: dict[str, int],
  scores: Sequence[float] | None,
  types: Sequence[int],
  special: Sequence[str],
  user: Sequence[str],
) -> tokenizers.Tokenizer:
  if scores is None:
    raise read.bad("scores", f"an array of {len(vocab)} numbers, one a token")
  merges = _merges_by_score(vocab, scores, types)
  unknown = next((t for t, i in vocab.items() if types[i] == UNKNOWN), None)
  fallback = any(f"<0x{byte:02X}>" in vocab for byte in range(256))
  model = models.BPE(
    vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback
  )
  steps = [normalizers.Replace(" ", "▁")]
  undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if read.flag("add_space_prefix", True):
    steps.insert(0, normalizers.Prepend("▁"))
    undo.append(decoders.Strip(" ", 1, 0))
  return build(
    model,
    special,
    user,
    normalizer=normalizers.Sequence(steps),
    decoder=decoders.Sequence(undo),
  )


def _merges_by_score(
  vocab: dict[str, int], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
  """Every split of a piece into two pieces, best-scored piece first.

  Of equal scores (runs of spaces may have them) the longest comes first: so
  runs grow from the left, as in llama.cpp.
  """
  plain = {
    token: i
    for token, i in vocab.items()
    if types[i] not in (CONTROL, UNKNOWN, BYTE)
  }
  order = sorted(plain, key=lambda t: (-scores[plain[t]], -len(t), plain[t]))
  lengths = sorted({len(token) for token in plain})
  merges = []
  for piece in order:
    cuts = [i for i in lengths if i < len(piece)]
    splits = [(piece[:i], piece[i:]) for i in cuts]
    known = [(a, b) for a, b in splits if a in plain and b in plain]
    known.sort(key=lambda pair: (plain[pair[0]], plain[pair[1]]))
    merges += known
    if len(merges) > MERGES * len(vocab):
      raise WeightsError(
        f"tokenizer: its {len(vocab)} tokens have more than "
        f"{MERGES * len(vocab)} merges, as no vocabulary of text has"
      )
  return merges


class _Fields:
  """`tokenizer.ggml.*`, each of the type that it must have."""

  def __init__(self, metadata: dict[str, Any]):
    self._values = metadata

  def _get(self, key: str) -> Any:
    return self._values.get(f"tokenizer.ggml.{key}")

  def bad(self, key: str, expected: str) -> WeightsError:
    found = self._get(key)
    what = type(found).__name__
    if found is None:
      what = "nothing"
    elif isinstance(found, list) or getattr(found, "ndim", 0):
      what = f"{what} of {len(found)}"
    return WeightsError(
      f"tokenizer: tokenizer.ggml.{key} is {what}; expected {expected}"
    )

  def text(self, key: str, required: bool = False) -> str | None:
    value = self._get(key)
    if value is None and not required:
      return None
    if not isinstance(value, str):
      raise self.bad(key, "a string")
    return value

  def flag(self, key: str, default: bool) -> bool:
    value = self._get(key)
    if value is None:
      return default
    if not isinstance(value, bool):
      raise self.bad(key, "true or false")
    return value

  def strings(self, key: str, may_be_empty: bool = False) -> list[str]:
    value = self._get(key)
    if not isinstance(value, list) or not (value or may_be_empty):
      raise self.bad(key, "an array of strings")
    for i, item in enumerate(value):
      if not isinstance(item, str):
        kind = type(item).__name__
        raise self.bad(key, f"an array of strings; entry {i} is {kind}")
    try:
      "".join(value).encode("utf-8")
    except UnicodeEncodeError as error:
      raise self.bad(key, f"valid Unicode ({error.reason})") from None
    return value

  def numbers(self, key: str, length: int, kind: type) -> list | None:
    value = self._get(key)
    if value is None:
      return None
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list) or len(value) != length:
      raise self.bad(key, f"an array of {length} numbers, one a token")
    allowed = (int,) if kind is int else (int, float)
    for i, item in enumerate(value):
      # The exact type, because a bool is an instance of int.
      if type(item) not in allowed or not math.isfinite(item):
        raise self.bad(
          key, f"{kind.__name__} numbers; entry {i} is {str(item)[:40]!r}"
        )
    return list(value)

  def token(self, key: str, size: int) -> int | None:
    value = self._get(key)
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, int):
      raise self.bad(key, "a token id")
    if not 0 <= value < size:
      warn(
        f"tokenizer: {key} {value} is outside the vocabulary of {size}: ignored"
      )
      return None
    return value

  def chat_template(self) -> str | None:
    value = self._values.get("tokenizer.chat_template")
    if value is not None and not isinstance(value, str):
      raise WeightsError(
        f"tokenizer: tokenizer.chat_template is {type(value).__name__}; "
        "expected a string"
      )
    return value
