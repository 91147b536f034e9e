"""Which values of a parametrised test run where."""

from collections.abc import Iterable

import pytest


def quick(names: Iterable, *kept, others: str = "slow") -> list:
  """Values of which only these are not marked.

  Args:
    names: all values; those that are marked already stay as they are.
    kept: those that stay as they are.
    others: the mark of the rest: "slow", or "thorough" for the gate.
  """
  mark = getattr(pytest.mark, others)
  marked = type(pytest.param())
  return [
    name
    if isinstance(name, marked) or name in kept
    else pytest.param(name, marks=mark)
    for name in names
  ]
