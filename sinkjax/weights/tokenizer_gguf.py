r"""Tokenizers rebuilt from the vocabulary inside a GGUF file.

"gpt2" is byte-level BPE behind the pre-tokenizer that the file names, or, with
the names of `CHARACTERS` and as "gemma4", BPE of characters by the file's own
merges; "llama" is SentencePiece's BPE: the best-scored neighbouring pair is
merged first. In the last two spaces are "▁" and what is left falls back to
bytes. All give llama.cpp's ids; the regular expressions are in
`pre_tokenizers.py`.

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
runs of spaces come out the same, other ties may not. A run of line ends that is
a token is put together by its merges here where characters are merged, and
taken as it is in llama.cpp. `add_space_prefix` of a "gpt2" file and
`add_eos_token` are not acted on (llama.cpp neither, unless asked to add special
tokens).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax.weights.pre_tokenizers import (
  ADD_BOS,
  CHARACTERS,
  PRE_TOKENIZERS,
  SPACES_STAY,
  WHOLE_WORDS,
)
from sinkjax.weights.tokenizer import Tokenizer, build
from sinkjax.weights.tokenizer_fields import Fields
from sinkjax.weights.validate import WeightsError, first_line

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
  read = Fields(metadata)
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
  return _rules(Fields(metadata)).backend


class _Rules(NamedTuple):
  """A vocabulary with its rules.

  Attributes:
    kind: "gpt2", "gemma4" or "llama".
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


def _rules(read: Fields) -> _Rules:
  kind = read.text("model", required=True)
  if kind not in ("gpt2", "gemma4", "llama"):
    raise WeightsError(
      f"tokenizer: unknown model {kind[:80]!r}; known: gpt2 (byte-level BPE), "
      "llama (SentencePiece BPE), gemma4 (BPE of characters)"
    )
  vocab = _vocabulary(read)
  stated = read.numbers("token_type", len(vocab), int)
  types = list(stated or [NORMAL] * len(vocab))
  for token in _CONTROL_TEXTS & vocab.keys():
    types[vocab[token]] = CONTROL
  scores = read.numbers("scores", len(vocab), float)
  special = [t for t, i in vocab.items() if types[i] in (CONTROL, UNKNOWN)]
  user = [t for t, i in vocab.items() if types[i] == USER_DEFINED]
  pre = "gemma4" if kind == "gemma4" else read.text("pre") or "default"
  if kind != "llama" and pre in CHARACTERS:
    backend = _of_characters(read, pre, vocab, special, user)
    add_bos = kind == "gemma4"
  elif kind == "gpt2":
    backend, add_bos = _byte_level(read, pre, vocab, special, user)
  else:
    backend = _sentencepiece(read, vocab, scores, types, special, user)
    add_bos = True
  return _Rules(kind, vocab, types, bool(stated), special, backend, add_bos)


def _vocabulary(read: Fields) -> dict[str, int]:
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
  read: Fields,
  pre: str,
  vocab: dict[str, int],
  special: Sequence[str],
  user: Sequence[str],
) -> tuple[tokenizers.Tokenizer, bool]:
  """Byte-level BPE, and whether BOS comes first by default."""
  if pre not in PRE_TOKENIZERS:
    raise WeightsError(
      f"tokenizer: unknown pre-tokenizer {pre[:80]!r}; known: "
      f"{', '.join(sorted(PRE_TOKENIZERS))}"
    )
  model = _merging(read, vocab, ignore_merges=pre in WHOLE_WORDS)
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


def _merging(read: Fields, vocab: dict[str, int], **options: Any) -> models.BPE:
  """BPE by the merges that the file lists."""
  lines = read.strings("merges", may_be_empty=True)
  merges = [tuple(line.split(" ")) for line in lines]
  # Of a merge that is there twice the first counts.
  merges = list(dict.fromkeys(merges))
  try:
    return models.BPE(vocab, merges, **options)
  except Exception as error:  # the library raises bare Exception
    # The library does not tell which merge it refuses; a search for it takes
    # time only where a file is bad.
    _explain_merges(lines, vocab)
    reason = first_line(error)
    raise WeightsError(f"tokenizer: bad merges: {reason}") from None


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


def _of_characters(
  read: Fields,
  pre: str,
  vocab: dict[str, int],
  special: Sequence[str],
  user: Sequence[str],
) -> tokenizers.Tokenizer:
  """BPE of characters by the file's merges, lines and their ends apart.

  A character that is no token becomes bytes where the vocabulary has them, and
  nothing where it has not.
  """
  apart = pre_tokenizers.Split(tokenizers.Regex(CHARACTERS[pre]), "isolated")
  model = _merging(read, vocab, fuse_unk=True, byte_fallback=_has_bytes(vocab))
  if pre in SPACES_STAY:
    return build(
      model, special, user, pre_tokenizer=apart, decoder=decoders.Fuse()
    )
  return build(
    model,
    special,
    user,
    normalizer=normalizers.Replace(" ", "▁"),
    pre_tokenizer=apart,
    decoder=decoders.Sequence(list(_UNDO)),
  )


_UNDO = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())


def _has_bytes(vocab: dict[str, int]) -> bool:
  """Whether characters that are no tokens can become bytes."""
  return any(f"<0x{byte:02X}>" in vocab for byte in range(256))


def _sentencepiece(
  read: Fields,
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
  fallback = _has_bytes(vocab)
  model = models.BPE(
    vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback
  )
  steps = [normalizers.Replace(" ", "▁")]
  undo = list(_UNDO)
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
