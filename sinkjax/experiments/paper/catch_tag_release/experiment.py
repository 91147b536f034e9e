"""What sinks write, what of later tokens it is, and the loss without it.

Axes: L layers, R roles, P texts, H heads, T tokens.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.roc import auroc
from sinkjax.experiments.harness.stats import (
  ends_columns,
  ends_of,
  rank_correlation,
)
from sinkjax.experiments.paper.catch_tag_release import passes
from sinkjax.experiments.paper.catch_tag_release.roles import (
  START,
  Placed,
  Role,
  place,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.find_sinks import find_sinks

BATCH = 8
"""Texts of one pass: at 64 tokens the logits of two passes are 200 MB for a
vocabulary of 50,000."""

FOLDS = 2
"""Directions of one half of the texts are tried on the other."""


class Removed(enum.StrEnum):
  """What is taken out; the values are keys of recorded results."""

  FIRST = "tag of position 0"
  RANDOM = "as much at random"
  OTHER = "tag of another early token"
  DIFFERENCES = "differences along the tag of position 0"
  DIFFERENCES_RANDOM = "as much at random, differences"
  FOUND = "tag of the found sink"
  FOUND_RANDOM = "as much at random, found sink"


SHARES = ("heads", "heads squared", "attention", "attention squared", "stream")
"""Shares of `passes.look`; those "squared" are of the squared norm, the others
of the variance."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    seed: of the choice of texts, of the other token and of directions.
  """

  count: int = 5
  tokens: int = 64
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Shares along tags, losses without them, and what the tags tell.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for texts of too few tokens, fewer than two that begin apart, or
      a model in which a head's output is no linear map of what it mixes.

  Cost: seventeen forward passes.
  """
  passes.check(subject.cfg)
  least = START + subject.template + 2
  if config.tokens < least:
    raise ValueError(f"tokens must be at least {least}, got {config.tokens}")
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  templates = templates_of(ids, subject.template)
  folds = folds_of(templates)
  step = Steps(progress, len(ids) * (3 + 2 * len(Removed)))
  f = forward(subject.cfg)
  sinks = subject.kept("sinks", lambda: find_sinks(f, subject.params, ids).mask)
  step(len(ids))
  placed = place(sinks, config.seed, subject.template)
  seen = _look(subject, ids, placed, step)
  told = _probe(subject, ids, placed, seen["tags"], folds, step)
  lost = _losses(subject, ids, placed, seen, config.seed, step)
  found = placed.having(Role.FOUND)
  numbers = {
    "texts": len(ids),
    "templates": templates,
    "width": subject.cfg.d_model,
    "found": found,
  }
  return Result(
    numbers=numbers,
    tables={
      "shares.csv": _share_table(seen, numbers),
      "losses.csv": _loss_table(lost, numbers),
    },
    arrays={
      # Layers count alike: each reads the stream anew.
      **{
        f"{what}, {role}": seen[what][:, r].mean(axis=0)
        for what in (*SHARES, "caught")
        for r, role in enumerate(Role)
      },
      **{
        f"{what} by layer, {role}": seen[what][:, r][
          :, placed.having(role)
        ].mean(axis=1)
        for what in SHARES
        for r, role in enumerate(Role)
        if len(placed.having(role))
      },
      **told,
      **{f"{what}, {which}": x for (what, which), x in lost.items()},
    },
  )


def folds_of(templates: Sequence[int]) -> np.ndarray:
  """[P] the half to which a text belongs; those of one template share it.

  Raises:
    ValueError: where all texts begin alike.

  >>> folds_of([0, 1, 0, 3]).tolist()
  [0, 1, 0, 0]
  """
  groups = list(dict.fromkeys(templates))
  if len(groups) < FOLDS:
    raise ValueError("the texts all begin alike; at least 2 must begin apart")
  return np.array([groups.index(one) % FOLDS for one in templates])


def _look(
  subject: Subject, ids: np.ndarray, placed: Placed, step: Steps
) -> dict[str, np.ndarray]:
  """Tags [L, R, P, D], the rest of `passes.look` [L, R, P]."""
  run, found = passes.look(subject.cfg), []
  for at, count, rows in batches(ids, min(BATCH, len(ids))):
    which = np.resize(np.arange(at, at + count), len(rows))
    out = subject.kept(
      "look",
      run,
      subject.params,
      rows,
      placed.keys[:, which],
      placed.queries[:, which],
    )
    found.append({k: np.asarray(x)[:, :, :count] for k, x in out.items()})
    step(count)
  joined = {k: np.concatenate([x[k] for x in found], axis=2) for k in found[0]}
  return {
    k: x if k == "tags" else x.astype(np.float64) for k, x in joined.items()
  }


