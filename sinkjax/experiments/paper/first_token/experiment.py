"""What the first token is worth on benchmarks (section 5, table 3).

Multiple-choice tasks and needles in a haystack, with BOS, without it, with the
sink hidden from the layer on where that takes it away, and, as a control, with
the next token hidden.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNDECIDED,
  UNTESTED,
  Claim,
  Result,
  Subject,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, mean_over
from sinkjax.experiments.paper.first_token.benchmark_tasks import (
  TASKS,
  Item,
  fetch_tasks,
  fitting,
  grade,
)
from sinkjax.experiments.paper.first_token.needles import find_needles, haystack
from sinkjax.experiments.shared.sink_removal import with_layer
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.transforms.edits import knockout

NAME, TITLE = "first_token", "What the first token is worth on benchmarks"
BOS, NO_BOS, AS_IS = "BOS first", "no BOS", "as it is"
HIDDEN, CONTROL = "sink hidden", "next token hidden"

ROW = 2048
"""Texts of a length are as many as make this many tokens, one at least."""

ITEM = 64
"""Tokens that an item counts for, in the progress."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    tasks: of `benchmark_tasks.TASKS`.
    items: of each task.
    lengths: T of the haystacks; those beyond the model's context are left out.
    needles: questions to a haystack.
    texts: on which the layer is found; see `swaps.parse_swaps`.
    from_layer: the first layer at which a token is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    seed: of the choice of items and of the haystacks.
  """

  tasks: tuple[str, ...] = TASKS
  items: int = 300
  lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
  needles: int = 32
  texts: str = TEXTS
  from_layer: int | None = None
  seed: int = 0


def run(
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
  config = with_layer(subject, config)
  conditions = _conditions(subject, config.from_layer)
  piles = {
    length: range(config.seed, config.seed + max(1, ROW // length))
    for length in config.lengths
    if length <= subject.cfg.max_len
  }
  total = len(conditions) * (
    ITEM * sum(map(len, items.values()))
    + sum(length * len(seeds) for length, seeds in piles.items())
  )
  done = 0

  def advance(more):
    nonlocal done
    done += more
    progress(done, total)

  right, found, depth = {}, {}, {}
  for name, (prefix, edits) in conditions.items():
    for task, members in items.items():
      right[task, name] = grade(
        subject,
        members,
        prefix,
        edits,
        progress=lambda more: advance(ITEM * more),
      )
    for length, seeds in piles.items():
      piled = [
        haystack(subject, prefix, length, config.needles, seed)
        for seed in seeds
      ]
      found[length, name] = find_needles(subject, piled, edits).ravel()
      depth[length] = np.stack([one.depth for one in piled]).ravel()
      advance(length * len(seeds))
  result = _result(
    subject, config, items, list(conditions), right, found, depth
  )
  result.numbers["items_too_long"] = too_long
  return result


def _fitting(subject: Subject, items):
  """({task: items that fit}, {task: how many do not}).

  Raises:
    ValueError: for a task of which fewer than two fit.
  """
  bos = [] if subject.tokenizer.bos_id is None else [subject.tokenizer.bos_id]
  longest = max(subject.prefix, bos, key=len)
  kept = {
    task: fitting(subject, members, longest) for task, members in items.items()
  }
  for task, members in kept.items():
    if len(members) < 2:
      raise ValueError(
        f"fewer than two items of {task} fit the model's context of "
        f"{subject.cfg.max_len} tokens; leave it out of the config's tasks"
      )
  return kept, {task: len(items[task]) - len(kept[task]) for task in items}


def _own(subject: Subject) -> str:
  """The condition under which the model's texts are as its file says."""
  if not subject.prefix:
    return NO_BOS
  return BOS if subject.prefix == [subject.tokenizer.bos_id] else AS_IS


def _conditions(subject: Subject, layer: int):
  """{name: (ids put first, edits of the scores)}."""
  bos = subject.tokenizer.bos_id
  found = {} if bos is None else {BOS: ([bos], ())}
  found[NO_BOS] = ([], ())
  if _own(subject) == AS_IS:
    found[AS_IS] = (subject.prefix, ())
  for name, key in ((HIDDEN, 0), (CONTROL, 1)):
    edit = knockout(jnp.asarray(key), from_layer=jnp.asarray(layer))
    found[name] = (subject.prefix, (edit,))
  return found


def _over(values) -> Mean:
  return mean_over(np.asarray(values, float), range(len(values)))


