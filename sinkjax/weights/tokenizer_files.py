"""Tokenizers from files: Hugging Face folders and the glassllm package."""

import json
import os
import pathlib
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax import limits
from sinkjax.weights import panics, tokenizer_rules
from sinkjax.weights.folders import read_bytes, read_optional_json
from sinkjax.weights.post_processor import template_bos
from sinkjax.weights.tokenizer import NAMES, Tokenizer, build
from sinkjax.weights.tokenizer_legacy import legacy_backend
from sinkjax.weights.validate import WeightsError, first_line, warn

# They describe the model and how it is run; where they name a special token
# that the tokenizer names too, the tokenizer is right.
_MODEL_FILES = ("config.json", "generation_config.json")


def tokenizer_from_folder(path: str | os.PathLike) -> Tokenizer | None:
  """The tokenizer of a Hugging Face folder, `None` if it has none.

  `tokenizer.json`, or the files of `tokenizer_legacy`, give the rules, and the
  former's post-processor says whether BOS comes first (with `tokenizer.model`
  it does unless the config says otherwise); `tokenizer_config.json`,
  `special_tokens_map.json`, `config.json` and `generation_config.json`, the
  first that has it, name the special tokens.

  Raises:
    WeightsError: for a damaged file, a special token outside the vocabulary,
      or a post-processor that puts two tokens first.

  Warns:
    WeightsWarning: where the tokenizer's own files name different BOS tokens
      (the post-processor's, else the first file's is used), or a number is no
      token's id (it is ignored).
  """
  folder = pathlib.Path(path)
  file, template = folder / "tokenizer.json", None
  config = read_optional_json(folder / "tokenizer_config.json")
  if file.exists():
    backend, template = _whole(file)
    usual = False
  else:
    legacy = legacy_backend(folder)
    if legacy is None:
      return None
    backend, usual = legacy
  found = {name: _special_ids(folder, name, backend) for name in NAMES}
  first = {
    f"{name}_id": next(iter(ids.values()), None) for name, ids in found.items()
  }
  if template is not None:
    found["bos"]["tokenizer.json"] = first["bos_id"] = template
  usual = usual and first["bos_id"] is not None
  add_bos = config.get("add_bos_token", usual) is True
  # What the model's files say is no word of the tokenizer: see `fit_tokenizer`.
  own = {k: i for k, i in found["bos"].items() if k not in _MODEL_FILES}
  if len(set(own.values())) > 1:
    named = ", ".join(f"{i} in {where}" for where, i in own.items())
    warn(f"{folder}: BOS is {first['bos_id']}, of several: {named}")
  chat, ends = _chat_template(folder, config), _end_ids(folder)
  try:
    return Tokenizer(
      backend,
      **first,
      end_ids=ends,
      add_bos=template is not None or add_bos,
      chat_template=chat,
    )
  except WeightsError as error:
    raise WeightsError(f"{folder}: {error}") from None


def _whole(file: pathlib.Path) -> tuple[tokenizers.Tokenizer, int | None]:
  """The rules of a `tokenizer.json`, and the BOS that it puts first."""
  try:
    text = read_bytes(file).decode("utf-8")
    data = json.loads(text)
  except WeightsError:
    raise
  except (ValueError, RecursionError) as error:
    reason = first_line(error)
    raise WeightsError(f"{file}: not a tokenizer: {reason}") from None
  reason = _bad_prefix(data) or tokenizer_rules.refusal(data)
  if reason:
    raise WeightsError(f"{file}: not a tokenizer: {reason}")
  try:
    with panics.as_errors():
      backend = tokenizers.Tokenizer.from_str(text)
  except Exception as error:
    reason = first_line(error)
    raise WeightsError(f"{file}: not a tokenizer: {reason}") from None
  return backend, template_bos(data.get("post_processor"), str(file))


def _bad_prefix(data: Any) -> str | None:
  """A merge whose second part lacks the prefix of inner pieces.

  `tokenizers` 0.23 cuts so many bytes off it unseen, and where it so cuts a
  character the whole process aborts.
  """
  model = data.get("model") if isinstance(data, dict) else None
  if not isinstance(model, dict):
    return None
  prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
  if not prefix or not isinstance(merges, list):
    return None
  for merge in merges:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    inner = parts[-1] if isinstance(parts, list) and parts else None
    if not isinstance(inner, str) or not inner.startswith(str(prefix)):
      return f"merge {merge!r} lacks the prefix {prefix!r}"
  return None


