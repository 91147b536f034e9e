"""What holds for the value of every flag, whatever it is for.

A flag that is given without a value, as `--text_file=$FILE` is where the
variable is not set, must not be taken for one that was left out: the built-in
text would be measured in place of the user's.
"""

import math
from typing import Any

from absl import flags

MAY_BE_EMPTY = frozenset(["prefix", "prompt", "system"])
"""Whose empty text says something: no token, no prompt, an empty message."""

LARGEST = 1 << 53
"""Beyond this, estimates of time and memory, which are floats, miscount."""


def check(values: flags.FlagValues = flags.FLAGS) -> None:
  """Refuses empty texts, numbers that are not finite, and absurd integers.

  Args:
    values: the flags of a command line, parsed.

  Raises:
    ValueError: naming the flag.
  """
  for module, some in values.flags_by_module_dict().items():
    if module.partition(".")[0] == "absl":
      continue
    for flag in some:
      # Defaults are ours.
      wrong = _wrong(flag.name, flag.value) if flag.present else None
      if wrong:
        raise ValueError(wrong)


def _wrong(name: str, value: Any) -> str | None:
  """What is wrong with a value, `None` for nothing."""
  if isinstance(value, list):
    if not value:
      return f"--{name}= is empty: give a value, or leave the flag out"
    return next(filter(None, (_wrong(name, item) for item in value)), None)
  if isinstance(value, str) and not value.strip() and name not in MAY_BE_EMPTY:
    return f"--{name}={value} is empty: give a value, or leave the flag out"
  if isinstance(value, float) and not math.isfinite(value):
    return f"--{name}={value} is no finite number"
  if isinstance(value, int) and abs(value) > LARGEST:
    # More digits than a float's may not be shown with an exponent.
    shown = f"{value:.3g}" if abs(value) < 1 << 999 else f"{str(value):.9}..."
    return f"--{name}={shown} is beyond {LARGEST}, more than anything here"
  return None
