"""Heads ranked by twelve scores and at random, and removed in that order."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.benchmark_tasks import (
  TASKS,
  Item,
  fetch_tasks,
  fitting,
  grade,
)
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.prompt_corpus import Text, apart
from sinkjax.experiments.shared.share_at import share_at
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.inactive_heads import (
  SCORES,
  Looked,
  activity,
  look_of,
  observers,
  output_gram,
)
from sinkjax.inference.prune import lowest
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import AblateHeads
from sinkjax.transforms.capture import capture

FEWEST = 8
"""Texts, at least: four that rank and four that are measured."""

OUTPUTS = ("zero", "mean")
"""What the output of a removed head is set to."""

RANDOM = "random"
"""The name of random orders in the files; their losses are averaged."""

GRADED = ("output_norm_by_layer", "first_weight")
"""The scores by which heads are removed in multiple choice, beside a random
order: the source's best and its first."""

WHOLE = "whole"
"""The unchanged model, in keys of recorded results."""

BATCH = 8
"""Texts of one forward pass that looks at heads: their patterns are in memory
one layer at a time."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`; half of them
      rank the heads, on the others the loss is measured.
    tokens: T of each; shorter texts are left out.
    shares: of the heads removed, increasing.
    share: the one of them that claims and overlaps are about.
    seeds: random orders.
    tasks: of `benchmark_tasks.TASKS`.
    items: of each task, at `share` alone; 0 for none.
    seed: of the choice of texts and items.
  """

  count: int = 4
  tokens: int = 64
  shares: tuple[float, ...] = (0.02, 0.04, 0.08, 0.12, 0.2)
  # arXiv 2504.03889, version 4: more than 12 % of heads are inactive.
  share: float = 0.12
  seeds: int = 2
  tasks: tuple[str, ...] = TASKS
  items: int = 100
  seed: int = 0

  def check(self) -> None:
    """Refuses shares that cannot be.

    Raises:
      ValueError: naming them.
    """
    rising = list(self.shares) == sorted(set(self.shares))
    if not rising or not all(0 < x < 1 for x in self.shares):
      raise ValueError(
        f"shares must be between 0 and 1, increasing, got {self.shares}"
      )
    if self.share not in self.shares:
      raise ValueError(
        f"share must be one of shares={self.shares}, got {self.share}"
      )


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  items: Mapping[str, Sequence[Item]] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Ranks and removes.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    items: other tasks than those of `fetch_tasks`.
    progress: called with (texts and items done, in all).

  Raises:
    ValueError: for fewer than eight texts that are long enough, or shares that
      cannot be.

  Cost: a forward pass of half of the texts for each share, twice, of twelve
    scores and each random order, and four of the items.
  """
  config.check()
  if items is None:
    items = {}
    if config.items:
      items = fetch_tasks(config.tasks, config.items, config.seed)
  items = {
    task: fitting(subject, members, subject.prefix)
    for task, members in items.items()
  }
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=FEWEST
  )
  # Ranked on other texts: the loss of a choice made on the same would be too
  # low.
  ranking, held = apart(ids, len(ids) // 2, config.seed, subject.template)
  orders = len(SCORES) + config.seeds
  passes = 1 + orders * len(config.shares) * len(OUTPUTS)
  asked = (2 + len(GRADED)) * sum(map(len, items.values()))
  step = Steps(progress, len(ranking) + passes * len(held) + asked)
  trace = _look(subject, ranking, step)
  gram = output_gram(subject.params)
  looked = look_of(trace, gram)
  scores = {name: activity(name, looked) for name in SCORES}
  plain, removed = _removed(subject, held, looked, scores, config, step)
  graded = _graded(subject, items, scores, config, step)
  templates = templates_of(held, subject.template)
  by_text = _picked_by_text(trace, gram, config.share)
  return _result(
    config,
    {
      "texts_that_rank": len(ranking),
      "texts": len(held),
      "templates": templates,
      "rank_templates": templates_of(ranking, subject.template),
      "items": {task: len(members) for task, members in items.items()},
    },
    looked,
    plain,
    removed,
    by_text,
    graded,
  )


def _look(subject: Subject, ids: np.ndarray, step: Steps) -> dict[str, Any]:
  """What the observers found, [L, P, ...]."""
  f = capture(forward(subject.cfg), observers())
  run = jax.jit(lambda params, ids: f(params, ids).trace)
  parts = []
  # Even parts, at most two shapes.
  for part in np.array_split(ids, -(-len(ids) // BATCH)):
    out = run(subject.params, jnp.asarray(part))
    parts.append(jax.tree.map(np.asarray, out))
    step(len(part))
  return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)


def _removed(
  subject: Subject,
  held: np.ndarray,
  looked: Looked,
  scores: Mapping[str, np.ndarray],
  config: Config,
  step: Steps,
) -> tuple[Any, dict[tuple[str, str], list[Any]]]:
  """(loss and right answers of the whole model, those by order and output)."""
  rng = np.random.default_rng(config.seed)
  shape = looked.entropy.shape
  orders = dict(scores)
  for i in range(config.seeds):
    orders[f"{RANDOM} {i}"] = rng.random(shape)
  loss = EditedLoss(subject, held, step)
  mean = jnp.asarray(looked.seen.mean, jnp.float32)

  def without(heads: np.ndarray, output: str) -> tuple[np.ndarray, np.ndarray]:
    # A head that adds a constant costs nothing if the constant stays.
    value = mean if output == "mean" else 0 * mean
    both = loss.both({"z": AblateHeads(jnp.asarray(heads), value)})
    return tuple(x.mean(axis=1) for x in both)

  plain = without(np.zeros(shape, bool), OUTPUTS[0])
  removed = {
    (name, output): [
      without(lowest(order, round(share * order.size)), output)
      for share in config.shares
    ]
    for name, order in orders.items()
    for output in OUTPUTS
  }
  return plain, removed


def _graded(
  subject: Subject,
  items: Mapping[str, Sequence[Item]],
  scores: Mapping[str, np.ndarray],
  config: Config,
  step: Steps,
) -> dict[str, np.ndarray]:
  """Whether each item is answered rightly, and by chance; all tasks in turn."""
  members = [item for some in items.values() for item in some]
  if not members:
    return {}
  shape = scores[GRADED[0]].shape
  orders = {name: scores[name] for name in GRADED}
  orders[RANDOM] = np.random.default_rng(config.seed).random(shape)
  count = round(config.share * orders[RANDOM].size)
  gone = {name: lowest(order, count) for name, order in orders.items()}
  gone[WHOLE] = np.zeros(shape, bool)
  found = {"chance": np.array([item.chance() for item in members])}
  for name, heads in gone.items():
    edits = {"z": AblateHeads(jnp.asarray(heads))}
    found[f"answered, {name}"] = grade(
      subject, members, subject.prefix, edits, progress=step
    )
  return found


def _picked_by_text(
  trace: Mapping[str, Any], gram: np.ndarray, share: float
) -> dict[str, np.ndarray]:
  """[P, L, H] heads that each text's own scores pick, of every score."""
  texts = len(trace["level"][0])
  found: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
  for i in range(texts):
    one = look_of(jax.tree.map(lambda x, i=i: x[:, i : i + 1], trace), gram)
    for name, picked in found.items():
      order = activity(name, one)
      picked.append(lowest(order, round(share * order.size)))
  return {name: np.array(picked) for name, picked in found.items()}


