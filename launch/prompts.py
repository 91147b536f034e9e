"""Texts for the launchers: the built-in paragraph, files, and prefixes."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sinkjax import limits

if TYPE_CHECKING:
  from sinkjax.weights.chat import Chat

PARAGRAPH = """\
The harbour was quiet before dawn. Two fishermen loaded their nets into a \
small blue boat while the lighthouse keeper walked down the stone steps with \
a lantern in one hand and a letter in the other. He had written it the night \
before, after the storm, and he wanted it to leave with the first boat. "Give \
this to my sister," he said, "and tell her that the roof held." The older man \
put the letter inside his coat. By noon the wind had turned, the sea was flat \
again, and nobody on the pier could remember how loud the night had been.
"""
"""What is analysed when no text is given: written for this project."""


def read_texts(
  text_file: str | None,
  prompts_file: str | None,
  chat: str | None = None,
  system: str | None = None,
  *,
  max_tokens: int | None = None,
) -> "list[str | Chat]":
  """The texts and chats that the flags name.

  Args:
    text_file: one text, UTF-8.
    prompts_file: records of JSON, as `sinkjax.data.text_files` reads them: each
      a text, or an object with a string "text" or a list "messages".
    chat: a user's message.
    system: a system message before it.
    max_tokens: of a text that are used; of a longer one the beginning is read.

  Raises:
    ValueError: for two of them, a file that cannot be read, or a bad line,
      naming it.
  """
  if sum(map(bool, (text_file, prompts_file, chat))) > 1:
    raise ValueError("give one of --text_file, --prompts_file and --chat")
  if system is not None and not chat:
    raise ValueError("--system goes with --chat")
  if chat:
    from sinkjax.weights.chat import messages_of

    return [messages_of(chat, system)]
  if text_file:
    from sinkjax.data import text_files

    most = None if max_tokens is None else _characters(max_tokens)
    text = text_files.one_text(_path(text_file), characters=most)
    if not text.strip():
      raise ValueError(f"{text_file} is empty")
    return [text]
  if not prompts_file:
    return [PARAGRAPH]
  return list(_prompts(prompts_file))


def _prompts(file: str) -> "Iterator[str | Chat]":
  """The texts and chats of a file of records."""
  from sinkjax.data import text_files

  path, count = _path(file), 0
  if text_files.holds(path) == text_files.PARQUET:
    raise ValueError(
      f"{path}: prompts are not read from Parquet; write them to a .jsonl file"
    )
  for record in text_files.records(path, limits.PROMPTS):
    count += 1
    if count > limits.PROMPT_LINES:
      raise ValueError(
        f"{file} has more than {limits.PROMPT_LINES} prompts, which would take "
        "days; give fewer"
      )
    text = _prompt(record.value)
    if text is None:
      raise ValueError(
        f'{file}, {record.where}: expected {{"text": "..."}} or {{"messages": '
        f'[{{"role": "user", "content": "..."}}]}}, got '
        f"{record.error or repr(record.shown)}"
      )
    yield text
  if not count:
    raise ValueError(f"{file} holds no prompts")


def _prompt(value: Any) -> "str | Chat | None":
  """A record's text or messages, `None` for anything else."""
  if isinstance(value, str):
    return value or None
  if not isinstance(value, dict):
    return None
  text, messages = value.get("text"), value.get("messages")
  if isinstance(text, str) and text and messages is None:
    return text
  from sinkjax.weights.chat import not_a_chat

  return None if text is not None or not_a_chat(messages) else messages


def _path(file: str) -> pathlib.Path:
  return pathlib.Path(file).expanduser()


def require_finite(
  params: Any, cfg: Any, tokenizer: Any, prefix: list[int]
) -> None:
  """One forward pass on the built-in paragraph, before anything is measured.

  Accuracies and ranks are finite whatever the activations are.

  Raises:
    NotFiniteError: naming the first layer that overflows.
  """
  from sinkjax.analysis.sink_profile import sink_profile

  ids = (prefix + tokenizer.encode(PARAGRAPH))[: min(64, cfg.max_len)]
  sink_profile(params, cfg, [ids])


