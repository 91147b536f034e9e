"""--columns: the source tokens whose columns of a map are computed."""

import re

from absl import flags

COLUMNS = flags.DEFINE_string(
  "columns",
  None,
  "Source tokens whose columns alone are computed, for texts whose whole map "
  "would take too long: positions and ranges, as in 0,1,100-107,-1, where "
  "negative ones count from the end.",
)


def given(length: int) -> list[int] | None:
  """The positions that the flag names, in order; `None` for all.

  Args:
    length: T of the text.

  Raises:
    ValueError: for anything but positions of the text, none of them twice.
  """
  return None if COLUMNS.value is None else parse(COLUMNS.value, length)


def check(method: str, bounds: bool) -> None:
  """Refuses what needs the whole map.

  Raises:
    ValueError: for estimates, which are of all columns, and for bounds.
  """
  if COLUMNS.value is None:
    return
  if method == "hutchinson":
    raise ValueError(
      "--columns chooses columns of exact maps; --method=hutchinson estimates "
      "all of them together: leave out one of the two"
    )
  if bounds:
    raise ValueError(
      "--bounds stand beside the whole map: leave out --columns or --bounds"
    )


def parse(text: str, length: int) -> list[int]:
  """The positions that a text like "0,1,100-107,-1" names, in order.

  >>> parse("5-7,0,-1", 10)
  [0, 5, 6, 7, 9]
  """
  chosen = []
  for part in text.split(","):
    found = re.fullmatch(
      r"\s*(?:(\d{1,9})-(\d{1,9})|(-?\d{1,9}))\s*", part, re.ASCII
    )
    if found is None:
      raise ValueError(
        f"--columns={text!r}: {part.strip()!r} is neither a position nor a "
        "range; write them as in 0,1,100-107,-1"
      )
    first, last, one = found.groups()
    ends = (one, one) if one is not None else (first, last)
    first, last = (int(x) + length * (x[0] == "-") for x in ends)
    # Before the list is made: a range may be of any size.
    if not 0 <= first <= last < length:
      raise ValueError(
        f"--columns={text!r}: {part.strip()} is not within the {length} tokens "
        "of the text; ranges go from the smaller to the larger position"
      )
    chosen += range(first, last + 1)
  if len(set(chosen)) != len(chosen):
    raise ValueError(f"--columns={text!r} names a token twice")
  return sorted(chosen)
