"""Sink mass by kind of query, and the loss without the first token."""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.asked_needles import masses_at_ends
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.needles import Haystack, haystack
from sinkjax.experiments.shared.prompt_corpus import Text, texts_for
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.scoring import nats_of
from sinkjax.metrics import queries
from sinkjax.metrics.sinks import first_token_mass
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import knockout
from sinkjax.transforms.capture import capture

FIRST = 8
"""Positions that count for no kind: of so few keys the first has a large share
whatever a head does; and those to which the cost of a missing first token is
told apart."""

FEWEST = 8
"""Texts that begin apart, at least, of a length for the comparison of loss: the
sign-flip test needs as many."""

ROW_TOKENS = 2048
"""Tokens of one forward pass: their logits take 400 MB at a vocabulary of
50,000."""


class Kind(enum.StrEnum):
  """Kinds of query; the values are keys of recorded results."""

  SURPRISING = "surprising"
  COPYABLE = "copyable"
  WORD = "first of a word"
  PUNCTUATION = "punctuation"


class Hidden(enum.StrEnum):
  """What is hidden at every layer; the values are keys of recorded results."""

  NOTHING = "nothing"
  FIRST = "position 0"
  NEXT = "position 1"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of the texts whose queries are told apart.
    share: of each text's tokens, those of the greatest loss are surprising.
    width: positions of a block in which kinds are compared with other queries.
    lengths: at which the loss without position 0 is compared, on texts that
      have the most; those longer than the model's context, or than all but a
      few texts, are left out.
    haystack_tokens: T of the haystacks with their questions; none where the
      model's context is shorter.
    haystacks: how many.
    needles: questions of a haystack that it answers, and as many others.
    seed: of the choice of texts and of the haystacks.
  """

  count: int = 8
  # The context of glassllm-en, and long enough for bigrams to come again.
  tokens: int = 128
  share: float = 0.25
  width: int = 8
  lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
  haystack_tokens: int = 512
  haystacks: int = 12
  needles: int = 8
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Attention on the first token by kind of query, and what hiding it costs.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for fewer than two texts that are long enough, or needles that
      do not fit.

  Cost: one forward pass of the texts and of the haystacks, and three of those
    of the greatest length; causal models give the loss of every shorter length
    with it.
  """
  texts = texts_for(subject, texts, config.count, config.seed)
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  long, lengths = _longest(subject, texts, config)
  # What does not fit is known before anything is measured.
  piles = _piles(subject, config)
  step = Steps(progress, len(ids) + len(Hidden) * len(long) + len(piles))
  mass, nats = _look(subject, ids, step)
  kinds = _kinds(subject, ids, nats, config.share)
  loss = EditedLoss(subject, long, step)
  losses = {kind: loss(_edits(subject, kind)) for kind in Hidden}
  answers = _answers(subject, piles, step) if piles else {}
  templates = templates_of(ids, subject.template)
  apart = templates_of(long, subject.template)
  by_text = _by_text(mass, kinds, config.width)
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "long_texts": len(long),
      "long_templates": apart,
      "lengths": lengths,
      "haystacks": len(piles),
    },
    tables={
      "kinds.csv": _kind_table(mass, kinds, by_text, templates),
      "lengths.csv": _length_table(losses, lengths, apart),
    },
    arrays={
      **{f"{what}, {k}": x for k in kinds for what, x in by_text[k].items()},
      **{f"by layer, {k}": _by_layer(mass, x) for k, x in kinds.items()},
      **{f"nats, {k}": x.astype(np.float32) for k, x in losses.items()},
      **answers,
    },
  )


def _longest(
  subject: Subject, texts: Sequence[Text], config: Config
) -> tuple[np.ndarray, list[int]]:
  """(ids of the texts of the greatest length, the lengths up to it)."""
  fitting = [n for n in sorted(config.lengths) if n <= subject.cfg.max_len]
  for i in range(len(fitting), 0, -1):
    ids = texts_of_length(
      subject, texts, config.count, fitting[i - 1], config.seed
    )
    apart = len(set(templates_of(ids, subject.template)))
    if apart >= FEWEST or (i == 1 and apart >= 2):
      return ids, fitting[:i]
  raise ValueError(
    f"at least 2 texts that begin apart must have one of lengths="
    f"{config.lengths} tokens, which the model's context of "
    f"{subject.cfg.max_len} must hold"
  )


