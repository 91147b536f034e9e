"""No-op heads searched for and described: what is run and measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import Mean, mean_over
from sinkjax.experiments.paper.noop_heads.examples import example
from sinkjax.experiments.paper.noop_heads.kinds import (
  Kind,
  describe,
  kinds,
  stable_ranks,
)
from sinkjax.experiments.paper.noop_heads.triggers import (
  Head,
  Observed,
  Trigger,
  find,
  observe,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.experiments.shared.text_batches import (
  templates_of,
  texts_of_length,
)

FEWEST = 10
"""Texts, at least: a quarter of them must be enough for an interval."""

LISTED = 6
"""Tokens or positions that a row of the table lists."""

NAMED = ("layer", "head", "trigger", "auroc")
"""Attributes of a drawn head that its figure and a claim need."""

COLUMNS = (
  "rests",
  "value_sink",
  "value_acted",
  "value_rest",
  "output_acting",
  "output_resting",
  "to_itself",
  "to_previous",
)
"""What `describe` gives that is a column of heads.csv."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    resting: a head counts if the share of its queries at which it is dormant
      is within these;
    auroc: if its trigger distinguishes active from dormant queries at least
      so well on the texts that choose;
    output: and if its output while dormant has at most this share of the norm
      that it has when active.
    eps: a head has a sink where its score exceeds this; for the kinds.
    drawn: heads that are drawn, on texts written for this project.
    texts: those; see `swap_texts.parse_swaps`.
    seed: of the choice of texts, and of which text serves for what.
  """

  count: int = 20
  tokens: int = 96
  resting: tuple[float, float] = (0.5, 0.98)
  auroc: float = 0.8
  output: float = 0.5
  eps: float = 0.3
  drawn: int = 6
  texts: str = SWAP_TEXTS
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Finds the heads, tests them on other texts, and gives examples.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, texts in all).

  Raises:
    ValueError: if too few texts are long enough.

  Cost: one forward pass of every text.
  """
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=FEWEST
  )
  # Texts come domain by domain: in that order, those that fit, choose and test
  # would be of different domains.
  order = np.random.default_rng(config.seed).permutation(len(ids))
  observed = observe(subject, ids[order], progress)
  heads = find(
    observed, resting=config.resting, output=config.output, least=config.auroc
  )
  best = heads[: config.drawn]
  examples = [example(subject, config.texts, head) for head in best]
  return _result(subject, config, observed, heads, examples)


def _over_texts(by_text: np.ndarray | None) -> Mean | None:
  """The mean of those of [P] that are numbers; `None` for fewer than two."""
  if by_text is None:
    return None
  known = by_text[np.isfinite(by_text)]
  return mean_over(known, range(len(known))) if len(known) > 1 else None


def _over_heads(by_head: Sequence[np.ndarray]) -> np.ndarray | None:
  """[P] the mean of [P] arrays over heads; NaN where no head has a number."""
  if not by_head:
    return None
  # Heads are averaged first, since heads of one model are not independent of
  # each other, as texts are.
  stacked = np.stack(by_head)
  known = np.isfinite(stacked)
  total, count = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _result(
  subject: Subject,
  config: Config,
  observed: Observed,
  heads: Sequence[Head],
  examples: Sequence[Mapping[str, Any]],
) -> Result:
  group = subject.cfg.group_size
  described = [describe(observed, head, group) for head in heads]
  by_kind = kinds(observed, config.eps, group)
  ratio, sink = by_kind["ratio"], by_kind["sink"]
  layers, _, per_layer, _ = observed.mass.shape
  best = heads[: len(examples)]
  by_text = {
    "auroc": _over_heads([head.by_text for head in best]),
    **{
      name: _over_heads([one[name] for one in described])
      for name in ("sink_ratio", "acted_ratio")
    },
    **{k: by_kind[k] for k in (Kind.NOOP, Kind.BROADCAST)},
  }
  means = {name: _over_texts(values) for name, values in by_text.items()}
  by_head = {
    "mass": observed.mass.mean(axis=(1, 3)),
    "value_ratio": ratio.mean(axis=1),
    "sink": sink.mean(axis=1),
    "stable_rank": observed.stable_rank.mean(axis=1),
  }
  return Result(
    numbers={
      "texts": len(observed.ids),
      "tokens": config.tokens,
      "seed": config.seed,
      "found": len(heads),
      "heads": layers * per_layer,
      "conditions": {
        "resting": config.resting,
        "auroc": config.auroc,
        "output": config.output,
      },
      "by_trigger": {
        name: sum(head.trigger is name for head in heads) for name in Trigger
      },
      # JSON has only strings as keys.
      "words": {f"{head.layer}.{head.head}": _words(head) for head in best},
      "drawn": [
        {name: getattr(head, name) for name in NAMED}
        | {name: one[name] for name in ("tokens", "start")}
        for head, one in zip(best, examples, strict=True)
      ],
      "templates": templates_of(observed.ids, subject.template),
      "stable_rank": stable_ranks(observed, ratio, sink),
      **means,
    },
    tables={
      "heads.csv": _head_table(subject, heads, described),
      "kinds.csv": _kind_table(by_head),
    },
    arrays={
      **by_head,
      **{
        f"{name} by text": values
        for name, values in by_text.items()
        if values is not None
      },
      **{
        f"{what} {i}": one[what]
        for i, one in enumerate(examples)
        for what in ("pattern", "value")
      },
    },
  )


def _words(head: Head) -> list[dict[str, Any]]:
  return [
    {"value": value, "mass": mass, "times": times}
    for value, mass, times in head.words
  ]


def _head_table(
  subject: Subject,
  heads: Sequence[Head],
  described: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[list[Any]]]:
  header = ["layer", "head", "trigger", "set_off_by"]
  header += ["auroc_choosing", "auroc", "explained", *COLUMNS]
  rows = []
  for head, one in zip(heads, described, strict=True):
    words = [
      str(value)
      if head.trigger is Trigger.POSITION
      else subject.tokenizer.decode([value])
      for value, _, _ in head.words
      if value >= 0
    ]
    rows.append(
      [
        head.layer,
        head.head,
        head.trigger,
        " ".join(map(repr, words[:LISTED])),
        head.chosen_by,
        head.auroc,
        head.explained,
        *(one[column] for column in COLUMNS),
      ]
    )
  return header, rows


def _kind_table(
  by_head: Mapping[str, np.ndarray],
) -> tuple[list[str], list[list[Any]]]:
  header = ["layer", "head", "share_with_sink", "value_ratio", "stable_rank"]
  columns = [by_head[name] for name in ("sink", "value_ratio", "stable_rank")]
  rows = [
    [layer, head, *(float(values[layer, head]) for values in columns)]
    for layer, head in np.ndindex(columns[0].shape)
  ]
  return header, rows