def _chat_template(folder: pathlib.Path, config: dict[str, Any]) -> str | None:
  """The template of its own file, else the config's (default) one."""
  file = folder / "chat_template.jinja"
  if file.exists():
    return read_bytes(file, limits.TEMPLATE).decode("utf-8", "replace")
  chat = config.get("chat_template")
  if isinstance(chat, list):
    named = [entry for entry in chat if isinstance(entry, dict)]
    chat = {entry.get("name"): entry.get("template") for entry in named}
    chat = chat.get("default")
  return chat if isinstance(chat, str) else None


def _end_ids(folder: pathlib.Path) -> set[int]:
  """Every id that the folder's files call an end, alone or in a list."""
  found = set()
  for file in _MODEL_FILES:
    ids = read_optional_json(folder / file).get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    found |= {i for i in ids if type(i) is int}
  return found


def _special_ids(
  folder: pathlib.Path, name: str, backend: tokenizers.Tokenizer
) -> dict[str, int]:
  """The ids that a folder's files give one special token, best file first."""
  found = {}
  for file in ("tokenizer_config.json", "special_tokens_map.json"):
    token = read_optional_json(folder / file).get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
      continue
    try:
      token_id = backend.token_to_id(token)
    except (TypeError, UnicodeEncodeError):
      token_id = None
    if token_id is not None:
      found[file] = token_id
    elif name in ("bos", "eos"):
      raise WeightsError(
        f"{folder / file}: {name}_token {token!r} is not in the vocabulary"
      )
  ignored = None
  for file in _MODEL_FILES:
    token_id = read_optional_json(folder / file).get(f"{name}_token_id")
    if isinstance(token_id, list) and token_id and name == "eos":
      token_id = token_id[0]
    # Some configs write -1 where there is no padding token.
    if token_id is None or (name == "pad" and token_id == -1):
      continue
    if type(token_id) is not int:  # `True` is an instance of int
      raise WeightsError(
        f"{folder / file}: {name}_token_id {token_id!r} is not a token id"
      )
    # `id_to_token` takes unsigned numbers of 32 bits alone.
    if 0 <= token_id < 1 << 32 and backend.id_to_token(token_id) is not None:
      found[file] = token_id
    # Class defaults that were never set stand in both files: one line is
    # enough, and `config_from_hf` has it for BOS and EOS of config.json.
    elif token_id != ignored:
      ignored = token_id
      if file != "config.json" or name not in ("bos", "eos"):
        warn(
          f"{folder / file}: {name}_token_id {token_id!r:.40} is not in "
          f"the vocabulary of {backend.get_vocab_size()}: ignored"
        )
  return found


def tokenizer_from_glassllm(path: str | os.PathLike) -> Tokenizer:
  """The character BPE of the `glassllm` package.

  Text is put into NFC, " " becomes "▁", and merges stay inside the chunks
  that a regular expression cuts; unknown characters are one <unk> each.

  Args:
    path: one of the package's `*.tokenizer.json`.

  Raises:
    WeightsError: for a file that is not of that form.
  """
  special = ["<pad>", "<unk>", "<bos>", "<eos>"]
  data = read_optional_json(pathlib.Path(path))
  try:
    merges = [(str(a), str(b)) for a, b in data["merges"]]
    entries = [*special, *map(str, data["alphabet"])]
    entries += [a + b for a, b in merges]
    if len(set(entries)) != len(entries):
      raise ValueError("duplicate tokens")
    vocab = {token: i for i, token in enumerate(entries)}
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=False)
  except KeyError as error:
    raise WeightsError(f"{path}: not a tokenizer: no key {error}") from None
  except Exception as error:  # the library raises bare Exception
    reason = first_line(error)
    raise WeightsError(f"{path}: not a tokenizer: {reason}") from None
  backend = build(
    model,
    special,
    [],
    normalizer=normalizers.Sequence(
      [normalizers.NFC(), normalizers.Replace(" ", "▁")]
    ),
    pre_tokenizer=pre_tokenizers.Split(
      tokenizers.Regex("\\n|▁*[^▁\\n]+|▁+"), "isolated"
    ),
    decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
  )
  return Tokenizer(backend, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
