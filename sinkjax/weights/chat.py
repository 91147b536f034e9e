"""Messages to text, by the chat template that a model's file carries.

Templates are programs in the language of Jinja, written by whoever made the
file: they run in jinja2's sandbox, which lets them reach nothing but what is
passed to them.
"""

from collections.abc import Sequence
from typing import Any

from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError, first_line


def render_chat(
  tokenizer: Tokenizer, messages: Sequence[dict[str, str]]
) -> str:
  """The text that asks for the answer to some messages.

  Args:
    tokenizer: whose template is used.
    messages: `{"role": "system", "user" or "assistant", "content": text}`
      each, the oldest first.

  Returns:
    Text with the names of special tokens in it, for
    `encode(text, parse_special=True)`. Those that a message's content spells
    are read as special tokens, too.

  Raises:
    WeightsError: where there is no template, or it cannot be rendered.
  """
  if tokenizer.chat_template is None:
    raise WeightsError(
      "this model's file has no chat template: give a plain prompt"
    )
  import jinja2
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.globals["raise_exception"] = _refuse
  named: dict[str, Any] = {
    f"{name}_token": "" if token is None else tokenizer.token(token)
    for name, token in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
  }
  try:
    template = environment.from_string(tokenizer.chat_template)
    return template.render(
      messages=list(messages), add_generation_prompt=True, **named
    )
  except (
    jinja2.TemplateError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    raise WeightsError(
      f"the chat template cannot be rendered: {first_line(error)}"
    ) from None


def _refuse(message: str) -> None:
  """What templates call where they cannot serve the messages."""
  import jinja2

  raise jinja2.TemplateError(message)
