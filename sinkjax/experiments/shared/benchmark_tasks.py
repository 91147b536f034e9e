"""Multiple-choice tasks of BIG-bench, and how a model is scored on them.

The tasks come from the source archive of the package `bigbench`, which is
read, never installed, and serves evaluation only: nothing of it is in this
repository. An item's endings are compared by their log-likelihood a byte; the
question does not list the choices.
"""

import functools
import json
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.api import Subject
from sinkjax.metrics.precision import wide
from sinkjax.models.transformer import forward
from sinkjax.transforms.branches import (
  NO_EDITS,
  Row,
  beside,
  branch_row,
  check_window,
  split_endings,
)
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.weights.packages import Package, fetch_package

_PATH = "bigbench/benchmark_tasks/{}/task.json"

BIGBENCH = Package(
  "bigbench",
  "1.0.0",
  {
    _PATH.format("goal_step_wikihow/goal_inference"): (
      "ae9d68546ae17707034b284444169b6035ea291dfab15826edaa867888090de6"
    ),
    _PATH.format("goal_step_wikihow/step_inference"): (
      "e3cba757d9f6050a90f4a9d7b32d0159f2c0d69a4b6656588f56593f85193494"
    ),
    _PATH.format("social_iqa"): (
      "edc9f568b70ae6d4af0783764dbe4e4f18aa1242c675a93f534338d73a565348"
    ),
    _PATH.format("unit_conversion/unit_identification"): (
      "a58dc25c33a6bf260d78a4024c177cd20aa49620c3e84ecf3da991c41dee92bd"
    ),
  },
  "Apache-2.0",
  358.0,
  "tasks of BIG-bench",
  source=True,
)

TASKS = tuple(
  file.split("tasks/")[1].rsplit("/", 1)[0] for file in BIGBENCH.files
)

ROW_TOKENS = 1024
"""Tokens of one forward pass: their logits take 200 MB at a vocabulary of
50,000."""

STEP = 16
"""Rows are padded to a multiple of this, so that few lengths are compiled."""


class Item(NamedTuple):
  """A question.

  Attributes:
    context: the text before the endings.
    endings: the choices, each with a space before it.
    right: which are right.
  """

  context: str
  endings: tuple[str, ...]
  right: tuple[bool, ...]

  def chance(self) -> float:
    """How often a guess is right."""
    return sum(self.right) / len(self.right)


def read_task(task: dict[str, Any]) -> list[Item]:
  """The items of a task's JSON, in its own order.

  >>> read_task({"examples": [{"input": "1 + 1 =",
  ...   "target_scores": {"2": 1, "3": 0}}]})[0]
  Item(context='Q: 1 + 1 =\\nA:', endings=(' 2', ' 3'), right=(True, False))
  """
  head = task.get("task_prefix", "")
  # These are the defaults of BIG-bench for a task that names no prefix.
  before = task.get("example_input_prefix", "\nQ: ")
  after = task.get("example_output_prefix", "\nA: ")
  items = []
  for example in task["examples"]:
    choices = example["target_scores"]
    context = f"{head}{before}{example['input'].strip()}{after}".strip()
    endings = tuple(f" {choice.strip()}" for choice in choices)
    right = tuple(score > 0 for score in choices.values())
    # Where all choices are right, or none is, any answer scores the same.
    if any(right) and not all(right):
      items.append(Item(context, endings, right))
  return items


