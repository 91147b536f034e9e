"""The texts that `launch.reproduce` gives to models: the user's, or chats."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from launch import prompts
from sinkjax.experiments import BY_NAME

CHAT = flags.DEFINE_bool(
  "chat",
  False,
  "Make each text the user's message in the chat template of the model's file, "
  "as instruct models are used. For experiments on given texts.",
)
SYSTEM = flags.DEFINE_string(
  "system", None, "With --chat: the system message before each text."
)
PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file",
  None,
  'File with one {"text": "..."} or chat, {"messages": [{"role": "user", '
  '"content": "..."}, ...]}, a line: the texts of the experiments, in place of '
  "their own. All that have as many tokens as an experiment reads are read.",
)


class Given(NamedTuple):
  """What --prompts_file has.

  Attributes:
    texts: or chats.
    record: what `result.json` keeps of them.
  """

  texts: list[Any]
  record: dict[str, Any]


@functools.cache
def _given() -> Given | None:
  """Read once, so that all experiments are of the same bytes."""
  if not PROMPTS_FILE.value:
    return None
  texts = prompts.read_texts(None, PROMPTS_FILE.value)
  path = pathlib.Path(PROMPTS_FILE.value).expanduser()
  with path.open("rb") as file:
    sha = hashlib.file_digest(file, "sha256").hexdigest()
  return Given(texts, {"file": path.name, "sha256": sha, "count": len(texts)})


def check(names: Sequence[str], prefix: str) -> None:
  """Checks that --chat and --prompts_file go with all that is asked for.

  Args:
    names: of the experiments.
    prefix: of --prefix.

  Raises:
    ValueError: naming the experiments that they do not go with, for flags that
      exclude each other, or a file that cannot be read.
  """
  given = _given()
  if given is not None:
    refused = [name for name in names if not BY_NAME[name].load().given_texts]
    if refused:
      able = [name for name in BY_NAME if BY_NAME[name].load().given_texts]
      raise ValueError(
        f"--prompts_file does not go with {', '.join(refused)}, whose "
        f"sequences are made for them: --experiment={','.join(able)}"
      )
  chats = bool(given and prompts.only_chats(given.texts, prefix))
  if SYSTEM.value is not None and (chats or not CHAT.value):
    raise ValueError(
      "--system goes with --chat and texts; chats have a system message of "
      "their own"
    )
  if not CHAT.value and not chats:
    return
  if prefix != "auto":
    raise ValueError(
      f"--prefix={prefix} goes with texts; a chat template has its own start"
    )
  refused = [name for name in names if BY_NAME[name].load().chat is None]
  if refused:
    able = [name for name in BY_NAME if BY_NAME[name].load().chat is not None]
    what = "Chats of --prompts_file do" if chats else "--chat does"
    raise ValueError(
      f"{what} not go with {', '.join(refused)}: only experiments that "
      f"read given texts of one model take it: --experiment={','.join(able)}"
    )


def of_tokenizer(
  tokenizer: Any, configs: Mapping[str, Any]
) -> tuple[Any, list[str] | None]:
  """The chat template, and the texts that the user gave.

  Args:
    tokenizer: the model's.
    configs: of the experiments, by name.

  Returns:
    `UserTurn`, `GivenChats`, or `None` for texts as they stand; and texts for
    its `encode`, or `None` for the experiments' own.

  Raises:
    ValueError: for texts cut so short that little but the template is left.
    WeightsError: for a model without a template, or one that it cannot render.
  """
  from sinkjax.experiments.harness import chat_start
  from sinkjax.weights.chat import GivenChats, UserTurn

  texts = None if (given := _given()) is None else given.texts
  if texts and not isinstance(texts[0], str):
    chat: Any = GivenChats.of(tokenizer, texts)
    texts = chat.texts
  elif CHAT.value:
    chat = UserTurn.of(tokenizer, SYSTEM.value)
  else:
    return None, texts
  chat_start.check_room(
    chat,
    {name: (BY_NAME[name].load(), config) for name, config in configs.items()},
  )
  return chat, texts


def request() -> dict[str, Any]:
  """What `result.json` keeps of the flags, as another asks for another result.

  The texts are known by the bytes of their file.
  """
  kept: dict[str, Any] = {}
  if CHAT.value:
    kept["chat"] = {"system": SYSTEM.value}
  if (given := _given()) is not None:
    kept["texts"] = given.record
  return kept