def _characters(tokens: int) -> int:
  # Texts of some pages are kept whole, as results of theirs were recorded.
  return max(1 << 20, limits.A_TOKEN * tokens)


def resolve_prefix(prefix: str, tokenizer: Any) -> tuple[list[int], str]:
  """The token put before every text, and why.

  Args:
    prefix: "auto" for BOS where the file says that texts begin with it,
      "none" or "" for no token, "id:N" for the token of id N, or else a token's
      text. "auto" is always our word, as the default must hold for vocabularies
      that have such a token; that token is named by its id.
    tokenizer: the model's.

  Returns:
    ([] or [id], "bos", "none" or "given").

  Raises:
    ValueError: for a token that the vocabulary does not have, and for "none" or
      a bare number where it is also a token's text, naming both readings.
  """
  token = tokenizer.token_to_id(prefix) if prefix else None
  if token is not None and (prefix == "none" or _number(prefix)):
    ours = "no token, which is --prefix= with nothing behind it"
    if prefix != "none":
      ours = f"an id, which is --prefix=id:{int(prefix)}"
    raise ValueError(
      f"--prefix={prefix} can be read in two ways: as {ours}, and as the token "
      f"with that text, which is --prefix=id:{token}"
    )
  if prefix in ("", "none") or (prefix == "auto" and not tokenizer.add_bos):
    return [], "none"
  if prefix == "auto":
    return [tokenizer.bos_id], "bos"
  if prefix.startswith("id:") and _number(prefix[3:]):
    token = int(prefix[3:])
  if token is None or token >= tokenizer.vocab_size:
    raise ValueError(
      f"--prefix={prefix}: no such token among {tokenizer.vocab_size}; use "
      "auto, none, a token's text, or id:N for the token of id N"
    )
  return [token], "bos" if token == tokenizer.bos_id else "given"


def _number(text: str) -> bool:
  # Not `isdecimal` alone, which takes the digits of every script.
  return text.isascii() and text.isdecimal()


class Encoded(NamedTuple):
  """Texts as token ids.

  Attributes:
    ids: of each text.
    prefix: why the first token is there: as `resolve_prefix` says, or
      "chat template".
    template: what the model's chat template puts before the first message of
      the first chat, `None` without a chat.
    system: the system text of the first chat, `None` without one.
    system_from: "chat" where the chat gives it, "template" where the template
      does, "" without one.
  """

  ids: list[list[int]]
  prefix: str
  template: str | None
  system: str | None = None
  system_from: str = ""

  def record(self) -> dict[str, Any]:
    """What `summary.json` says of the template; nothing without a chat."""
    if self.template is None:
      return {}
    system = {"text": self.system, "from": self.system_from}
    return {
      "chat_template": self.template,
      "chat_system": None if self.system is None else system,
    }

  def plan(self, width: int = 10) -> str:
    """The same for a dry run: lines, or "" without a chat.

    Args:
      width: of what stands before each.
    """
    if self.template is None:
      return ""
    system = "none"
    if self.system is not None:
      system = f"{self.system!r}, from the {self.system_from}"
    return (
      f"{'template':{width}}{self.template!r} before the first message\n"
      f"{'system':{width}}{system}\n"
    )


