"""Text to token ids and back, with nothing added or hidden silently.

A thin wrapper over the `tokenizers` library. `encode` adds no BOS unless it is
asked to, reads "<|im_start|>" in a text as ordinary characters unless it is
asked not to, and `decode` shows special tokens.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sinkjax.weights.validate import WeightsError

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


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
    vocab_size: number of ids.
    bos_id: id of the beginning-of-sequence token, or `None`.
    eos_id: id of the end-of-sequence token, or `None`.
    unk_id: id of the unknown token, or `None`.
    pad_id: id of the padding token, or `None`.
    add_bos: whether the file says that texts begin with BOS. `encode` does
      not act on it; callers that follow it say so.
    chat_template: the file's Jinja template, or `None`.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    unk_id: int | None = None,
    pad_id: int | None = None,
    add_bos: bool = False,
    chat_template: str | None = None,
  ):
    self._backend = backend
    vocab = backend.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocab.values(), default=-1) + 1
    self.bos_id, self.eos_id = bos_id, eos_id
    self.unk_id, self.pad_id = unk_id, pad_id
    self.add_bos, self.chat_template = add_bos, chat_template
    for name in ("bos_id", "eos_id", "unk_id", "pad_id"):
      token = getattr(self, name)
      if token is not None and not 0 <= token < self.vocab_size:
        raise WeightsError(
          f"tokenizer: {name} {token} is outside the vocabulary of "
          f"{self.vocab_size}"
        )
    if add_bos and bos_id is None:
      raise WeightsError("tokenizer: adds a BOS but names none")

  def encode(
    self, text: str, *, add_bos: bool = False, parse_special: bool = False
  ) -> list[int]:
    """The ids of a text.

    Args:
      text: any string.
      add_bos: put BOS first.
      parse_special: read the names of special tokens in the text as those
        tokens, instead of as ordinary characters.

    Raises:
      ValueError: for `add_bos` where there is no BOS.
    """
    if add_bos and self.bos_id is None:
      raise ValueError("this tokenizer has no BOS token to add")
    self._backend.encode_special_tokens = not parse_special
    ids = self._backend.encode(text, add_special_tokens=False).ids
    return [self.bos_id, *ids] if add_bos else ids

  def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
    """The text of some ids; special tokens are shown unless skipped.

    Raises:
      ValueError: for an id outside the vocabulary.
    """
    ids = [self._check(token) for token in ids]
    return self._backend.decode(ids, skip_special_tokens=skip_special)

  def _check(self, token: int) -> int:
    token = int(token)
    if not 0 <= token < self.vocab_size:
      raise ValueError(
        f"token id {token} is outside the vocabulary of {self.vocab_size}"
      )
    return token

  def token(self, token: int) -> str:
    r"""One token for people: " the", "\n" for a newline, "\xe2" for a byte.

    Backslashes are doubled, so that no two tokens look alike.
    """
    piece = self._backend.id_to_token(self._check(token))
    if piece is None:
      return f"<unused {token}>"
    if isinstance(self._backend.decoder, decoders.ByteLevel):
      if all(c in _BYTES for c in piece):
        raw = bytes(_BYTES[c] for c in piece)
        return _show_bytes(raw)
      return piece.translate(_ESCAPES)
    if len(piece) == 6 and piece.startswith("<0x") and piece[-1] == ">":
      return _show_bytes(bytes([int(piece[3:5], 16)]))
    return piece.replace("▁", " ").translate(_ESCAPES)

  def token_to_id(self, text: str) -> int | None:
    """The id of a vocabulary entry, by its own name or by `token`'s."""
    found = self._backend.token_to_id(text)
    if found is not None:
      return found
    for candidate in (text, text.replace(" ", "▁"), _to_stand_ins(text)):
      found = self._backend.token_to_id(candidate)
      if found is not None and self.token(found) == text:
        return found
    return None

  def save(self, folder: str | os.PathLike) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` into a folder."""
    folder = pathlib.Path(folder)
    data = json.loads(self._backend.to_str())
    if self.add_bos:
      data["post_processor"] = self._bos_template()
    text = json.dumps(data, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    config: dict[str, Any] = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "add_bos_token": self.add_bos,
      "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "unk", "pad"):
      token = getattr(self, f"{name}_id")
      if token is not None:
        config[f"{name}_token"] = self._backend.id_to_token(token)
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")

  def _bos_template(self) -> dict[str, Any]:
    bos = self._backend.id_to_token(self.bos_id)
    special = {"SpecialToken": {"id": bos, "type_id": 0}}

    def sequence(letter):
      return {"Sequence": {"id": letter, "type_id": 0}}

    return {
      "type": "TemplateProcessing",
      "single": [special, sequence("A")],
      "pair": [special, sequence("A"), sequence("B")],
      "special_tokens": {
        bos: {"id": bos, "ids": [self.bos_id], "tokens": [bos]}
      },
    }


def _show_bytes(raw: bytes) -> str:
  """UTF-8 where it is, "\\xNN" for bytes that are no whole character."""
  shown = raw.decode("utf-8", "surrogateescape").translate(_ESCAPES)
  return "".join(
    f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else c
    for c in shown
  )


def _to_stand_ins(text: str) -> str:
  """Text as byte-level BPE spells it in its vocabulary."""
  names = {byte: char for char, byte in _BYTES.items()}
  return "".join(names[byte] for byte in text.encode("utf-8", "replace"))


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
  added = {"single_word": False, "lstrip": False, "rstrip": False}
  backend.add_special_tokens(
    [tokenizers.AddedToken(t, normalized=False, **added) for t in special]
  )
  backend.add_tokens(
    [tokenizers.AddedToken(t, normalized=False, **added) for t in user_defined]
  )
  return backend


def tokenizer_from_folder(path: str | os.PathLike) -> Tokenizer | None:
  """The tokenizer of a Hugging Face folder, `None` if it has none.

  Raises:
    WeightsError: for a damaged `tokenizer.json`, a special token outside the
      vocabulary, or two BOS tokens.
  """
  folder = pathlib.Path(path)
  file = folder / "tokenizer.json"
  if not file.is_file():
    return None
  try:
    backend = tokenizers.Tokenizer.from_file(str(file))
    data = json.loads(file.read_text("utf-8"))
  except Exception as error:  # the library raises bare Exception
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise WeightsError(f"{file}: not a tokenizer: {reason}") from None
  config = _optional_json(folder / "tokenizer_config.json")
  ids = {}
  for name in ("bos", "eos", "unk", "pad"):
    token = config.get(f"{name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None:
      ids[f"{name}_id"] = backend.token_to_id(str(token))
      if ids[f"{name}_id"] is None and name != "pad":
        raise WeightsError(
          f"{folder}: {name}_token {token!r} is not in the vocabulary"
        )
  template = _template_bos(data.get("post_processor"), str(file))
  if template is not None:
    if ids.get("bos_id") not in (None, template):
      raise WeightsError(
        f"{folder}: two BOS tokens: {ids['bos_id']} in tokenizer_config.json, "
        f"{template} in tokenizer.json's template"
      )
    ids["bos_id"] = template
  chat = config.get("chat_template")
  jinja = folder / "chat_template.jinja"
  if chat is None and jinja.is_file():
    chat = jinja.read_text("utf-8")
  return Tokenizer(
    backend,
    **ids,
    add_bos=template is not None or config.get("add_bos_token") is True,
    chat_template=chat if isinstance(chat, str) else None,
  )


def _optional_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    values = json.loads(path.read_text("utf-8"))
  except (ValueError, RecursionError, OSError) as error:
    raise WeightsError(f"{path}: not valid JSON: {error}") from None
  if not isinstance(values, dict):
    raise WeightsError(f"{path}: expected a JSON object")
  return values


def _template_bos(processor: Any, where: str) -> int | None:
  """The id that a post-processor puts first, if it does."""
  if not isinstance(processor, dict):
    return None
  parts = processor.get("processors", [processor])
  leading: list[int] = []
  for part in parts:
    if part.get("type") != "TemplateProcessing":
      continue
    for piece in part["single"]:
      if "SpecialToken" not in piece:
        break
      name = piece["SpecialToken"]["id"]
      leading += part["special_tokens"][name]["ids"]
  if len(leading) > 1:
    raise WeightsError(f"{where}: the template adds two BOS tokens: {leading}")
  return leading[0] if leading else None


def tokenizer_from_glassllm(path: str | os.PathLike) -> Tokenizer:
  """The character BPE of the `glassllm` package.

  Raises:
    WeightsError: for a file that is not of that form.
  """
  special = ["<pad>", "<unk>", "<bos>", "<eos>"]
  try:
    data = json.loads(pathlib.Path(path).read_text("utf-8"))
    merges = [(str(a), str(b)) for a, b in data["merges"]]
    entries = [*special, *map(str, data["alphabet"])]
    entries += [a + b for a, b in merges]
    if len(set(entries)) != len(entries):
      raise ValueError("duplicate tokens")
    vocab = {token: i for i, token in enumerate(entries)}
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=False)
  except Exception as error:  # the library raises bare Exception
    raise WeightsError(f"{path}: not a tokenizer: {error}") from None
  chunk = tokenizers.Regex("\\n|▁*[^▁\\n]+|▁+")
  backend = build(
    model,
    special,
    [],
    normalizer=normalizers.Sequence(
      [normalizers.NFC(), normalizers.Replace(" ", "▁")]
    ),
    pre_tokenizer=pre_tokenizers.Split(chunk, "isolated"),
    decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]),
  )
  return Tokenizer(backend, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
