"""Pieces of Markdown that read alike on the site and in the repository."""

import inspect
import re
import textwrap
from collections.abc import Sequence

_BAR = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"(`[^`]+`)")
_MARKS = re.compile(r"([*<\[\]|])|(?<!\w)(_)|(_)(?!\w)")


def text(plain: str) -> str:
  """Plain text: only code in backticks keeps its meaning.

  >>> text("|x| > `a*b`, in [0, 1]")
  '\\\\|x\\\\| > `a*b`, in \\\\[0, 1\\\\]'
  """
  parts = _CODE.split(plain)
  for at in range(0, len(parts), 2):
    parts[at] = _MARKS.sub(lambda m: "\\" + m[0], parts[at])
  return "".join(parts)


def sentence(words: str) -> str:
  """The words as a sentence: a capital, a full stop."""
  return words[:1].upper() + words[1:].rstrip(".") + "."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table; cells are Markdown, whose bars need not be escaped."""
  lines = [header, ["---"] * len(header), *rows]
  cleaned = [[_BAR.sub(r"\\|", " ".join(c.split())) for c in r] for r in lines]
  return "".join(f"| {' | '.join(line)} |\n" for line in cleaned)


def from_docstring(docstring: str) -> str:
  """A docstring's paragraphs; indented ones are commands or formulas."""
  out = []
  for paragraph in inspect.cleandoc(docstring).split("\n\n"):
    if paragraph.startswith(" "):
      out.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
    elif paragraph.startswith("- "):
      out.append(text(paragraph))
    else:
      # A line may not begin with what Markdown takes for a list.
      out.append(text(" ".join(paragraph.split())))
  return "\n\n".join(out) + "\n"


def fields(docstring: str) -> dict[str, str]:
  """{name: meaning} of the "Attributes:" of a docstring."""
  _, _, section = inspect.cleandoc(docstring or "").partition("Attributes:\n")
  found: dict[str, str] = {}
  name = ""
  for line in section.splitlines():
    if head := re.match(r"  (\w+): (.*)", line):
      name = head[1]
      found[name] = head[2]
    elif name and line.startswith("    "):
      found[name] += f" {line.strip()}"
    else:
      break
  return found