def encode(
  texts: "Sequence[str | Chat]", tokenizer: Any, prefix: str, max_tokens: int
) -> Encoded:
  """The first `max_tokens` ids of each text, the prefix counted.

  A chat is put into the template of the model's file, as in generation; the
  template brings its own first token, so --prefix does not touch it.

  Args:
    texts: texts, or chats, not both.
    tokenizer: the model's.
    prefix: of --prefix, for texts.
    max_tokens: of each.

  Raises:
    ValueError: for a text that gives fewer than two tokens, texts beside
      chats, or chats with --prefix.
    WeightsError: for chats, where the model has no template.
  """
  chats = only_chats(texts, prefix)
  template, system = None, (None, "")
  if chats:
    from sinkjax.weights.chat import encode_chats

    rendered = list(encode_chats(tokenizer, chats))
    why, template = "chat template", rendered[0].before
    rows = [one.ids for one in rendered]
    system = system_of(chats[0], tokenizer)
  else:
    first, why = resolve_prefix(prefix, tokenizer)
    rows = [first + tokenizer.encode(text) for text in texts]
  for i, row in enumerate(rows):
    # A single token has no other to attend to and predicts nothing here.
    if len(row[:max_tokens]) < 2:
      raise ValueError(f"text {i + 1} gives {len(row)} tokens; 2 are needed")
  return Encoded([row[:max_tokens] for row in rows], why, template, *system)


def only_chats(texts: "Sequence[str | Chat]", prefix: str) -> "Sequence[Chat]":
  """The chats, nothing where all are texts.

  Raises:
    ValueError: for texts beside chats, or chats with a prefix.
  """
  chats = [text for text in texts if not isinstance(text, str)]
  if chats and len(chats) < len(texts):
    raise ValueError("give texts or messages, not both in one file")
  if chats and prefix != "auto":
    raise ValueError(
      f"--prefix={prefix} goes with texts; a chat template has its own start"
    )
  return chats


def system_of(chat: "Chat", tokenizer: Any) -> tuple[str | None, str]:
  """A chat's system text and who gives it, as `Encoded` has them."""
  from sinkjax.weights.chat import own_system

  if chat[0]["role"] in ("system", "developer"):
    return chat[0]["content"], "chat"
  own = own_system(tokenizer)
  return own, "" if own is None else "template"


def need_room(flag: str, tokens: int, cfg: Any) -> None:
  """Raises ValueError for texts longer than the model's context.

  Args:
    flag: that says how long they are.
    tokens: its value.
    cfg: the model's.
  """
  if tokens > cfg.max_len:
    raise ValueError(
      f"--{flag}={tokens} is beyond the model's context of {cfg.max_len}: take "
      f"at most --{flag}={cfg.max_len}"
    )


def need_tokenizer(tokenizer: Any, model: str) -> None:
  """Raises ValueError for a model that came without one."""
  if tokenizer is None:
    raise ValueError(f"{model} has no tokenizer.json: texts cannot be encoded")


def name(tokenizer: Any, token: int) -> str:
  """A token for people: its text, its id, and whether it is BOS."""
  kind = ", BOS" if token == tokenizer.bos_id else ""
  return f"{tokenizer.token(token)!r} (id {token}{kind})"


def first_token(tokenizer: Any, token: int, prefix: str) -> dict[str, Any]:
  """What `summary.json` says of the token at position 0.

  Args:
    tokenizer: the model's.
    token: its id.
    prefix: why it is there, from `resolve_prefix`.
  """
  return {
    "id": token,
    "text": tokenizer.token(token),
    "is_bos": token == tokenizer.bos_id,
    "prefix": prefix,
  }


def describe_template(data: dict[str, Any]) -> str:
  """A line on what a chat template adds, for a report.

  Args:
    data: of `Encoded.record`.
  """
  system = data["chat_system"]
  said = "There is no system text."
  if system is not None:
    said = f"The system text, from the {system['from']}, is {system['text']!r}."
  return (
    "Chats, put into the template of the model's file, which writes "
    f"{data['chat_template']!r} before the first message. {said}"
  )


def describe_first(token: dict[str, Any]) -> str:
  """The same in words: 'Token at position 0: ...'."""
  bos = ", BOS" if token["is_bos"] else ""
  return (
    f"Token at position 0: {token['text']!r} (id {token['id']}{bos}), prefix: "
    f"{token['prefix']}."
  )