def _result(subject, config, items, conditions, right, found, depth) -> Result:
  own = _own(subject)
  chance = {
    task: np.array([item.chance() for item in members])
    for task, members in items.items()
  }
  lengths = list(depth)
  by_task = {
    (task, name): _over(right[task, name])
    for task in items
    for name in conditions
  }
  by_length = {
    (length, name): _over(found[length, name])
    for length in lengths
    for name in conditions
  }
  pooled = {
    name: np.concatenate([right[task, name] for task in items]).astype(float)
    for name in conditions
  }
  needles = {
    name: np.concatenate([found[length, name] for length in lengths]).astype(
      float
    )
    for name in conditions
    if lengths
  }
  guess = np.concatenate(list(chance.values()))
  numbers = {
    "items": {task: len(members) for task, members in items.items()},
    "from_layer": config.from_layer,
    "needles": config.needles,
    "own": own,
    "lengths": lengths,
    "seed": config.seed,
    "left_out": [n for n in config.lengths if n not in lengths],
    "chance": float(guess.mean()),
    "chance_of_a_needle": 1 / config.needles,
    "tasks": {name: _over(values)._asdict() for name, values in pooled.items()},
    "tasks_above_chance": {
      name: _over(values - guess)._asdict() for name, values in pooled.items()
    },
    "found": {
      name: _over(values)._asdict() for name, values in needles.items()
    },
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(subject, own, pooled, guess, needles, config),
    numbers=numbers,
    tables={
      "tasks.csv": (
        ["task", "condition", "items", "accuracy", "low", "high", "chance"],
        [
          [task, name, len(items[task]), *mean[:3], float(chance[task].mean())]
          for (task, name), mean in by_task.items()
        ],
      ),
      "needles.csv": (
        ["tokens", "condition", "needles", "found", "low", "high", "chance"],
        [
          [length, name, mean.groups, *mean[:3], 1 / config.needles]
          for (length, name), mean in by_length.items()
        ],
      ),
    },
    arrays={
      **{
        f"right {task}, {name}": values
        for (task, name), values in right.items()
      },
      **{
        f"found {length}, {name}": values
        for (length, name), values in found.items()
      },
      **{f"depth {length}": values for length, values in depth.items()},
    },
  )


def _percent(values, form: str = ".1f") -> str:
  return _over(100 * values).text(form, " %")


def _claims(subject, own, pooled, guess, needles, config) -> list[Claim]:
  where, hidden = "section 5, table 3", f"hidden from layer {config.from_layer}"
  said = "; ".join(
    f"{name} {_percent(pooled[name])}"
    for name in (BOS, NO_BOS)
    if name in pooled
  )
  # Above zero where less than half of what is above chance is left.
  left = (pooled[own] - guess) / 2 - (pooled[NO_BOS] - guess)
  mean = _over(left)
  claims = [
    Claim(
      "Without the BOS that training put first, accuracy falls to chance.",
      where,
      "HellaSwag 80.61 to 27.35 %, ARC-Easy 80.77 to 28.49 (Gemma 7B)",
      f"{said}; chance {100 * guess.mean():.1f} %",
      direction(mean.low, mean.high) if subject.has_bos() else UNTESTED,
      "agrees if less than half of what is above chance is left"
      if subject.has_bos()
      else "by its file this model's texts do not start with BOS",
    ),
    _late_claim(
      "With the sink taken away late, accuracy falls.",
      where,
      "no number",
      own,
      pooled,
      hidden,
      f"{len(guess)} items",
    ),
  ]
  if not needles:
    return [
      *claims,
      Claim(
        "Without the sink, nothing is found in a long text.",
        where,
        "RULER, 4096 tokens: 82.57 to 0.00 % without BOS (Gemma 7B)",
        "not measured",
        UNTESTED,
        "the model's context is too short",
      ),
    ]
  return [
    *claims,
    _late_claim(
      "With the sink taken away late, less is found in a long text.",
      where,
      "RULER, 4096 tokens: 82.57 to 0.00 % without BOS (Gemma 7B)",
      own,
      needles,
      hidden,
      f"chance {100 / config.needles:.1f} %",
    ),
  ]


def _late_claim(claim, where, paper, own, values, hidden, note) -> Claim:
  """A claim that hiding the sink costs more than hiding its neighbour."""
  more = _over(values[CONTROL] - values[HIDDEN])
  verdict = direction(more.low, more.high)
  lost = _over(values[own] - values[HIDDEN])
  if verdict == AGREES and lost.low <= 0:
    verdict = DISAGREES if lost.high < 0 else UNDECIDED
  return Claim(
    claim,
    where,
    paper,
    f"{_percent(values[own])} to {_percent(values[HIDDEN])} with position 0 "
    f"{hidden}; with position 1 {_percent(values[CONTROL])}",
    verdict,
    f"{note}; agrees if both falls, from the model as it is and from the "
    "control, are above 0",
  )
