"""What stands before texts that are messages in a chat template."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import Experiment, Subject
from sinkjax.weights.chat import GivenChats, UserTurn, own_system

ROOM = 8
"""Tokens of its own that each text has at least: by so many, texts that begin
alike are told from others."""


def check_room(
  chat: UserTurn | GivenChats, experiments: Mapping[str, tuple[Experiment, Any]]
) -> None:
  """That every text has tokens of its own after the template's.

  Args:
    chat: the model's template.
    experiments: (experiment, config) by name.

  Raises:
    ValueError: naming the first whose texts are cut too short.
  """
  least = len(chat.ids) + ROOM
  for name, (experiment, config) in experiments.items():
    tokens = experiment.chat(config)
    if tokens < least:
      raise ValueError(
        f"--chat: the template writes {len(chat.ids)} tokens before each text, "
        f"and {name} cuts texts to {tokens} tokens; {least} at least are "
        f"needed: set --config.{name}'s numbers of tokens"
      )


def record(subject: Subject) -> dict[str, Any]:
  """What `result.json` says of the template, `subject.chat` being given."""
  chat, tokenizer = subject.chat, subject.tokenizer
  first = subject.encode(_some(subject))[0][0]
  bos = tokenizer.bos_id
  return {
    "before": chat.before,
    # Whole chats have messages and roles of their own behind it.
    "after": chat.after if isinstance(chat, UserTurn) else None,
    "tokens": len(chat.ids),
    "system": chat.system,
    "template_system": own_system(tokenizer) if chat.system is None else None,
    "first_token": {
      "id": first,
      "text": tokenizer.token(first),
      "is_bos": first == bos,
    },
    "bos_positions": [i for i, token in enumerate(chat.ids) if token == bos],
  }


def _some(subject: Subject) -> list[str]:
  """A text that stands for all, which begin alike."""
  return list(subject.texts or ["."])[:1]


def describe(found: Mapping[str, Any]) -> str:
  """The same in words, for the report."""
  first, places = found["first_token"], found["bos_positions"]
  bos = "The template writes no BOS."
  if places:
    word = "position" if len(places) == 1 else "positions"
    bos = f"BOS stands at {word} {', '.join(map(str, places))}."
  chats = found["after"] is None
  system = ""
  if found["system"] is not None:
    whose = "The first chat's" if chats else "The"
    system = f" {whose} system message is {found['system']!r}."
  elif found.get("template_system"):  # older results do not have it
    system = f" Its own system text is {found['template_system']!r}."
  what = "a chat" if chats else "the user's message"
  after = "" if chats else f" and {found['after']!r} after it"
  count = found["tokens"]
  shared = "no tokens that all texts share"
  if count:
    shared = (
      f"{count} tokens at positions 0 to {count - 1} that all texts share"
    )
  return (
    f"Each text is {what} in the chat template of the model's file. The "
    f"template writes {found['before']!r} before the user's first message"
    f"{after}, with {shared}.{system} Token at position 0: {first['text']!r} "
    f"(id {first['id']}). {bos}"
  )
