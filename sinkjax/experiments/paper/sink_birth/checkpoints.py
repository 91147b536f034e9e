"""Which checkpoints are meant, their steps, and a training run's records."""

import csv
import dataclasses
import pathlib
import re

import numpy as np

BRACES = re.compile(r"\{([^{}]*)\}")
STEP = re.compile(r"step[-_=]?(\d+)", re.IGNORECASE)
NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    checkpoints: names or paths, as `--model` takes them, oldest first; a part
      in braces, as in `name@step{0,512,4000}`, stands for several. The given
      model comes after them.
    history: the folder of a training run, with its probe.csv; "" for none.
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts.
  """

  checkpoints: tuple[str, ...] = ()
  history: str = ""
  count: int = 2
  tokens: int = 64
  eps: float = 0.3
  seed: int = 0

  def __post_init__(self):
    given = self.checkpoints
    names = (given,) if isinstance(given, str) else given
    # Written out here, so that the record has every name, and its bytes.
    object.__setattr__(
      self, "checkpoints", tuple(one for name in names for one in expand(name))
    )


def expand(name: str) -> list[str]:
  """The names that one with braces stands for.

  >>> expand("hf:org/name@step{0,16}")
  ['hf:org/name@step0', 'hf:org/name@step16']
  >>> expand("folder")
  ['folder']
  """
  found = BRACES.search(name)
  if found is None:
    return [name] if name else []
  start, end = found.span()
  return [
    whole
    for part in found[1].split(",")
    for whole in expand(name[:start] + part.strip() + name[end:])
  ]


def step_of(name: str) -> int:
  """The step of a checkpoint, from its name.

  Raises:
    ValueError: for a name without a number.

  >>> step_of("hf:org/pythia-160m@step4000"), step_of("run/checkpoints/120")
  (4000, 120)
  """
  if found := STEP.findall(name):
    return int(found[-1])
  if found := NUMBER.findall(name):
    return int(found[-1])
  raise ValueError(
    f"{name!r} has no number in its name, from which its step could be read: "
    "rename its folder, as in run/step4000"
  )


def steps_of(names: list[str]) -> list[int]:
  """The steps of all, which must increase.

  Raises:
    ValueError: for steps that do not.
  """
  steps = [step_of(name) for name in names]
  if any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
    raise ValueError(
      "checkpoints must be given oldest first, the model after them; their "
      f"names have steps {steps}"
    )
  return steps


COLUMNS = {
  "rate": "sink_rate_{eps:g}",
  "value": "value_ratio",
  "massive": "massive_ratio",
  "entropy": "entropy_share",
}
"""Columns of a run's probe.csv that hold what is measured here."""


def read_history(folder: str, eps: float) -> dict[str, np.ndarray]:
  """{"steps" [K], each quantity [K]} of a training run, and its losses.

  Args:
    folder: with probe.csv and eval.csv.
    eps: of the sink rate, one of those that were recorded.

  Raises:
    ValueError: for a folder that has no such files or columns.
  """
  path = pathlib.Path(folder).expanduser()
  probe = _columns(path / "probe.csv")
  found = {"steps": probe["step"]}
  for name, column in COLUMNS.items():
    column = column.format(eps=eps)
    if column not in probe:
      raise ValueError(
        f"{path / 'probe.csv'} has no column {column}; it has "
        f"{', '.join(sorted(probe))}"
      )
    found[name] = probe[column]
  losses = _columns(path / "eval.csv")
  return found | {"loss steps": losses["step"], "loss": losses["loss"]}


def _columns(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise ValueError(
      f"{path} is not there: history must be the folder of a run of "
      "launch.train, with probe.csv and eval.csv"
    )
  with path.open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  names = rows[0] if rows else {}
  try:
    return {
      name: np.array([float(row[name]) for row in rows]) for name in names
    }
  except (TypeError, ValueError):
    raise ValueError(f"{path} is damaged: a cell is no number") from None
