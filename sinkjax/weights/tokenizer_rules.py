"""What the rules of a `tokenizer.json` may ask for.

The library applies them without bounds: twenty-five replacements of a letter by
two make a gigabyte of thirty letters, and where memory ends the whole process
does.
"""

import time
from collections.abc import Iterator
from typing import Any

import tokenizers

MAX_RULES = 256
"""Steps of a normaliser, pre-tokenizer or decoder: published ones have ten."""

MAX_GROWTH = 256
"""Times that all steps together may lengthen a text. A space that becomes "▁"
keeps its length; those that spell characters out add some."""


SECONDS, A_CHARACTER = 2.0, 2e-5
"""Seconds that a text may take to encode, and for each character of it: the
rules of published tokenizers take a microsecond."""


def require_speed(backend: tokenizers.Tokenizer, text: str) -> None:
  """Refuses rules that would take hours for a long text.

  Nothing can stop the library once it has begun: an expression may try every
  way to cut a run of letters, and others take the square of a text. So the
  beginning is encoded first, then eight times as much, as long as that does
  not promise to take too long. It costs a seventh of the time of a text.

  Raises:
    ValueError: for such rules.
  """
  size, before = 16, 0.0
  while (after := 8 * size) < len(text):
    for again in (True, False):  # an expression is compiled at its first use
      start = time.process_time()
      backend.encode(text[:size], add_special_tokens=False)
      seconds = time.process_time() - start
      # As from the last to this: eight times, or up to the cube of that.
      growth = min(max(8, seconds / before if before else 8), 512)
      if growth * seconds < SECONDS + A_CHARACTER * after:
        break
      if not again:
        raise ValueError(
          f"they take {seconds:.2g} s for its first {size} characters"
        )
    size, before = after, seconds


def refusal(data: Any) -> str | None:
  """Why such rules are not used, `None` if they are.

  Args:
    data: of a `tokenizer.json`, of any form.
  """
  if not isinstance(data, dict):
    return None
  for name in ("normalizer", "pre_tokenizer", "decoder"):
    growth = 1.0
    for number, step in enumerate(_steps(data.get(name))):
      if number >= MAX_RULES:
        return f"its {name} has more than {MAX_RULES} steps"
      growth *= _growth(step)
      if growth > MAX_GROWTH:
        return f"its {name} makes a text {growth:.3g} times as long"
  return None


def _steps(part: Any) -> Iterator[dict[str, Any]]:
  """The objects in a part, to any depth, without recursion."""
  left = [part]
  while left:
    found = left.pop()
    if isinstance(found, dict):
      yield found
      left += found.values()
    elif isinstance(found, list):
      left += found


def _growth(step: dict[str, Any]) -> float:
  """How many times as long a text may become by one step, at most."""
  content = step.get("content", step.get("prepend"))
  if not isinstance(content, str):
    return 1.0
  pattern = step.get("pattern")
  text = pattern.get("String") if isinstance(pattern, dict) else None
  if isinstance(text, str) and text:
    return max(1.0, len(content) / len(text))
  # An expression may match nothing, between any two characters.
  return 1.0 + len(content)
