"""Counts the steps of a measurement for its progress bar."""

from collections.abc import Callable
from typing import Any


class Steps:
  """Calls `progress(steps done, steps in all)` after each step.

  >>> step = Steps(lambda *at: print(*at), 5)
  >>> step()
  1 5
  >>> step(3)
  4 5
  """

  def __init__(self, progress: Callable[[int, int], Any], total: int):
    self._progress, self._total, self._done = progress, total, 0

  def __call__(self, count: int = 1) -> None:
    """Counts `count` steps more."""
    self._done += count
    self._progress(self._done, self._total)
