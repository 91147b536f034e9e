"""Counts the steps of a measurement for its progress bar."""

import contextlib
from collections.abc import Callable, Iterator
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
    """Counts `count` steps more; none is no news."""
    if not count:
      return
    self._done += count
    self._progress(self._done, self._total)

  @contextlib.contextmanager
  def of(self, count: int) -> Iterator[None]:
    """Counts, after what is inside, the rest of its `count` steps.

    A part that an earlier run kept is read at once, and takes none.
    """
    end = self._done + count
    yield
    self(end - self._done)
