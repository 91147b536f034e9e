"""Renders a chat template; a program of its own, which imports Jinja alone.

    python chat_sandbox.py < request.json

A template is a program by whoever made the file. It runs in Jinja's sandbox, so
that it reaches nothing but what is passed to it, and in a process with limits
of time, memory and output, so that it cannot hold up or fill its caller. The
request is `{"template", "values", "chats"}`, the answer `{"texts"}`, one a
chat, or `{"error", "chat"}` with the number of the first that failed.
"""

import datetime
import json
import sys
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Templates render in milliseconds and to some KB beyond the messages.
MAX_SECONDS = 4
MAX_BYTES = 1 << 30
MAX_TEXT = 16 << 20


class _Generation(Extension):
  """`{% generation %}`, by which transformers marks the model's own words.

  What it encloses is rendered as it stands, in a scope of its own.
  """

  tags = {"generation"}

  def parse(self, parser: Parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
  """What templates call where they cannot serve the messages."""
  raise jinja2.TemplateError(message)


def _now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  # Jinja's own filter escapes HTML, which is not what models were trained on.
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def compiled(template: str) -> jinja2.Template:
  """A template with the options of transformers.

  Raises:
    jinja2.TemplateError: for one that is no template.
  """
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", _Generation],
  )
  environment.filters["tojson"] = _to_json
  environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
  return environment.from_string(template)


def render(template: jinja2.Template, values: dict[str, Any]) -> str:
  """The text of a template.

  Raises:
    ValueError: for a text beyond `MAX_TEXT` characters; and whatever the
      template raises.
  """
  parts, size = [], 0
  for part in template.generate(**values):
    parts.append(part)
    size += len(part)
    if size > MAX_TEXT:
      raise ValueError(f"it writes more than {MAX_TEXT} characters")
  return "".join(parts)


def _limit() -> None:
  try:
    import resource
  except ImportError:  # not on Windows, where the caller's timeout remains
    return
  resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
  resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))


def main() -> None:
  """Reads the request, writes the answer."""
  request = json.load(sys.stdin)
  _limit()
  texts: list[str] = []
  try:
    template = compiled(request["template"])
    for messages in request["chats"]:
      values = request["values"] | {"messages": messages}
      texts.append(render(template, values))
    answer = {"texts": texts}
  except MemoryError:
    answer = {"error": f"it needs more than {MAX_BYTES >> 30} GiB of memory"}
  except Exception as error:  # a template can raise any kind
    answer = {"error": str(error) or type(error).__name__}
  answer["chat"] = len(texts)
  json.dump(answer, sys.stdout)


if __name__ == "__main__":
  main()
