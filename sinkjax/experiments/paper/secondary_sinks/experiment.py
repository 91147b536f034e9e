"""Every sink of many texts: what is run and measured.

Axes: P texts, T tokens, L layers, N sinks of all texts.
"""

import collections
import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  templates_of,
  texts_of_length,
)
from sinkjax.metrics.queries import (
  first_of_word,
  first_seen,
  line_break,
  punctuation,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.find_sinks import Sink, find_sinks

ROWS = 8
"""Texts of one pass: what a streamed pass holds of them fits on any machine."""

LISTED = 40
"""Rows of the table of tokens: the most frequent sinks."""


class Kind(enum.StrEnum):
  """Kinds of token; the values are keys of recorded results."""

  BREAK = "line break"
  PUNCTUATION = "punctuation"
  WORD = "first of a word"
  OTHER = "other"


LASTS = ("lasting", "passing", "attention")
"""Kinds of sink, as `find_sinks` names them."""

NUMBERS = (
  "text",
  "position",
  "token",
  "kind",
  "first_layer",
  "last_layer",
  "heads",
  "received",
  "norm",
  "cosine",
  "value",
)
"""Fields of a sink, of which `kind` is an index into `LASTS`."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    eps: least attention of a head, as `find_sinks` takes it.
    seed: of the choice of texts.
  """

  count: int = 4
  tokens: int = 128
  eps: float = 0.3
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The sinks of every text, and the kinds of all its tokens.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for fewer than two texts that are long enough.

  Cost: that of `find_sinks`.
  """
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  step = Steps(progress, len(ids))
  fn = forward(subject.cfg)

  def find(rows: np.ndarray) -> dict[str, np.ndarray]:
    found = find_sinks(fn, subject.params, rows, eps=config.eps)
    return {"sinks": as_numbers(found.sinks), "life": found.life}

  tables, lives = [], []
  for start, count, rows in batches(ids, min(ROWS, len(ids))):
    out = subject.kept("batch", find, jnp.asarray(rows))
    sinks = out["sinks"][out["sinks"][:, 0] < count]
    sinks[:, 0] += start
    tables.append(sinks)
    lives.append(out["life"][:count])
    step(count)
  sinks, life = np.concatenate(tables), np.concatenate(lives)
  kinds = _kinds(subject, ids)
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates_of(ids, subject.template),
      "layers": subject.cfg.n_layers,
      "all_heads": subject.cfg.n_layers * subject.cfg.n_heads,
      "found": int((sinks[:, 1] > 0).sum()),
      "template": subject.template,
    },
    tables={
      "tokens.csv": _token_table(subject, sinks, kinds),
      "kinds.csv": _kind_table(sinks, kinds),
    },
    arrays={
      "sinks": sinks,
      "life": life,
      "first seen": first_seen(ids),
      **{f"is {kind}": which for kind, which in kinds.items()},
    },
  )


def as_numbers(sinks: Sequence[Sink]) -> np.ndarray:
  """[N, 11] the sinks, `NUMBERS` of each."""
  rows = [
    [
      LASTS.index(value) if name == "kind" else value
      for name, value in zip(Sink._fields, sink, strict=True)
    ]
    for sink in sinks
  ]
  return np.array(rows, float).reshape(len(rows), len(NUMBERS))


def column(sinks: np.ndarray, name: str) -> np.ndarray:
  """[N] one field of the sinks; positions and the like as integers."""
  values = sinks[:, NUMBERS.index(name)]
  whole = name not in ("received", "norm", "cosine", "value")
  return values.astype(int) if whole else values


def _kinds(subject: Subject, ids: np.ndarray) -> dict[Kind, np.ndarray]:
  """[P, T] of every kind: each token is of one."""
  pieces = [
    [subject.tokenizer.decode([i]) for i in row] for row in ids.tolist()
  ]

  def every(function: Callable) -> np.ndarray:
    return np.stack([function(row) for row in pieces])

  found = {Kind.BREAK: every(line_break)}
  found[Kind.PUNCTUATION] = every(punctuation) & ~found[Kind.BREAK]
  found[Kind.WORD] = every(first_of_word)
  taken = np.any(list(found.values()), axis=0)
  return found | {Kind.OTHER: ~taken}


def _kind_table(
  sinks: np.ndarray, kinds: dict[Kind, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  """Of all texts together: how often tokens of a kind are sinks."""
  late = sinks[column(sinks, "position") > 0]
  at = column(late, "text"), column(late, "position")
  rows = []
  for kind, which in kinds.items():
    hits, tokens = which[at], int(which[:, 1:].sum())
    counts = [int((hits & (column(late, "kind") == i)).sum()) for i in range(3)]
    rate = float(hits.sum() / tokens) if tokens else None
    rows.append([str(kind), tokens, int(hits.sum()), rate, *counts])
  return ["kind", "tokens", "sinks", "rate", *LASTS], rows


def _token_table(
  subject: Subject, sinks: np.ndarray, kinds: dict[Kind, np.ndarray]
) -> tuple[list[str], list[list[Any]]]:
  """The tokens that are sinks most often, the first position left out."""
  late = sinks[column(sinks, "position") > 0]
  counts = collections.Counter(column(late, "token").tolist())
  rows = []
  for token, count in counts.most_common(LISTED):
    of = late[column(late, "token") == token]
    one = int(of[0, 0]), int(of[0, 1])
    kind = next(str(kind) for kind, which in kinds.items() if which[one])
    lived = column(of, "last_layer") - column(of, "first_layer") + 1
    rows.append(
      [
        subject.tokenizer.decode([token]),
        kind,
        count,
        float(np.median(column(of, "position"))),
        float(np.median(column(of, "first_layer"))),
        float(np.median(lived)),
        float(np.median(column(of, "heads"))),
        float(np.median(column(of, "norm"))),
      ]
    )
  header = ["token", "kind", "times", "position", "first_layer", "layers"]
  return [*header, "heads", "norm"], rows
