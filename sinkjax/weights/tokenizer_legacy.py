"""Tokenizers of folders from before `tokenizer.json`.

Two forms, as the older classes of transformers save them: `vocab.json` with
`merges.txt`, byte-level BPE of GPT-2's or Qwen2's kind; and `tokenizer.model`,
SentencePiece's BPE, whose pieces and scores are those that a GGUF file holds.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax.weights import families, panics
from sinkjax.weights.folders import read_bytes, read_json, read_optional_json
from sinkjax.weights.pre_tokenizers import PRE_TOKENIZERS
from sinkjax.weights.tokenizer_gguf import USER_DEFINED, backend_from_gguf
from sinkjax.weights.validate import WeightsError, first_line

VOCAB, MERGES, PIECES = "vocab.json", "merges.txt", "tokenizer.model"

# How a text is split, by the class that a folder or its family names.
_GPT2, _QWEN2 = "gpt-2", "qwen2"
_CLASSES = {
  "GPT2Tokenizer": _GPT2,
  "CodeGenTokenizer": _GPT2,
  "Qwen2Tokenizer": _QWEN2,
}
_BPE = 2  # of SentencePiece's TrainerSpec.ModelType; 1 is unigram


class Legacy(NamedTuple):
  """The rules, and whether BOS comes first unless the config says otherwise."""

  backend: tokenizers.Tokenizer
  add_bos: bool


def legacy_backend(folder: pathlib.Path) -> Legacy | None:
  """The rules of such a folder, `None` if it has neither form.

  Raises:
    WeightsError: for a damaged file, a class or a kind of SentencePiece model
      that is not read, or added tokens whose ids do not follow the vocabulary.
  """
  if (folder / VOCAB).is_file() and (folder / MERGES).is_file():
    found = Legacy(_byte_level(folder), add_bos=False)
  elif (folder / PIECES).is_file():
    # The classes that read this file, those of Llama and Gemma, put it first.
    found = Legacy(_pieces(folder / PIECES), add_bos=True)
  else:
    return None
  _add_tokens(folder, found.backend)
  return found


def _byte_level(folder: pathlib.Path) -> tokenizers.Tokenizer:
  config = read_optional_json(folder / "tokenizer_config.json")
  name = config.get("tokenizer_class")
  if name is None:
    model = read_optional_json(folder / "config.json").get("model_type")
    family = families.find(model)
    name = family.tokenizer if family else None
  pre = _CLASSES.get(str(name).removesuffix("Fast"))
  if pre is None:
    raise WeightsError(
      f"{folder}: {VOCAB} and {MERGES} of tokenizer_class {name!r:.80} are not "
      f"read, only those of {', '.join(_CLASSES)}; save the tokenizer as "
      "tokenizer.json with transformers' save_pretrained"
    )
  vocab = read_json(folder / VOCAB)
  if not isinstance(vocab, dict) or not all(
    type(i) is int and i >= 0 for i in vocab.values()
  ):
    raise WeightsError(f"{folder / VOCAB}: expected an object of token ids")
  if len(set(vocab.values())) != len(vocab):
    raise WeightsError(f"{folder / VOCAB}: two tokens have the same id")
  merges = _merges(folder / MERGES)
  try:
    # A file may hold a surrogate, which only a panic of the library tells.
    with panics.as_errors():
      model = models.BPE(vocab, merges, fuse_unk=False)
      backend = tokenizers.Tokenizer(model)
  except Exception as error:
    raise WeightsError(
      f"{folder / MERGES}: bad merges: {first_line(error)}"
    ) from None
  # ByteLevel's own expression is GPT-2's.
  space = config.get("add_prefix_space") is True
  level = pre_tokenizers.ByteLevel(space, use_regex=pre == _GPT2)
  if pre == _QWEN2:
    backend.normalizer = normalizers.NFC()
    (regex,) = PRE_TOKENIZERS[pre]
    split = pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    level = pre_tokenizers.Sequence([split, level])
  backend.pre_tokenizer = level
  backend.decoder = decoders.ByteLevel()
  return backend


def _merges(path: pathlib.Path) -> list[tuple[str, str]]:
  """The pairs of a file with one a line, behind a line with the version."""
  merges = []
  # Lines end at newlines only: other separators may be a token's characters.
  for i, line in enumerate(_read(path).split("\n")):
    line = line.removesuffix("\r")
    if not line or (i == 0 and line.startswith("#version")):
      continue
    parts = line.split(" ")
    if len(parts) != 2 or not all(parts):
      raise WeightsError(
        f"{path}: line {i + 1} is {line[:80]!r}; expected two tokens with a "
        "space between"
      )
    merges.append((parts[0], parts[1]))
  return merges


def _read(path: pathlib.Path) -> str:
  try:
    return read_bytes(path).decode("utf-8")
  except UnicodeDecodeError as error:
    raise WeightsError(f"{path}: not UTF-8: {error.reason}") from None


def _pieces(path: pathlib.Path) -> tokenizers.Tokenizer:
  """SentencePiece's own file, read as a GGUF file of its pieces."""
  from google.protobuf.message import DecodeError
  from sentencepiece import sentencepiece_model_pb2

  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(read_bytes(path))
  except DecodeError:
    raise WeightsError(f"{path}: not a SentencePiece model") from None
  if proto.trainer_spec.model_type != _BPE or not proto.pieces:
    raise WeightsError(
      f"{path}: SentencePiece models of another kind than BPE are not read; "
      "save the tokenizer as tokenizer.json with transformers' save_pretrained"
    )
  if proto.normalizer_spec.precompiled_charsmap:
    raise WeightsError(
      f"{path}: its normalisation ({proto.normalizer_spec.name:.40}) is not "
      "read; save the tokenizer as tokenizer.json with transformers' "
      "save_pretrained"
    )
  metadata: dict[str, Any] = {
    "model": "llama",
    "tokens": [_text(piece) for piece in proto.pieces],
    "scores": [piece.score for piece in proto.pieces],
    "token_type": [piece.type for piece in proto.pieces],
    "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
  }
  try:
    return backend_from_gguf(
      {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    )
  except WeightsError as error:
    raise WeightsError(f"{path}: {error}") from None


def _text(piece: Any) -> str:
  """A piece as a GGUF file holds it: in those that users define, spaces."""
  if piece.type == USER_DEFINED:
    return piece.piece.replace("▁", " ")
  return piece.piece


def _add_tokens(folder: pathlib.Path, backend: tokenizers.Tokenizer) -> None:
  """Tokens that the other files add, and which tokens are special."""
  wanted = _added(folder)
  for token_id in sorted(wanted):
    token = wanted[token_id]
    own = backend.token_to_id(token.content)
    if own is None:
      own = backend.get_vocab_size(with_added_tokens=True)
    if own != token_id:
      raise WeightsError(
        f"{folder}: added token {token.content[:80]!r} has id {token_id}; here "
        f"it would have {own}"
      )
    if token.special:
      backend.add_special_tokens([token])
    else:
      backend.add_tokens([token])
  for content in _special(folder):
    if backend.token_to_id(content) is not None:
      backend.add_special_tokens(
        [tokenizers.AddedToken(content, special=True, normalized=False)]
      )


def _added(folder: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
  """Added tokens by id, of `added_tokens.json` and of the config."""
  found = {}
  for content, i in read_optional_json(folder / "added_tokens.json").items():
    if type(i) is not int or i < 0:
      raise WeightsError(f"{folder / 'added_tokens.json'}: {i!r:.40} is no id")
    found[i] = tokenizers.AddedToken(content, normalized=False)
  where = folder / "tokenizer_config.json"
  listed = read_optional_json(where).get("added_tokens_decoder") or {}
  if not isinstance(listed, Mapping):
    raise WeightsError(f"{where}: added_tokens_decoder must be an object")
  for key, about in listed.items():
    content = about.get("content") if isinstance(about, Mapping) else None
    if not isinstance(content, str) or not (key.isascii() and key.isdigit()):
      raise WeightsError(
        f"{where}: added_tokens_decoder {key!r:.40} is no token"
      )
    flags = {
      name: about.get(name) is True
      for name in ("special", "lstrip", "rstrip", "single_word", "normalized")
    }
    found[int(key)] = tokenizers.AddedToken(content, **flags)
  return found


def _special(folder: pathlib.Path) -> list[str]:
  """Texts of the tokens that a file calls special."""
  found = []
  for file in ("tokenizer_config.json", "special_tokens_map.json"):
    for key, value in read_optional_json(folder / file).items():
      if not key.endswith("_token") and key != "additional_special_tokens":
        continue
      for token in value if isinstance(value, list) else [value]:
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content:
          found.append(content)
  return list(dict.fromkeys(found))
