"""Messages to text, by the chat template that a model's file carries."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError

Chat = Sequence[dict[str, str]]
"""Messages, {"role": "user", "content": "..."} each, the oldest first."""

BATCH_CHATS, BATCH_CHARACTERS = 512, 4 << 20
"""Chats that one process renders, at most: starting it takes as long as
rendering about a hundred chats, and its limits of time and memory, which are
those of one template, must do for all of them."""


def render_chat(
  tokenizer: Tokenizer,
  messages: Chat,
  *,
  tools: Sequence[dict[str, Any]] | None = None,
) -> str:
  """The text that asks for the answer to some messages.

  As transformers' `apply_chat_template` renders it; see `chat_sandbox` for
  what a template may do.

  Args:
    tokenizer: whose template is used.
    messages: `{"role": "system", "user" or "assistant", "content": text}`
      each, the oldest first.
    tools: JSON descriptions of functions, for templates that offer them.

  Returns:
    Text with the names of special tokens in it, for
    `encode(text, parse_special=True)`. Those that a message's content spells
    are read as special tokens, too.

  Raises:
    WeightsError: where there is no template, or it cannot be rendered within
      the limits of time, memory and output.
  """
  return next(render_chats(tokenizer, [messages], tools=tools))


def render_chats(
  tokenizer: Tokenizer,
  chats: Sequence[Chat],
  *,
  tools: Sequence[dict[str, Any]] | None = None,
  answer: bool = True,
) -> Iterator[str]:
  """The texts of many chats, as `render_chat` gives them, batch by batch.

  Args:
    tokenizer: whose template is used.
    chats: messages each.
    tools: as for `render_chat`.
    answer: end with what asks for an answer; without it, the chats are
      rendered as they ended, to train on.

  Raises:
    WeightsError: as `render_chat`, with the chat's number where there are
      several.

  Cost: a process of 0.2 s for every 512 chats, and a millisecond a chat.
  """
  if tokenizer.chat_template is None:
    raise WeightsError(
      "this model's file has no chat template: give a plain prompt"
    )
  values: dict[str, Any] = {
    f"{name}_token": "" if token is None else tokenizer.token(token)
    for name, token in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
  }
  values |= {
    "tools": None if tools is None else list(tools),
    "documents": None,
    "add_generation_prompt": answer,
  }
  done = 0
  for batch in _batches(chats):
    found = _in_a_process(tokenizer.chat_template, values, batch)
    if "error" in found:
      number = done + found.get("chat", 0) + 1
      where = f"chat {number}: " if len(chats) > 1 else ""
      raise WeightsError(
        f"{where}the chat template cannot be rendered: "
        f"{_printable(found['error'])}"
      )
    yield from found["texts"]
    done += len(batch)


def _batches(chats: Sequence[Chat]) -> Iterator[list[Chat]]:
  """The chats in order, as many together as one process renders."""
  batch: list[Chat] = []
  size = 0
  for chat in chats:
    characters = sum(len(message["content"]) for message in chat)
    full = len(batch) == BATCH_CHATS or size + characters > BATCH_CHARACTERS
    if batch and full:
      yield batch
      batch, size = [], 0
    batch.append(chat)
    size += characters
  if batch:
    yield batch


class Rendered(NamedTuple):
  """A chat in the template of the model's file.

  Attributes:
    ids: of all of it.
    before: what the template puts in front of the first message's own text.
  """

  ids: list[int]
  before: str


def encode_chats(
  tokenizer: Tokenizer, chats: Sequence[Chat], **how: Any
) -> Iterator[Rendered]:
  """Chats as token ids, as generation reads them, batch by batch.

  Args:
    tokenizer: whose template is used.
    chats: messages each, at least one.
    **how: as for `render_chats`.

  Raises:
    WeightsError: as `render_chats`.
  """
  texts = render_chats(tokenizer, chats, **how)
  for chat, text in zip(chats, texts, strict=True):
    # A template spells its control tokens out, and the model knows them as
    # single ids only.
    ids = tokenizer.encode(text, parse_special=True)
    # Templates strip messages; an empty one is found nowhere.
    content = chat[0]["content"].strip()
    before = text.split(content, 1)[0] if content else ""
    yield Rendered(ids, before)


def own_system(tokenizer: Tokenizer) -> str | None:
  """The system text that a template writes where a chat has none.

  What stands before the user's message without a system message is compared
  with what stands around one that is given.

  Returns:
    `None` for a template without one, or that knows no system message.

  Raises:
    WeightsError: as `render_chats`, for one that cannot be rendered at all.
  """
  probe, said = "Xyz047", "047Xyz"
  alone = render_chat(tokenizer, messages_of(probe))
  try:
    given = render_chat(tokenizer, messages_of(probe, said))
  except WeightsError:  # templates say so of roles that they do not know
    return None
  before, found, after = given.partition(said)
  after, rest = after.rpartition(probe)[0], alone.rpartition(probe)[0]
  inside = len(rest) - len(before) - len(after)
  if not found or inside < 1:
    return None
  if not (rest.startswith(before) and rest.endswith(after)):
    return None
  return rest[len(before) : len(before) + inside]


class UserTurn(NamedTuple):
  """A model's chat template, as it stands around a user's first message.

  Attributes:
    system: the system message before it; `None` for the template's own.
    before: what comes before the message's text, system message included.
    after: what comes after it.
    ids: the tokens of `before` that are the same for every text.
  """

  system: str | None
  before: str
  after: str
  ids: list[int]

  @classmethod
  def of(cls, tokenizer: Tokenizer, system: str | None = None) -> "UserTurn":
    """Reads it off two messages that share no character.

    Raises:
      WeightsError: as `render_chats`, and for a template that loses a message.
    """
    probes = ("Xyz", "047")
    chats = [messages_of(probe, system) for probe in probes]
    texts = list(render_chats(tokenizer, chats))
    # From the right: a system message may hold the same characters.
    parts = [t.rpartition(p) for t, p in zip(texts, probes, strict=True)]
    if not all(found for _, found, _ in parts):
      raise WeightsError("the chat template leaves out the user's message")
    one, other = (tokenizer.encode(t, parse_special=True) for t in texts)
    same = [a == b for a, b in zip(one, other, strict=False)]
    before, _, after = parts[0]
    return cls(system, before, after, one[: same.index(False)])

  def encode(
    self, tokenizer: Tokenizer, texts: Sequence[str]
  ) -> list[list[int]]:
    """The ids of each text as the user's message."""
    chats = [messages_of(text, self.system) for text in texts]
    return [one.ids for one in encode_chats(tokenizer, chats)]


