"""Messages to text, by the chat template that a model's file carries."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from sinkjax.weights import chat_sandbox
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError


def render_chat(
  tokenizer: Tokenizer,
  messages: Sequence[dict[str, str]],
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
  if tokenizer.chat_template is None:
    raise WeightsError(
      "this model's file has no chat template: give a plain prompt"
    )
  values: dict[str, Any] = {
    f"{name}_token": "" if token is None else tokenizer.token(token)
    for name, token in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
  }
  values |= {
    "messages": list(messages),
    "tools": None if tools is None else list(tools),
    "documents": None,
    "add_generation_prompt": True,
  }
  answer = _in_a_process(tokenizer.chat_template, values)
  if "error" in answer:
    raise WeightsError(
      f"the chat template cannot be rendered: {_printable(answer['error'])}"
    )
  return answer["text"]


def _in_a_process(template: str, values: dict[str, Any]) -> dict[str, str]:
  request = json.dumps({"template": template, "values": values})
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
