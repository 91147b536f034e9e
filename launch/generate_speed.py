"""How fast `launch.generate` was."""

import time
from collections.abc import Iterable, Iterator


def timed(tokens: Iterable[int], times: list[float]) -> Iterator[int]:
  """Yields the tokens; `times` becomes [first's, second's, last's time, count].

  The step for one token is compiled with the second token: the tokens after it
  are free of compilation.
  """
  for count, token in enumerate(tokens, 1):
    now = time.perf_counter()
    times[:] = [
      *times[: min(count - 1, 2)],
      *[now] * (4 - min(count, 3)),
      count,
    ]
    yield token


def line(start: float, times: list[float], prompt: int) -> str:
  """The line on tokens and time, for the end."""
  if not times:
    return f"{prompt} tokens of prompt, no new ones"
  first, second, last, count = times
  text = (
    f"{prompt} tokens of prompt, first token after {first - start:.1f} s with "
    f"compilation; {count} new"
  )
  if count > 2:
    text += f", {(count - 2) / (last - second):.1f} tokens/s"
  return text