class GivenChats(NamedTuple):
  """Whole chats in a model's template, as `UserTurn` has single messages.

  Attributes:
    system: the system message of the first, `None` for one without.
    before: what comes before the first user's message of the first.
    ids: the tokens that all chats share there.
    texts: each chat as the template renders it, asking for an answer.
  """

  system: str | None
  before: str
  ids: list[int]
  texts: list[str]

  @classmethod
  def of(cls, tokenizer: Tokenizer, chats: Sequence[Chat]) -> "GivenChats":
    """The chats, rendered.

    Raises:
      WeightsError: as `render_chats`.
    """
    texts = list(render_chats(tokenizer, chats))
    starts = [_before_user(*both) for both in zip(chats, texts, strict=True)]
    # The end of a start may join what follows it: only tokens that the whole
    # chats have there, too, are the template's.
    rows = [tokenizer.encode(t, parse_special=True) for t in (*starts, *texts)]
    same = 0
    while all(len(row) > same and row[same] == rows[0][same] for row in rows):
      same += 1
    first = chats[0][0]
    system = first["content"] if first["role"] in SYSTEM_ROLES else None
    return cls(system, starts[0], rows[0][:same], texts)

  def encode(
    self, tokenizer: Tokenizer, texts: Sequence[str]
  ) -> list[list[int]]:
    """The ids of some of `texts`."""
    return [tokenizer.encode(text, parse_special=True) for text in texts]


def _before_user(chat: Chat, text: str) -> str:
  """What a rendered chat has in front of its first user's message."""
  at = 0
  for message in chat:
    content = message["content"].strip()  # templates strip messages
    found = text.find(content, at) if content else -1
    if message["role"] == "user":
      return text[: max(found, at)]
    at = at if found < 0 else found + len(content)
  return ""


SYSTEM_ROLES = ("system", "developer")
"""Roles whose message tells the model how to answer all that follow."""

ROLES = (
  "system",
  "developer",
  "user",
  "assistant",
  "tool",
  "function",
  "ipython",
)
"""Who speaks in published templates. Many write whatever name they are given,
so that a misspelt one would pass unseen."""


def not_a_chat(value: Any) -> str | None:
  """Why a value of JSON is no list of messages; `None` for one that is."""
  if not isinstance(value, list) or not value:
    return "messages must be a list of at least one"
  for message in value:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
      return "a message must have a role and a content, and nothing else"
    if not all(isinstance(part, str) for part in message.values()):
      return "role and content of a message must be text"
    if message["role"] not in ROLES:
      return f"role {message['role'][:40]!r} is none of {', '.join(ROLES)}"
  return None


def messages_of(user: str, system: str | None = None) -> Chat:
  """A user's message, behind a system message where there is one."""
  both = (("system", system), ("user", user))
  return [{"role": r, "content": c} for r, c in both if c is not None]


def _in_a_process(
  template: str, values: dict[str, Any], chats: Sequence[Chat]
) -> dict[str, Any]:
  # It imports Jinja, which only those need who render a chat.
  from sinkjax.weights import chat_sandbox

  request = json.dumps(
    {"template": template, "values": values, "chats": list(map(list, chats))}
  )
  slow = {"error": f"it takes more than {chat_sandbox.MAX_SECONDS} seconds"}
  try:
    ran = subprocess.run(
      [sys.executable, "-I", chat_sandbox.__file__],
      input=request.encode(),
      capture_output=True,
      check=False,
      # The process limits its own time; this is for where it cannot.
      timeout=chat_sandbox.MAX_SECONDS + 4,
    )
  except subprocess.TimeoutExpired:
    return slow
  if ran.returncode < 0:
    return slow
  try:
    return json.loads(ran.stdout)
  except ValueError:
    lines = ran.stderr.decode("utf-8", "replace").strip().splitlines()
    return {"error": lines[-1] if lines else "its process ended"}


def _printable(text: str) -> str:
  """One line without control characters, which would reach the terminal."""
  line = text.strip().split("\n")[0][:200]
  return "".join(c if c.isprintable() else "\ufffd" for c in line)
