"""Tokenizers rebuilt from the vocabulary inside a GGUF file.

"gpt2" is byte-level BPE with the pre-tokenizer that the file names; "llama" is
SentencePiece's BPE: the best-scored neighbouring pair is merged first, spaces
are "▁", and what is left falls back to bytes.
"""

from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax.weights.tokenizer import Tokenizer, build
from sinkjax.weights.validate import WeightsError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_GPT2 = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r"|\s+(?!\S)|\s+"
)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
  "default": _DEFAULT,
  "gpt-2": (_GPT2,),
  "mpt": (_GPT2,),
  "olmo": (_GPT2,),
  "smollm": (r"\p{N}", _GPT2),
  "starcoder": (r"\p{N}", _GPT2),
  "refact": (r"\p{N}", _GPT2),
  "command-r": (r"\p{N}", _GPT2),
  "llama-bpe": (_LLAMA3,),
  "llama3": (_LLAMA3,),
  "llama-v3": (_LLAMA3,),
  "qwen2": (_QWEN2,),
  "deepseek-r1-qwen": (_QWEN2,),
}
"""The regular expressions that split a text, one after the other."""


def tokenizer_from_gguf(metadata: dict[str, Any]) -> Tokenizer:
  """The tokenizer that a GGUF header describes.

  Args:
    metadata: the file's keys and values.

  Raises:
    WeightsError: for an unknown model or pre-tokenizer, arrays of unequal
      length, duplicate tokens, merges of unknown tokens, or ids outside the
      vocabulary.
  """
  read = _Fields(metadata)
  kind = read.text("model", required=True)
  tokens = read.strings("tokens")
  types = read.array("token_type", len(tokens), [NORMAL] * len(tokens))
  vocab = {token: i for i, token in enumerate(tokens)}
  if len(vocab) != len(tokens):
    seen: set[str] = set()
    twice = next(t for t in tokens if t in seen or seen.add(t))
    raise WeightsError(f"tokenizer: duplicate token {twice!r}")
  special = [t for t, k in zip(tokens, types, strict=True)
             if k in (CONTROL, UNKNOWN)]  # fmt: skip
  user = [t for t, k in zip(tokens, types, strict=True) if k == USER_DEFINED]
  if kind == "gpt2":
    backend = _byte_level(read, vocab, special, user)
  elif kind == "llama":
    backend = _sentencepiece(read, vocab, types, special, user)
  else:
    raise WeightsError(
      f"tokenizer: unknown model {kind!r}; known: gpt2 (byte-level BPE), "
      "llama (SentencePiece BPE)"
    )
  add_bos = read.flag("add_bos_token", kind == "llama")
  bos = read.token("bos_token_id", len(tokens), 1 if kind == "llama" else None)
  return Tokenizer(
    backend,
    bos_id=bos,
    eos_id=read.token("eos_token_id", len(tokens)),
    unk_id=read.token("unknown_token_id", len(tokens)),
    pad_id=read.token("padding_token_id", len(tokens)),
    add_bos=add_bos and bos is not None,
    chat_template=metadata.get("tokenizer.chat_template"),
  )


def _byte_level(read, vocab, special, user) -> tokenizers.Tokenizer:
  pre = read.text("pre") or "default"
  if pre not in PRE_TOKENIZERS:
    raise WeightsError(
      f"tokenizer: unknown pre-tokenizer {pre!r}; known: "
      f"{sorted(PRE_TOKENIZERS)}"
    )
  merges = [_merge(line) for line in read.strings("merges")]
  try:
    model = models.BPE(vocab, merges)
  except Exception as error:  # the library raises bare Exception
    raise WeightsError(f"tokenizer: bad merges: {error}") from None
  splits = [
    pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    for regex in PRE_TOKENIZERS[pre]
  ]
  space = read.flag("add_space_prefix", False)
  level = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
  return build(
    model,
    special,
    user,
    pre_tokenizer=pre_tokenizers.Sequence([*splits, level]),
    decoder=decoders.ByteLevel(),
  )


def _merge(line: str) -> tuple[str, str]:
  parts = line.split(" ")
  if len(parts) != 2 or not all(parts):
    raise WeightsError(f"tokenizer: malformed merge {line!r}")
  return parts[0], parts[1]


def _sentencepiece(read, vocab, types, special, user) -> tokenizers.Tokenizer:
  scores = read.array("scores", len(vocab))
  merges = _merges_by_score(vocab, scores, types)
  unknown = next((t for t, i in vocab.items() if types[i] == UNKNOWN), None)
  fallback = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
  model = models.BPE(
    vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback
  )
  prefix = read.flag("add_space_prefix", True)
  steps = [normalizers.Replace(" ", "▁")]
  undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if prefix:
    steps.insert(0, normalizers.Prepend("▁"))
    undo.append(decoders.Strip(" ", 1, 0))
  return build(
    model,
    special,
    user,
    normalizer=normalizers.Sequence(steps),
    decoder=decoders.Sequence(undo),
  )


def _merges_by_score(vocab, scores, types) -> list[tuple[str, str]]:
  """Every split of a piece into two pieces, best-scored piece first."""
  plain = {t for t, i in vocab.items() if types[i] in (NORMAL, USER_DEFINED)}
  found = []
  for piece in plain:
    splits = [
      (vocab[piece[:i]], vocab[piece[i:]], piece[:i], piece[i:])
      for i in range(1, len(piece))
      if piece[:i] in plain and piece[i:] in plain
    ]
    score = -float(scores[vocab[piece]])
    found += [(score, vocab[piece], *split) for split in splits]
  return [(left, right) for *_, left, right in sorted(found)]


class _Fields:
  """`tokenizer.ggml.*`, each of the type that it must have."""

  def __init__(self, metadata: dict[str, Any]):
    self._values = metadata

  def _get(self, key: str) -> Any:
    return self._values.get(f"tokenizer.ggml.{key}")

  def _bad(self, key: str, expected: str) -> WeightsError:
    return WeightsError(f"tokenizer: tokenizer.ggml.{key} must be {expected}")

  def text(self, key: str, required: bool = False) -> str | None:
    value = self._get(key)
    if value is None and not required:
      return None
    if not isinstance(value, str):
      raise self._bad(key, "a string")
    return value

  def flag(self, key: str, default: bool) -> bool:
    value = self._get(key)
    if value is None:
      return default
    if not isinstance(value, bool):
      raise self._bad(key, "true or false")
    return value

  def strings(self, key: str) -> list[str]:
    value = self._get(key)
    if not isinstance(value, list) or not value:
      raise self._bad(key, "a non-empty array of strings")
    if not all(isinstance(item, str) for item in value):
      raise self._bad(key, "an array of strings")
    return value

  def array(self, key: str, length: int, default: Any = None) -> list:
    value = self._get(key)
    if value is None and default is not None:
      return default
    if value is None or isinstance(value, str) or len(value) != length:
      raise self._bad(key, f"an array of {length} numbers, one a token")
    return list(value)

  def token(self, key: str, size: int, default: int | None = None):
    value = self._get(key)
    if value is None:
      return default
    if isinstance(value, bool) or not isinstance(value, int):
      raise self._bad(key, "a token id")
    if not 0 <= value < size:
      raise WeightsError(
        f"tokenizer: {key} {value} is outside the vocabulary of {size}"
      )
    return value