def _result(
  config: Config,
  counts: dict[str, Any],
  looked: Looked,
  plain: tuple[np.ndarray, np.ndarray],
  removed: Mapping[tuple[str, str], list[Any]],
  by_text: Mapping[str, np.ndarray],
  graded: Mapping[str, np.ndarray],
) -> Result:
  loss, right = plain
  names = [*SCORES, RANDOM]
  arrays: dict[str, np.ndarray] = dict(graded)
  for name in names:
    for output in OUTPUTS:
      of = [x for (key, out), x in removed.items() if out == output
            and (key == name or key.startswith(f"{name} "))]  # fmt: skip
      # [orders, shares, 2, P]: several orders only if they are random.
      values = np.array(of).mean(axis=0)
      arrays[f"loss, {name}, {output}"] = (values[:, 0] - loss) / loss.mean()
      # A random model in a test may predict no token at all.
      unit = right.mean() or 1.0
      arrays[f"right, {name}, {output}"] = (values[:, 1] - right) / unit
  for name, one in SCORES.items():
    arrays[f"score, {name}"] = one.of(looked)
  arrays["loss"] = loss
  first = by_text["first_weight"]
  for name, picked in by_text.items():
    missed = (picked & ~first).mean(axis=(1, 2))
    arrays[f"missed, {name}"] = missed
  units = {"templates": counts["templates"]}
  at_one = {
    f"{name}, {output}": share_at(
      config.shares,
      np.stack(
        [by_template(x, units) for x in arrays[f"loss, {name}, {output}"]]
      ),
    )
    for name in names
    for output in OUTPUTS
  }
  return Result(
    numbers={**counts, "share_at_one_percent": at_one},
    tables={
      "scores.csv": _score_table(config, arrays, at_one, looked),
      "removal.csv": _removal_table(config, arrays, units),
    },
    arrays=arrays,
  )


def _score_table(
  config: Config,
  arrays: Mapping[str, np.ndarray],
  at_one: Mapping[str, Any],
  looked: Looked,
) -> tuple[list[str], list[list[Any]]]:
  """Every score, its threshold at the share, and the share at one per cent."""
  rows = []
  for name, one in SCORES.items():
    order = activity(name, looked)
    picked = lowest(order, round(config.share * order.size))
    ends = one.of(looked)[picked]
    # The score of the last head that is picked.
    threshold = None
    if ends.size:
      threshold = float(ends.min() if one.inactive == "high" else ends.max())
    rows.append(
      [
        name,
        one.family,
        one.formula,
        one.inactive,
        threshold,
        *(at_one[f"{name}, {output}"]["value"] for output in OUTPUTS),
        float(arrays[f"missed, {name}"].mean()),
      ]
    )
  header = ["score", "family", "formula", "inactive", "threshold"]
  header += [f"share_at_one_percent_{output}" for output in OUTPUTS]
  return [*header, "missed_by_first_weight"], rows


def _removal_table(
  config: Config, arrays: Mapping[str, np.ndarray], units: Mapping[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  header = ["score", "output", "share"]
  header += ends_columns("loss", "right")
  rows = []
  for name in (*SCORES, RANDOM):
    for output in OUTPUTS:
      for i, share in enumerate(config.shares):
        row: list[Any] = [name, output, share]
        for what in ("loss", "right"):
          values = arrays[f"{what}, {name}, {output}"][i]
          row += ends_of(by_template(values, units))
        rows.append(row)
  return header, rows
