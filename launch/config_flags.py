"""--config=FILE and --config.FIELD=VALUE, by the types of dataclasses' fields.

A config file is Python whose `get_config()` returns the fields, as a ConfigDict
or a dictionary; with --config=FILE:TEXT it is called with the text. Every field
can be given on the command line, whether the file has it or not, and a value of
the wrong type is refused, in the file too.
"""

import ast
import contextlib
import dataclasses
import difflib
import re
import runpy
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch import flag_values
from sinkjax import limits

FIELD = re.compile(r"--?(no)?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
NAMES = {int: "an integer", float: "a number", bool: "true or false"}
NAMES |= {str: "text", type(None): "none"}


def split(words: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Takes the fields out of a command line.

  Args:
    words: of the command line.

  Returns:
    The other words, and (field, text) of each that sets a field. As for other
    flags, a field without a value is true, and one after "no" false.

  >>> split(["x", "--config=f.py", "--config.a.b=2", "--noconfig.c"])
  (['x', '--config=f.py'], [('a.b', '2'), ('c', 'false')])
  """
  others, given = [], []
  for word in words:
    if not (match := FIELD.fullmatch(word)):
      others.append(word)
      continue
    no, name, text = match.groups()
    if text is None:
      text = "false" if no else "true"
    given.append((name, text))
  return others, given


def read(
  path: str | None, given: Sequence[tuple[str, str]], declared: Any
) -> dict[str, Any]:
  """The fields of a config file, with those of the command line put in.

  Args:
    path: FILE or FILE:TEXT, or `None` for no file.
    given: as `split` returns them; later ones win.
    declared: a dataclass, or a mapping from names to dataclasses and types.

  Raises:
    ValueError: for a file that cannot be read, a field that does not exist, or
      a value of the wrong type.
  """
  values = _convert(load(path) if path else {}, declared, "")
  for name, text in given:
    _put(values, name, text, declared)
  return values


def load(path: str) -> dict[str, Any]:
  """What `get_config` of a file returns, as plain dictionaries.

  Raises:
    ValueError: if there is no such file, or it has no `get_config`.
  """
  file, _, argument = path.partition(":")
  try:
    limits.regular(file)
    get_config = runpy.run_path(file).get("get_config")
    if get_config is None:
      raise ValueError("it has no function get_config")
    found = get_config(argument) if argument else get_config()
    return found.to_dict() if hasattr(found, "to_dict") else dict(found)
  except (Exception, SystemExit) as error:  # it is a program
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(f"--config={path}: {kind}{error}") from error


def types_of(declared: Any) -> Mapping[str, Any]:
  """{field: its type} of a dataclass; a mapping is returned as it is."""
  if isinstance(declared, Mapping):
    return declared
  hints = typing.get_type_hints(declared)
  return {
    field.name: hints[field.name] for field in dataclasses.fields(declared)
  }


def _put(
  values: dict[str, Any], name: str, text: str, declared: Any, prefix: str = ""
) -> None:
  """Sets one field; a part of the config that was none is made for it."""
  head, _, rest = name.partition(".")
  kind = _type_of(declared, head, prefix)
  if rest:
    part = values.get(head) or {}
    _put(part, rest, text, kind, f"{prefix}{head}.")
    values[head] = part
  else:
    values[head] = _convert(_parsed(text, kind), kind, prefix + head)


def _type_of(declared: Any, name: str, prefix: str) -> Any:
  """The type of a field.

  Raises:
    ValueError: if there is no such field.
  """
  parts = [kind for kind in _alternatives(declared) if _has_fields(kind)]
  fields = types_of(parts[0]) if parts else {}
  if name in fields:
    return fields[name]
  near = difflib.get_close_matches(name, fields, 1) or sorted(fields)
  hint = f"; there is {', '.join(near)}" if fields else ""
  raise ValueError(f"--config has no field {prefix + name!r}{hint}")


def _has_fields(kind: Any) -> bool:
  return isinstance(kind, Mapping) or dataclasses.is_dataclass(kind)


def _alternatives(kind: Any) -> tuple[Any, ...]:
  """The types of a union, or the type itself."""
  if typing.get_origin(kind) in (typing.Union, types.UnionType):
    return typing.get_args(kind)
  return (kind,)


def _parsed(text: str, kind: Any) -> Any:
  """What text on the command line stands for: a Python value, or itself."""
  kinds = _alternatives(kind)
  # Before the test for text: in a field of text or none, "none" means none.
  if type(None) in kinds and text.lower() == "none":
    return None
  # Text is not evaluated: a name such as "1e5" must stay a name.
  if str in kinds:
    return text
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  # Of what is no literal, or one that Python itself cannot make: {[]: 1}.
  with contextlib.suppress(
    ValueError, SyntaxError, TypeError, MemoryError, RecursionError
  ):
    return ast.literal_eval(text)
  # One path or name for a field that has several need not be quoted.
  several = any(typing.get_args(k)[:1] == (str,) for k in kinds)
  return (text,) if several else text


def _convert(value: Any, kind: Any, name: str) -> Any:
  """A value as its field holds it: integers as numbers, lists as tuples.

  Raises:
    ValueError: naming the field, what was given and what is expected.
  """
  for one in _alternatives(kind):
    # A TypeError says that this alternative of a union does not fit. A
    # ValueError names a wrong field further down and must get through.
    with contextlib.suppress(TypeError):
      return _as(value, one, name)
  raise ValueError(
    f"--config.{name} must be {_words(kind)}, got {_shown(value)}"
  )


def _shown(value: Any) -> str:
  """The beginning of a value, whatever it is."""
  try:
    return f"{value!r:.80}"
  except (ValueError, RecursionError):  # of more digits than Python writes
    return f"a {type(value).__name__} too large to show"


def _as(value: Any, kind: Any, name: str) -> Any:
  """Like `_convert`, for one type; TypeError if the value is of another."""
  if kind is Any:
    return value
  if _has_fields(kind):
    if not isinstance(value, Mapping):
      raise TypeError
    prefix = f"{name}." if name else ""
    return {
      key: _convert(item, _type_of(kind, key, prefix), prefix + key)
      for key, item in value.items()
    }
  if typing.get_origin(kind) is tuple:
    if not isinstance(value, list | tuple):
      raise TypeError
    items = typing.get_args(kind)
    if items[-1] is ...:
      items = items[:1] * len(value)
    if len(items) != len(value):
      raise TypeError
    return tuple(_as(x, k, name) for x, k in zip(value, items, strict=True))
  if isinstance(value, bool) and kind is not bool:  # a bool is an int
    raise TypeError
  if kind is float and isinstance(value, int):
    try:
      return float(value)
    except OverflowError:
      raise TypeError from None
  if not isinstance(value, kind):
    raise TypeError
  if kind is int and abs(value) > flag_values.LARGEST:
    raise TypeError
  return value


def _words(kind: Any) -> str:
  """A type in words, as an error tells it."""
  if len(kinds := _alternatives(kind)) > 1:
    return " or ".join(map(_words, kinds))
  if typing.get_origin(kind) is tuple:
    items = typing.get_args(kind)
    if items[-1] is ...:
      return f"a tuple, each of it {_words(items[0])}"
    return f"a tuple of {' and '.join(map(_words, items))}"
  if _has_fields(kind):
    return "a dictionary of fields"
  return NAMES.get(kind, str(kind))
