"""Questions and their answers: attention on position 0, and what else tells.

Axes: N items of a task, P haystacks, Q needles of each.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.roc import auroc, item_values
from sinkjax.experiments.harness.stats import student
from sinkjax.experiments.shared.asked_needles import ask_needles
from sinkjax.experiments.shared.benchmark_tasks import (
  TASKS,
  Item,
  chosen_right,
  fetch_tasks,
  fitting,
  of_branches,
  row_of,
  with_mass,
)
from sinkjax.experiments.shared.needles import Haystack, haystack
from sinkjax.experiments.shared.steps import Steps

FEWEST = 10
"""Right answers, and wrong ones, of a task that counts: an area of fewer rests
on a few items, whose weight grows as their number falls. Of a haystack it is
one of each, since haystacks are averaged."""

NEEDLES = "needles"
"""In the place of a task's name, in tables and keys."""


class Score(enum.StrEnum):
  """What may tell a right answer; the values are keys of recorded results.

  All are taken with the sign by which they should be higher at right answers.
  """

  SINK = "little attention on the sink"
  LAST = "little attention on the sink from the last token"
  LENGTH = "short question"
  SURPRISAL = "unsurprising question"
  BEYOND = "little attention on the sink, for its length and surprisal"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    tasks: of `benchmark_tasks.TASKS`.
    items: of each task.
    tokens: T of the haystacks; none where the model's context is shorter.
    haystacks: how many.
    needles: questions to a haystack.
    seed: of the choice of items and of the haystacks.
  """

  tasks: tuple[str, ...] = TASKS
  items: int = 300
  # The shortest at which SmolLM2-135M finds some needles and misses some.
  tokens: int = 1024
  haystacks: int = 12
  needles: int = 32
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  items: Mapping[str, Sequence[Item]] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Scores of every question, and whether it was answered rightly.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    items: other tasks than those of `fetch_tasks`.
    progress: called with (items and haystacks done, in all).

  Raises:
    ValueError: for needles or tasks that do not fit, as `haystack` and
      `fetch_tasks`; before anything is measured.

  Cost: one forward pass of every item and every haystack.
  """
  if items is None:
    items = fetch_tasks(config.tasks, config.items, config.seed)
  given = {task: len(members) for task, members in items.items()}
  items = {
    task: fitting(subject, members, subject.prefix)
    for task, members in items.items()
  }
  count = config.haystacks if config.tokens <= subject.cfg.max_len else 0
  # What does not fit is known before anything is measured.
  piles = [
    haystack(
      subject, subject.prefix, config.tokens, config.needles, config.seed + i
    )
    for i in range(count)
  ]
  step = Steps(progress, sum(map(len, items.values())) + count)
  asked = {
    task: _of_task(subject, members, step)
    for task, members in items.items()
    if members
  }
  arrays = {
    f"{what} {task}": x
    for task, one in asked.items()
    for what, x in one.items()
  }
  if piles:
    found = _of_haystacks(subject, piles)
    step(count)
    arrays |= {f"{what} {NEEDLES}": x for what, x in found.items()}
  numbers = {
    "items": {task: len(members) for task, members in items.items()},
    "items_too_long": {
      task: given[task] - len(members) for task, members in items.items()
    },
    "tasks": [task for task, one in asked.items() if counts(one["right"])],
    "haystacks": count,
  }
  return Result(
    numbers=numbers,
    tables={"auroc.csv": _table(numbers, arrays)},
    arrays=arrays,
  )


def counts(right: np.ndarray) -> bool:
  """Whether a task has enough right and wrong answers."""
  return min(right.sum(), (~right).sum()) >= FEWEST


