"""Each promise names the test that fails when it is broken; flags exist."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text("utf-8")
NAMED = re.findall(r"^ *`(tests/[^`]+)`$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", NAMED)
def test_the_test_of_a_promise_exists(name):
  path, _, function = name.partition("::")
  tree = ast.parse((ROOT / path).read_text("utf-8"))
  functions = {
    node.name for node in tree.body if isinstance(node, ast.FunctionDef)
  }
  assert any(one.startswith("test_") for one in functions)
  assert not function or function in functions


def test_every_promise_has_a_test():
  promises = re.findall(r"^- .*?(?=^- |^#|\Z|^\n)", PAGE, re.MULTILINE | re.S)
  assert len(promises) >= 40
  for promise in promises:
    assert re.search(r"`tests/[^`]+`", promise), promise
  assert len(NAMED) == len(promises)


def test_the_index_leads_to_it():
  index = (ROOT / "docs" / "index.md").read_text("utf-8")
  assert "(promises.md)" in index and "\npromises\n" in index


OTHERS = {
  # Of absl, pip, and the programs that scripts start.
  "help", "helpfull", "dest", "quiet", "timeout", "retries", "name",
  # Of git.
  "porcelain", "short",
}  # fmt: skip


def flags_of_launchers():
  """Every flag that a launcher defines, and those that are on in parts."""
  found = set()
  for path in (ROOT / "launch").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("DEFINE_")
        and isinstance(node.args[0], ast.Constant)
      ):
        found.add(node.args[0].value)
  return found | {"config"}


def messages():
  """(place, text) of every string in the package that is no docstring."""
  for folder in ("sinkjax", "launch"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      tree = ast.parse(path.read_text("utf-8"))
      bare = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
      }
      for node in ast.walk(tree):
        if (
          isinstance(node, ast.Constant)
          and isinstance(node.value, str)
          and id(node) not in bare
        ):
          yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def test_every_flag_that_a_message_names_exists():
  known, wrong, seen = flags_of_launchers() | OTHERS, [], 0
  for place, text in messages():
    for flag in re.findall(r"(?<![\w-])--([a-z][a-z_0-9]*)(?![\w-])", text):
      seen += 1
      if flag not in known and flag.removeprefix("no") not in known:
        wrong.append(f"{place}: --{flag}")
  assert seen > 100 and not wrong, wrong