def _look(
  subject: Subject, ids: np.ndarray, step: Steps
) -> tuple[np.ndarray, np.ndarray]:
  """(mass [P, L, T], mean over heads; nats [P, T], NaN at 0)."""
  f = capture(
    forward(subject.cfg),
    {"mass": ("pattern", lambda x: first_token_mass(x).mean(axis=1))},
  )

  @jax.jit
  def run(params: Any, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    out = f(params, ids)
    nats = nats_of(out.logits[:, :-1], ids[:, 1:])
    return jnp.swapaxes(out.trace["mass"], 0, 1), nats

  found = []
  for _, count, rows in batches(ids, max(1, ROW_TOKENS // ids.shape[1])):
    out = subject.kept("batch", run, subject.params, jnp.asarray(rows))
    found.append([x.astype(np.float64)[:count] for x in out])
    step(count)
  mass, nats = map(np.concatenate, zip(*found, strict=True))
  # Nothing says how likely the first token is.
  return mass, np.pad(nats, [(0, 0), (1, 0)], constant_values=np.nan)


def _piles(subject: Subject, config: Config) -> list[Haystack]:
  """The haystacks; none where the model's context is shorter.

  Raises:
    ValueError: for needles that do not fit.
  """
  fits = config.haystack_tokens <= subject.cfg.max_len
  return [
    haystack(
      subject,
      subject.prefix,
      config.haystack_tokens,
      config.needles,
      config.seed + i,
      unknown=config.needles,
    )
    for i in range(config.haystacks if fits else 0)
  ]


def _answers(
  subject: Subject, piles: Sequence[Haystack], step: Steps
) -> dict[str, np.ndarray]:
  """Mass over even attention at the ends of questions, [P, Q] each."""
  seen = []
  for pile in piles:
    seen.append(subject.kept("needles", masses_at_ends, subject, [pile]))
    step()
  answered, unanswered = (np.concatenate(x) for x in zip(*seen, strict=True))
  return {"answered": answered, "unanswered": unanswered}


def _edits(subject: Subject, hidden: Hidden) -> dict[str, Any]:
  """The edit that hides a position from all others at every layer."""
  # Behind the last layer hides nothing: the same program, the same rounding.
  layer = subject.cfg.n_layers if hidden is Hidden.NOTHING else 0
  key = 1 if hidden is Hidden.NEXT else 0
  # As arrays, which are no part of the program: it is compiled once.
  return {"scores": knockout(jnp.asarray(key), from_layer=jnp.asarray(layer))}


def _kinds(
  subject: Subject, ids: np.ndarray, nats: np.ndarray, share: float
) -> dict[Kind, np.ndarray]:
  """[P, T] of every kind, none of the first positions."""
  pieces = [
    [subject.tokenizer.decode([i]) for i in row] for row in ids.tolist()
  ]
  found = {
    Kind.SURPRISING: queries.surprising(nats, share),
    Kind.COPYABLE: queries.copyable(ids),
    Kind.WORD: np.stack([queries.first_of_word(row) for row in pieces]),
    Kind.PUNCTUATION: np.stack([queries.punctuation(row) for row in pieces]),
  }
  late = np.arange(ids.shape[1]) >= FIRST + subject.template
  return {kind: which & late for kind, which in found.items()} | {
    # Under no kind's name: all queries that the others are compared with.
    "all": np.broadcast_to(late, ids.shape)
  }


def _by_text(
  mass: np.ndarray, kinds: dict[Any, np.ndarray], width: int
) -> dict[Any, dict[str, np.ndarray]]:
  """Of every kind, over the texts that have it.

  "ratio" [n] to even attention, of the texts "in" [n]; "matched" [m], the log
  ratio to other queries, of the texts "matched in" [m] that have both.
  """
  whole, every = mass.mean(axis=1), kinds["all"]
  found = {}
  for kind, which in kinds.items():
    ratio = queries.over_even(whole, which)
    matched = np.array(
      [
        queries.log_ratio_at_equal_positions(one, q, e & ~q, width)
        for one, q, e in zip(whole, which, every, strict=True)
      ]
    )
    some, both = (np.flatnonzero(~np.isnan(x)) for x in (ratio, matched))
    found[kind] = {
      "ratio": ratio[some],
      "in": some,
      "matched": matched[both],
      "matched in": both,
    }
  return found


def of_units(
  values: np.ndarray, texts: np.ndarray, templates: Sequence[int]
) -> np.ndarray:
  """[n] values of some texts, those of one template averaged."""
  if not len(values):
    return np.zeros(0)
  return by_template(values, {"templates": [templates[i] for i in texts]})


def _by_layer(mass: np.ndarray, which: np.ndarray) -> np.ndarray:
  """[L] ratio to even attention, over the queries of all texts."""
  flat = np.broadcast_to(which[:, None], mass.shape)
  even = (which / np.arange(1, which.shape[-1] + 1)).sum()
  return np.where(flat, mass, 0).sum(axis=(0, 2)) / max(even, 1e-12)


def _kind_table(
  mass: np.ndarray,
  kinds: dict[Any, np.ndarray],
  by_text: dict[Any, dict[str, np.ndarray]],
  templates: list[int],
) -> tuple[list[str], list[list[Any]]]:
  whole, rows = mass.mean(axis=1), []
  for kind, which in kinds.items():
    of = by_text[kind]
    mean = float(whole[which].mean()) if which.any() else None
    row = [str(kind), int(which.sum()), mean]
    ratio = of_units(of["ratio"], of["in"], templates)
    matched = of_units(of["matched"], of["matched in"], templates)
    row += ends_of(ratio) if len(ratio) > 1 else [None] * 3
    # The mean of logarithms, as the claims have it.
    ends = np.exp(ends_of(matched)).tolist() if len(matched) > 1 else [None] * 3
    rows.append(row + ends)
  header = ["kind", "queries", "mass"]
  header += ends_columns("over_even", "over_others")
  return header, rows


def _length_table(
  losses: dict[Hidden, np.ndarray], lengths: list[int], apart: list[int]
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["tokens", "loss"], []
  for what in (Hidden.FIRST, Hidden.NEXT):
    header += [f"{what} hidden", f"{what}, low", f"{what}, high"]
  plain = losses[Hidden.NOTHING]
  for tokens in lengths:
    row = [tokens, float(plain[:, : tokens - 1].mean())]
    for what in (Hidden.FIRST, Hidden.NEXT):
      change = (losses[what] - plain)[:, : tokens - 1].mean(axis=1)
      row += ends_of(by_template(change, {"templates": apart}))
    rows.append(row)
  return header, rows
