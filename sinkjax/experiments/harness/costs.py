"""How long each recorded experiment took, for a plan.

The times are in `costs.json`, which docs/generate.py writes. They are of one
machine each, and say of another model only that time grows at least with the
number of parameters.
"""

import functools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

FILE = pathlib.Path(__file__).with_name("costs.json")


def costs(
  runs: Iterable[tuple[str, str, float, str]],
) -> dict[str, dict[str, dict[str, Any]]]:
  """{experiment: {subject: seconds, device}} of recorded runs.

  Args:
    runs: (experiment, model or scale, seconds, device). Of several on one
      subject the longest counts.

  >>> costs([("lens", "a", 12.3, "CPU"), ("lens", "a", 10.0, "CPU")])
  {'lens': {'a': {'seconds': 12, 'device': 'CPU'}}}
  """
  found: dict[str, dict[str, dict[str, Any]]] = {}
  for name, subject, seconds, device in sorted(runs, key=lambda run: run[2]):
    one = {"seconds": round(seconds), "device": device}
    found.setdefault(name, {})[subject] = one
  return {name: dict(sorted(found[name].items())) for name in sorted(found)}


@functools.cache
def _recorded() -> dict[str, dict[str, dict[str, Any]]]:
  return json.loads(FILE.read_text("utf-8"))


def plan(name: str, scale: str | None = None) -> list[str]:
  """Lines for --dry_run: what an experiment took where it was recorded.

  Args:
    name: of the experiment.
    scale: of one that trains its own models: its times at this scale alone.
  """
  known = _recorded().get(name, {})
  if scale is not None:
    known = {k: x for k, x in known.items() if k == f"{scale} scale"}
  return [
    f"time: took {_duration(one['seconds'])} on {subject} "
    f"({one['device']}) when it was recorded"
    for subject, one in known.items()
  ]


def _duration(seconds: float) -> str:
  """As in '45 s', '7 min' or '3.2 h'."""
  if seconds < 120:
    return f"{seconds:.0f} s"
  if seconds < 7200:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.1f} h"
