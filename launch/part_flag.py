"""--part=i/n: a share of a map's columns, computed by a process of its own.

Part i of n has the columns i - 1, i - 1 + n, ...: those of early tokens, which
reach more targets, cost more, so that every part gets as many of them. It keeps
them in a folder of its own in --out; the same command without --part takes
them over. Of processes that know each other, each has the part of its number.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import flags

from launch import process_flags
from sinkjax import outputs

PART = flags.DEFINE_string(
  "part",
  None,
  "i/n: compute the i-th of n shares of the columns alone, for instance 2/8 in "
  "the second of eight processes; the same command without --part then joins "
  "them and writes the report.",
)


LEFT = "the columns that are complete are kept"
"""What parts that end early leave."""


class Part(NamedTuple):
  """Part `number` of `count`, from 1."""

  number: int
  count: int

  def wanted(self, length: int) -> np.ndarray:
    """[T] bool, the columns of this part.

    >>> Part(2, 3).wanted(5).tolist()
    [False, True, False, False, True]
    """
    return np.arange(length) % self.count == self.number - 1

  def folder(self, out: pathlib.Path) -> pathlib.Path:
    """Where its columns are kept."""
    return out / f"part-{self.number}-of-{self.count}"


def check(method: str) -> None:
  """Refuses what cannot be shared out.

  Raises:
    ValueError: for a method that does not go column by column, or --part beside
      the flags of several processes.
  """
  several = process_flags.asked()
  if PART.value is not None and several:
    raise ValueError(
      "--distributed, or --coordinator, --processes and --process, give each "
      "process its part: leave out --part"
    )
  if method == "hutchinson" and (PART.value is not None or several):
    flag = "--part" if PART.value is not None else "a run of several processes"
    raise ValueError(
      f"{flag} shares out the columns of exact maps; --method=hutchinson "
      "estimates all of them together: leave out one of the two"
    )


def given(tokens: int) -> Part | None:
  """The part that the flag or the number of this process names.

  Args:
    tokens: of the map.

  Raises:
    ValueError: for anything but i/n with i from 1 to n, n at most `tokens`.
  """
  text = PART.value
  if text is None:
    if not process_flags.asked():
      return None
    import jax

    # Before they have joined, to count processes would take devices alone.
    if not jax.distributed.is_initialized():
      return None
    count = jax.process_count()
    text = f"{jax.process_index() + 1}/{count}"
  found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
  part = Part(*map(int, found.groups())) if found else None
  if part is None or not 1 <= part.number <= part.count <= tokens:
    raise ValueError(
      f"--part={text} is no part: it is written i/n, i from 1 to n, and n is "
      f"at most the number of tokens, {tokens}"
    )
  return part


@contextlib.contextmanager
def all_of(out: pathlib.Path) -> Iterator[list[pathlib.Path]]:
  """The folders of all parts in `out`, held; they are gone afterwards.

  They stay if what is inside fails.

  Raises:
    ValueError: while a part is being computed.
  """
  folders = sorted(out.glob("part-*-of-*/"))
  with contextlib.ExitStack() as held:
    for folder in folders:
      # What a part has kept stays where the joining fails.
      held.enter_context(outputs.alone(folder, keeps=lambda path: True))
    yield folders
    for folder in folders:
      outputs.clear(folder)
  for folder in folders:
    with contextlib.suppress(OSError):
      folder.rmdir()
