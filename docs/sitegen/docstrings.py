"""The project's docstrings as the reStructuredText that Sphinx expects.

Docstrings are written to be read in a terminal: `code` in single backticks,
formulas and commands indented after an empty line, tensors as |x| or *B. Each
of these means something else in reStructuredText.
"""

import functools
import re
from typing import Any

_CODE = re.compile(r"(?<![`\w])`([^`]+)`(?!`)")
_MARKS = re.compile(r"(?<!\\)([*|])|(?<=\w)(_)(?=\W|$)")
# "T." alone would begin a numbered list, as "a." does.
_LETTER = re.compile(r"(?m)(^\s*|: )(?=\w\.(\s|$))")
_ARRAY = re.compile(r"\b\w+(\.\w+)*\.Array\b")


def inline(text: str) -> str:
  """Running text: code as literals, all else as it is read.

  >>> inline("the `k`th of |x| > *B")
  'the ``k``\\\\ th of \\\\|x\\\\| > \\\\*B'
  """
  parts = _CODE.split(text)
  for at in range(0, len(parts), 2):
    parts[at] = _MARKS.sub(lambda m: "\\" + m[0], parts[at])
    parts[at] = _LETTER.sub(r"\1\\", parts[at])
  for at in range(1, len(parts), 2):
    # A literal ends at a space; an escaped one is not seen.
    glued = re.match(r"\w", parts[at + 1])
    parts[at] = f"``{parts[at]}``" + ("\\ " if glued else "")
  return "".join(parts)


def _paragraphs(lines: list[str]) -> list[list[str]]:
  """Runs of lines without an empty one between them."""
  found: list[list[str]] = [[]]
  for line in lines:
    if line.strip():
      found[-1].append(line)
    elif found[-1]:
      found.append([])
  return [one for one in found if one]


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())


def converted(lines: list[str]) -> list[str]:
  """The lines of a docstring, with indented paragraphs as literal blocks.

  A paragraph that is indented more than the one above it is a formula, a
  command or a table; what a section such as "Args:" holds follows its head
  without an empty line.

  >>> converted(["A rate of `eps`:", "", "    |x| > 1", "", "Done."])
  ['A rate of ``eps``:', '', '::', '', '    |x| > 1', '', 'Done.', '']
  """
  out: list[str] = []
  above, block = None, None
  for paragraph in _paragraphs(lines):
    indent = _indent(paragraph[0])
    if block is not None and indent < block:
      block = None
    if block is None and above is not None and indent > above:
      out += [" " * above + "::", ""]
      block = indent
    if block is None:
      above = min(indent, _indent(paragraph[-1]))
      if not paragraph[0].lstrip().startswith(">>>"):
        paragraph = inline("\n".join(paragraph)).split("\n")
    out += [*paragraph, ""]
  return out


def to_rst(
  app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
  """Sphinx's event: `lines` are changed in place."""
  lines[:] = converted(lines)


def short_signature(
  app: Any,
  what: str,
  name: str,
  obj: Any,
  options: Any,
  signature: str | None,
  returns: str | None,
) -> tuple[str | None, str | None]:
  """Sphinx's event: an array's type is Array, wherever jax defines it."""
  shorten = functools.partial(_ARRAY.sub, "Array")
  return signature and shorten(signature), returns and shorten(returns)


def skip_alias(
  app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
  """Sphinx's event: a named tuple's fields are described in its docstring."""
  return True if type(obj).__name__ == "_tuplegetter" else None