def fetch_tasks(
  names: Sequence[str], count: int, seed: int
) -> dict[str, list[Item]]:
  """`count` items of each task, the same ones for the same seed.

  Args:
    names: of `TASKS`.
    count: items of each task, at most.
    seed: of the choice.

  Raises:
    ValueError: for another name.
    WeightsError: if the archive cannot be fetched, or is not what it was.
  """
  unknown = sorted(set(names) - set(TASKS))
  if unknown or not names:
    raise ValueError(f"tasks must be among {list(TASKS)}, got {list(names)}")
  first = fetch_package("BIG-bench tasks", BIGBENCH)
  root, chosen = first, {}
  # The path is that of the first file, so the archive is as many folders up as
  # this file has parts.
  for _ in pathlib.PurePosixPath(next(iter(BIGBENCH.files))).parts:
    root = root.parent
  for name in names:
    text = (root / _PATH.format(name)).read_text("utf-8")
    items = read_task(json.loads(text))
    # Each task starts from the seed, so its items do not depend on which other
    # tasks are asked for.
    chosen[name] = random.Random(seed).sample(items, min(count, len(items)))
  return chosen


def likelihoods(
  subject: Subject,
  rows: Sequence[Row],
  edits: Mapping[str, Any] = NO_EDITS,
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> list[np.ndarray]:
  """The log-likelihood of every branch of every row.

  Args:
    subject: the model; its weights in memory.
    rows: of `branch_row`.
    edits: `{site: edit}`; pytrees, such as `knockout` makes.
    progress: called with the number of rows that one pass has added.

  Returns:
    For each row, nats of each branch.

  Raises:
    ValueError: for a row longer than the model's window or context.

  Cost: one forward pass of all rows; memory of `ROW_TOKENS` logits.
  """
  nats = _by_row(subject, rows, _score, dict(edits), progress)
  return [
    of_branches(one, row.branch) for one, row in zip(nats, rows, strict=True)
  ]


def of_branches(nats: np.ndarray, branch: np.ndarray) -> np.ndarray:
  """The sums of each branch's tokens, from branch 1 on.

  >>> of_branches(np.array([9.0, 1.0, 2.0, 4.0]), np.array([0, 1, 2, 2]))
  array([1., 6.])
  """
  return np.array([nats[branch == b + 1].sum() for b in range(branch.max())])


def with_mass(
  subject: Subject,
  rows: Sequence[Row],
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> list[np.ndarray]:
  """For each row [2, N]: the nats of each token after its parent, 0 at the
  first, and its attention on position 0, mean over layers and heads.

  Args:
    subject: the model; its weights in memory.
    rows: of `branch_row`.
    progress: called with the number of rows that one pass has added.

  Raises:
    ValueError: as `likelihoods`.

  Cost: as `likelihoods`.
  """
  return _by_row(subject, rows, _score_with_mass, {}, progress)


def _by_row(
  subject: Subject,
  rows: Sequence[Row],
  score: Callable,
  edits: dict[str, Any],
  progress: Callable[[int], Any],
) -> list[np.ndarray]:
  """`score` [B, ..., N] of batches of rows, by row and without the padding."""
  # Rows of similar length share a batch, which keeps padding short; and the
  # last row of a batch is the longest, which sets the width.
  order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
  found: list[Any] = [None] * len(rows)
  at = 0
  while at < len(order):
    batch, width = [], 0
    while at < len(order):
      wider = -(-len(rows[order[at]].tokens) // STEP) * STEP
      if batch and wider * (len(batch) + 1) > ROW_TOKENS:
        break
      batch.append(order[at])
      width, at = wider, at + 1
    check_window(subject.cfg, width)
    # The same number of rows for one width, so that it compiles once.
    size = max(len(batch), ROW_TOKENS // width)
    arrays = [np.zeros((size, width), np.int32) for _ in Row._fields]
    arrays[2][:] = -1  # padding is a branch of its own
    for i, number in enumerate(batch):
      for array, values in zip(arrays, rows[number], strict=True):
        array[i, : len(values)] = values
    out = subject.kept(
      "items",
      score,
      subject.params,
      edits,
      *map(jnp.asarray, arrays),
      cfg=subject.cfg,
    )
    for i, number in enumerate(batch):
      found[number] = out[i, ..., : len(rows[number].tokens)]
    progress(len(batch))
  return found


@functools.partial(jax.jit, static_argnames=("cfg",))
def _score(
  params: Any,
  edits: dict[str, Any],
  tokens: jax.Array,
  positions: jax.Array,
  branch: jax.Array,
  parent: jax.Array,
  *,
  cfg: ModelConfig,
) -> jax.Array:
  """Nats of each token after its parent, [B, N]; compiles once for a shape."""
  apart = intervene(forward(cfg), beside(branch, edits))
  logits = apart(params, tokens, positions=positions).logits
  return _nats(logits, tokens, parent)


@functools.partial(jax.jit, static_argnames=("cfg",))
def _score_with_mass(
  params: Any,
  edits: dict[str, Any],
  tokens: jax.Array,
  positions: jax.Array,
  branch: jax.Array,
  parent: jax.Array,
  *,
  cfg: ModelConfig,
) -> jax.Array:
  """[B, 2, N]: `_score`, and the mean attention on position 0."""
  apart = intervene(forward(cfg), beside(branch, edits))
  watch = {"mass": ("pattern", lambda x: wide(x[..., 0]).mean(axis=1))}
  out = capture(apart, watch)(params, tokens, positions=positions)
  nats = _nats(out.logits, tokens, parent)
  return jnp.stack([nats, out.trace["mass"].mean(axis=0)], axis=1)


def _nats(logits: jax.Array, tokens: jax.Array, parent: jax.Array) -> jax.Array:
  """log p of each token after its parent; 0 of the first, which has none."""
  logits = wide(logits)
  # Only the logits of the tokens are normalised: log_softmax would make another
  # array of the size of all logits.
  total = jax.nn.logsumexp(logits, axis=-1)
  rows = jnp.arange(len(tokens))[:, None]
  nats = logits[rows, parent, tokens] - total[rows, parent]
  return nats.at[:, 0].set(0)


def fitting(
  subject: Subject, items: Sequence[Item], prefix: Sequence[int]
) -> list[Item]:
  """Those of the items that the model's context and window hold."""
  cfg = subject.cfg
  # A sliding window counts the tokens of the row, so all endings of an item
  # have to fit it together.
  room = min(cfg.max_len, cfg.window) if any(cfg.local_layers) else cfg.max_len
  # Rows are padded to a multiple of this before they are run.
  room -= room % STEP
  return [
    item for item in items if len(row_of(subject, item, prefix).tokens) <= room
  ]


def row_of(subject: Subject, item: Item, prefix: Sequence[int]) -> Row:
  """An item as a row: the context, and its endings as branches."""
  context, endings = split_endings(
    subject.tokenizer.encode, item.context, item.endings
  )
  return branch_row([*prefix, *context], endings)


def grade(
  subject: Subject,
  items: Sequence[Item],
  prefix: Sequence[int],
  edits: Mapping[str, Any] = NO_EDITS,
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> np.ndarray:
  """Whether the ending of the greatest likelihood a byte is right, [items].

  Args:
    subject: the model.
    items: the questions.
    prefix: ids put before each.
    edits: `{site: edit}`.
    progress: as in `likelihoods`.

  Raises:
    ValueError: as `likelihoods`.
  """
  rows = [row_of(subject, item, prefix) for item in items]
  nats = likelihoods(subject, rows, edits, progress=progress)
  return chosen_right(items, nats)


def chosen_right(
  items: Sequence[Item], nats: Sequence[np.ndarray]
) -> np.ndarray:
  """Whether the ending of the greatest likelihood a byte is right, [items].

  Args:
    items: the questions.
    nats: of each item, the log-likelihood of its endings.
  """
  right = []
  for item, of_endings in zip(items, nats, strict=True):
    # Each byte adds to a negative sum, so without this short endings would win;
    # and bytes, unlike tokens, are the same for all models.
    sizes = [len(ending.strip().encode()) for ending in item.endings]
    right.append(item.right[int(np.argmax(of_endings / np.array(sizes)))])
  return np.array(right)