def _of_task(
  subject: Subject, items: Sequence[Item], step: Steps
) -> dict[str, np.ndarray]:
  """[N] "right" and every score."""
  rows = [row_of(subject, item, subject.prefix) for item in items]
  seen = with_mass(subject, rows, progress=step)
  nats = [
    of_branches(one[0], row.branch) for one, row in zip(seen, rows, strict=True)
  ]
  # The first token sees only itself, and nothing says how likely it is.
  of_context = [
    one[:, row.branch == 0][:, 1:].astype(np.float64)
    for one, row in zip(seen, rows, strict=True)
  ]
  # A context of one token has no question in it.
  some = np.array([one.shape[1] > 0 for one in of_context])
  of_context = [one for one in of_context if one.shape[1]]
  found = {
    Score.SINK: -np.array([one[1].mean() for one in of_context]),
    Score.LAST: -np.array([one[1, -1] for one in of_context]),
    Score.LENGTH: -np.log([one.shape[1] for one in of_context]),
    # The nats are log-likelihoods: high where a question is no surprise.
    Score.SURPRISAL: np.array([one[0].mean() for one in of_context]),
  }
  rivals = np.stack([found[Score.LENGTH], found[Score.SURPRISAL]], axis=1)
  found[Score.BEYOND] = beyond(found[Score.SINK], rivals)
  right = chosen_right(items, nats)[some]
  return {"right": right, **{str(k): x for k, x in found.items()}}


def beyond(score: np.ndarray, rivals: np.ndarray) -> np.ndarray:
  """[N] a score less its least-squares fit by others and a constant.

      y - X (X^T X)^+ X^T y

  Args:
    score: [N] y.
    rivals: [N, M] X, without the constant.

  >>> x = np.arange(6.0)
  >>> bool(np.abs(beyond(3 * x + 1, x[:, None])).max() < 1e-12)
  True
  """
  columns = np.column_stack([np.ones(len(score)), rivals])
  fit, *_ = np.linalg.lstsq(columns, score, rcond=None)
  return score - columns @ fit


def _of_haystacks(
  subject: Subject, piles: Sequence[Haystack]
) -> dict[str, np.ndarray]:
  """[P, Q] "right" and every score but that of the last token."""
  right, mass, nats = subject.kept("needles", ask_needles, subject, piles)
  depth = np.stack([one.depth for one in piles])
  found = {
    Score.SINK: -np.asarray(mass),
    # Questions are about equally long: what differs is how far back to look.
    Score.LENGTH: -np.log(1 - depth),
    Score.SURPRISAL: -np.asarray(nats),
  }
  found[Score.BEYOND] = np.stack(
    [
      beyond(one, np.stack(rivals, axis=1))
      for one, *rivals in zip(*found.values(), strict=True)
    ]
  )
  return {
    "right": np.asarray(right, bool),
    **{str(k): x for k, x in found.items()},
  }


def by_item(
  numbers: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  score: Score,
  tasks: Sequence[str] | None = None,
) -> np.ndarray:
  """[N] values of `item_values` within each task, whose mean is the area.

  Args:
    numbers: of a result.
    arrays: likewise.
    score: whose area.
    tasks: of these; `None` for all that count.
  """
  tasks = numbers["tasks"] if tasks is None else tasks
  values = [
    item_values(arrays[f"{score} {task}"], arrays[f"right {task}"])
    for task in tasks
  ]
  return np.concatenate(values) if values else np.zeros(0)


def by_haystack(arrays: Mapping[str, np.ndarray], score: Score) -> np.ndarray:
  """[n] areas of the haystacks in which some needles were found, not all."""
  right = arrays.get(f"right {NEEDLES}")
  if right is None or f"{score} {NEEDLES}" not in arrays:
    return np.zeros(0)
  scores, right = arrays[f"{score} {NEEDLES}"], np.asarray(right, bool)
  return np.array(
    [
      auroc(one, labels)
      for one, labels in zip(scores, right, strict=True)
      if labels.any() and not labels.all()
    ]
  )


def _table(
  numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  rows = []
  parts = [(task, [task]) for task in numbers["tasks"]]
  for name, tasks in [*parts, ("all tasks", None), (NEEDLES, ())]:
    for score in Score:
      needles = name == NEEDLES
      values = (
        by_haystack(arrays, score)
        if needles
        else by_item(numbers, arrays, score, tasks)
      )
      if len(values) < 2:
        continue
      of = [NEEDLES] if needles else tasks or numbers["tasks"]
      right = np.concatenate([arrays[f"right {task}"].ravel() for task in of])
      share, (mean, half) = float(right.mean()), student(values)
      ends = mean, mean - half, mean + half
      rows.append([name, str(score), len(values), share, *map(float, ends)])
  header = ["questions", "score", "units", "right", "auroc", "low", "high"]
  return header, rows
