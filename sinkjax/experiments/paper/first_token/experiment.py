"""Tasks and haystacks under every condition: what is run and measured."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import Mean, mean_over
from sinkjax.experiments.shared.asked_needles import find_needles
from sinkjax.experiments.shared.benchmark_tasks import (
  TASKS,
  Item,
  fetch_tasks,
  fitting,
  grade,
)
from sinkjax.experiments.shared.needles import haystack
from sinkjax.experiments.shared.sink_removal import resolve_from_layer
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.transforms.attention_edits import knockout


class Condition(enum.StrEnum):
  """How a model is run; the values are keys of recorded results."""

  BOS = "BOS first"
  NO_BOS = "no BOS"
  AS_IS = "as it is"
  HIDDEN = "sink hidden"
  CONTROL = "next token hidden"


ROW = 2048
"""Texts of a length are as many as make this many tokens, one at least: short
texts have more depths to average over."""

ITEM = 64
"""Tokens that an item counts for, in the progress: about its length."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    tasks: of `benchmark_tasks.TASKS`.
    items: of each task.
    lengths: T of the haystacks; those beyond the model's context are left out.
    needles: questions to a haystack.
    texts: on which the layer is found; see `swap_texts.parse_swaps`.
    from_layer: the first layer at which a token is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    seed: of the choice of items and of the haystacks.
  """

  tasks: tuple[str, ...] = TASKS
  items: int = 300
  lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
  needles: int = 32
  texts: str = SWAP_TEXTS
  from_layer: int | None = None
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  items: Mapping[str, Sequence[Item]] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every task and every haystack under every condition.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    items: other tasks than those of `fetch_tasks`.
    progress: called with (tokens done, tokens in all), roughly.

  Raises:
    ValueError: for fewer than two items or needles, or what does not fit.

  Cost: up to four forward passes of every item and every haystack.
  """
  if items is None:
    items = fetch_tasks(config.tasks, config.items, config.seed)
  items, too_long = _fitting(subject, items)
  config = resolve_from_layer(subject, config)
  conditions = _conditions(subject, config.from_layer)
  seeds = {
    length: range(config.seed, config.seed + max(1, ROW // length))
    for length in config.lengths
    if length <= subject.cfg.max_len
  }
  arrays = _answers(subject, config, items, conditions, seeds, progress)
  return _result(
    subject, config, list(conditions), list(seeds), too_long, arrays
  )


def _answers(
  subject: Subject,
  config: Config,
  items: Mapping[str, Sequence[Item]],
  conditions: Mapping[Condition, tuple[list[int], tuple[Any, ...]]],
  seeds: Mapping[int, range],
  progress: Callable[[int, int], Any],
) -> dict[str, np.ndarray]:
  """Right answers by task and length, chance by task, and depth by length.

  Args:
    subject: the model.
    config: what is run.
    items: of each task.
    conditions: of `_conditions`.
    seeds: of the haystacks of each length.
    progress: called with (tokens done, tokens in all), roughly.
  """
  total = len(conditions) * (
    ITEM * sum(map(len, items.values()))
    + sum(length * len(some) for length, some in seeds.items())
  )
  done = 0

  def advance(more: int) -> None:
    nonlocal done
    done += more
    progress(done, total)

  def graded(more: int) -> None:
    advance(ITEM * more)

  arrays = {
    # Items differ in how many choices they have and how many are right, so
    # chance is kept for each.
    f"chance {task}": np.array([item.chance() for item in members])
    for task, members in items.items()
  }
  # A haystack has its length with the prefix, so each condition needs its own;
  # the seed gives all of them the same needles. What does not fit is known
  # before anything is measured.
  piles = {
    (name, length): [
      haystack(subject, prefix, length, config.needles, seed) for seed in some
    ]
    for name, (prefix, _) in conditions.items()
    for length, some in seeds.items()
  }
  for name, (prefix, edits) in conditions.items():
    for task, members in items.items():
      arrays[f"right {task}, {name}"] = grade(
        subject, members, prefix, edits, progress=graded
      )
    for length, some in seeds.items():
      here = piles[name, length]
      right = subject.kept("needles", find_needles, subject, here, edits)
      arrays[f"found {length}, {name}"] = right.ravel()
      arrays[f"depth {length}"] = np.concatenate([one.depth for one in here])
      advance(length * len(some))
  return arrays


def _fitting(
  subject: Subject, items: Mapping[str, Sequence[Item]]
) -> tuple[dict[str, list[Item]], dict[str, int]]:
  """({task: items that fit}, {task: how many do not}).

  Raises:
    ValueError: for a task of which fewer than two fit.
  """
  bos = [] if subject.tokenizer.bos_id is None else [subject.tokenizer.bos_id]
  # Conditions are compared item by item, so an item has to fit under the one
  # with the longest prefix.
  longest = max(subject.prefix, bos, key=len)
  kept = {
    task: fitting(subject, members, longest) for task, members in items.items()
  }
  for task, members in kept.items():
    # An interval over items needs two.
    if len(members) < 2:
      raise ValueError(
        f"fewer than two items of {task} fit the model's context of "
        f"{subject.cfg.max_len} tokens; leave it out of the config's tasks"
      )
  return kept, {task: len(items[task]) - len(kept[task]) for task in items}


def _own(subject: Subject) -> Condition:
  """The condition under which the model's texts are as its file says."""
  if not subject.prefix:
    return Condition.NO_BOS
  starts_with_bos = subject.prefix == [subject.tokenizer.bos_id]
  return Condition.BOS if starts_with_bos else Condition.AS_IS


def _conditions(
  subject: Subject, layer: int
) -> dict[Condition, tuple[list[int], dict[str, Any]]]:
  """(ids put first, edits) of each condition."""
  bos = subject.tokenizer.bos_id
  runs: dict[Condition, tuple[list[int], dict[str, Any]]] = {}
  if bos is not None:
    runs[Condition.BOS] = ([bos], {})
  runs[Condition.NO_BOS] = ([], {})
  if _own(subject) is Condition.AS_IS:
    runs[Condition.AS_IS] = (subject.prefix, {})
  for name, key in ((Condition.HIDDEN, 0), (Condition.CONTROL, 1)):
    # Arrays, so that one compiled program serves both.
    edit = knockout(jnp.asarray(key), from_layer=jnp.asarray(layer))
    runs[name] = (subject.prefix, {"scores": edit})
  return runs


def over_items(values: np.ndarray) -> Mean:
  """The mean over items, or over needles, each a group of its own."""
  return mean_over(np.asarray(values, float), range(len(values)))


def _result(
  subject: Subject,
  config: Config,
  conditions: Sequence[Condition],
  lengths: Sequence[int],
  too_long: Mapping[str, int],
  arrays: Mapping[str, np.ndarray],
) -> Result:
  """Of arrays "chance TASK", "right TASK, CONDITION", "found LENGTH, ..."."""
  tasks = list(too_long)
  chance = {task: arrays[f"chance {task}"] for task in tasks}
  guess = np.concatenate(list(chance.values()))
  right, found = (
    {
      name: np.concatenate([arrays[f"{what} {part}, {name}"] for part in parts])
      for name in conditions
      if parts
    }
    for what, parts in (("right", tasks), ("found", lengths))
  )
  return Result(
    numbers={
      "items": {task: len(chance[task]) for task in tasks},
      "items_too_long": too_long,
      "from_layer": config.from_layer,
      "needles": config.needles,
      "own": _own(subject),
      "lengths": lengths,
      "seed": config.seed,
      "left_out": [n for n in config.lengths if n not in lengths],
      "chance": float(guess.mean()),
      "chance_of_a_needle": 1 / config.needles,
      "tasks": {name: over_items(values) for name, values in right.items()},
      "tasks_above_chance": {
        name: over_items(values - guess) for name, values in right.items()
      },
      "found": {name: over_items(values) for name, values in found.items()},
    },
    tables={
      "tasks.csv": _table(
        ["task", "condition", "items", "accuracy"],
        {
          (task, name): (arrays[f"right {task}, {name}"], chance[task].mean())
          for task in tasks
          for name in conditions
        },
      ),
      "needles.csv": _table(
        ["tokens", "condition", "needles", "found"],
        {
          (length, name): (
            arrays[f"found {length}, {name}"],
            1 / config.needles,
          )
          for length in lengths
          for name in conditions
        },
      ),
    },
    arrays=dict(arrays),
  )


def _table(
  names: Sequence[str],
  answers: Mapping[tuple[Any, Condition], tuple[np.ndarray, float]],
) -> tuple[list[str], list[list[Any]]]:
  """Shares of right answers with their intervals and chance."""
  rows = [
    [*key, len(right), *over_items(right)[:3], float(chance)]
    for key, (right, chance) in answers.items()
  ]
  return [*names, "low", "high", "chance"], rows