def _probe(
  subject: Subject,
  ids: np.ndarray,
  placed: Placed,
  tags: np.ndarray,
  folds: np.ndarray,
  step: Steps,
) -> dict[str, np.ndarray]:
  """How well coefficients rank queries by their attention to position 0.

  "rank" and "auroc" [L, P] of the attention's output and of the stream, along
  the mean tag of the other half's texts; 0 and 0.5 where all queries give the
  same, which tells nothing.
  """
  roles = (Role.FIRST, Role.OTHER)
  # [L, 2, P, D]: the direction that each text is tried with.
  other = np.stack(
    [tags[:, :2][:, :, folds != fold].mean(axis=2) for fold in folds], axis=2
  )
  run, found = passes.probe(subject.cfg), []
  for at, count, rows in batches(ids, min(BATCH, len(ids))):
    which = np.resize(np.arange(at, at + count), len(rows))
    out = subject.kept("probe", run, subject.params, rows, other[:, :, which])
    found.append({k: np.asarray(x)[..., :count, :] for k, x in out.items()})
    step(count)
  seen = {k: np.concatenate([x[k] for x in found], axis=-2) for k in found[0]}
  late = placed.queries[0, 0]
  mass = seen.pop("mass")[..., late]
  told = {}
  for what, x in seen.items():
    for r, role in enumerate(roles):
      score = x[:, r][..., late]
      told[f"rank, {what}, {role}"] = np.stack(
        [
          np.nan_to_num(rank_correlation(a, b))
          for a, b in zip(score, mass, strict=True)
        ]
      )
      told[f"auroc, {what}, {role}"] = np.stack(
        [
          [_above_median(a, b) for a, b in zip(*both, strict=True)]
          for both in zip(score, mass, strict=True)
        ]
      )
  return told


def _above_median(score: np.ndarray, mass: np.ndarray) -> float:
  """AUROC by which a score tells the half that attends more."""
  more = mass > np.median(mass)
  # Where all attend alike, no half attends more.
  return float(auroc(score, more)) if more.any() else 0.5


def _losses(
  subject: Subject,
  ids: np.ndarray,
  placed: Placed,
  seen: dict[str, np.ndarray],
  seed: int,
  step: Steps,
) -> dict[tuple[str, Removed], np.ndarray]:
  """[P] change of the loss, and KL, by what is taken out.

  Means over the tokens whose attention outputs are changed; 0 for texts
  without a found sink.
  """
  run, tags = passes.without(subject.cfg), seen["tags"]
  level = seen["level"].astype(tags.dtype)
  none = np.zeros_like(level[:, 0])
  random = np.random.default_rng(seed).normal(size=tags[:, 0].shape)
  random = random.astype(tags.dtype)
  first, other, found, _ = np.moveaxis(tags, 1, 0)
  moves = {
    Removed.FIRST: (first, first, none, 0),
    Removed.RANDOM: (first, random, none, 0),
    Removed.OTHER: (other, other, none, 1),
    Removed.DIFFERENCES: (first, first, level[:, 0], 0),
    Removed.DIFFERENCES_RANDOM: (first, random, level[:, 0], 0),
    Removed.FOUND: (found, found, none, 2),
    Removed.FOUND_RANDOM: (found, random, none, 2),
  }
  losses = {}
  for removed, (read, write, kept, role) in moves.items():
    parts = []
    for at, count, rows in batches(ids, min(BATCH, len(ids))):
      which = np.resize(np.arange(at, at + count), len(rows))
      queries = placed.queries[role, which]
      out = subject.kept(
        "without",
        run,
        subject.params,
        rows,
        read[:, which],
        write[:, which],
        queries,
        kept[:, which],
      )
      some = queries[:count, :-1]
      size = np.maximum(some.sum(axis=1), 1)
      parts.append(
        [np.where(some, x[:count], 0).sum(axis=1) / size for x in out]
      )
      step(2 * count)
    change, kl = np.concatenate(parts, axis=1).astype(np.float64)
    losses["change", removed], losses["kl", removed] = change, kl
  return losses


def of_role(
  values: np.ndarray, role: Role, numbers: dict[str, Any]
) -> np.ndarray:
  """[n] values of the texts that have a role, those of one template averaged.

  Args:
    values: [P].
    role: whose.
    numbers: of a result.
  """
  templates = list(numbers["templates"])
  if role in (Role.FIRST, Role.OTHER):
    return by_template(values, {"templates": templates})
  found = [int(i) for i in numbers["found"]]
  if not found:
    return np.zeros(0)
  return by_template(
    values[found], {"templates": [templates[i] for i in found]}
  )


def _share_table(
  seen: dict[str, np.ndarray], numbers: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["of", "texts"], []
  header += ends_columns("caught", *SHARES)
  for r, role in enumerate(Role):
    row = [str(role), 0]
    for what in ("caught", *SHARES):
      values = of_role(seen[what][:, r].mean(axis=0), role, numbers)
      row[1] = len(values)
      row += ends_of(values) if len(values) > 1 else [None] * 3
    rows.append(row)
  return header, rows


def _loss_table(
  lost: dict[tuple[str, Removed], np.ndarray], numbers: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["without", "texts"], []
  header += ends_columns("change", "kl")
  for removed in Removed:
    row = [str(removed), 0]
    for what in ("change", "kl"):
      values = of_role(lost[what, removed], role_of(removed), numbers)
      row[1] = len(values)
      row += ends_of(values) if len(values) > 1 else [None] * 3
    rows.append(row)
  return header, rows


def role_of(removed: Removed) -> Role:
  """The role whose texts a removal is measured on."""
  found = removed in (Removed.FOUND, Removed.FOUND_RANDOM)
  return Role.FOUND if found else Role.FIRST
