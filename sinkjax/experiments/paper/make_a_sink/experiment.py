"""Sinks made and taken away by edits: what is run and measured.

Axes: P texts, T tokens, L layers, D dimensions, S keys.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.key_rates import (
  check_at,
  rate_at,
  rate_elsewhere,
  received,
)
from sinkjax.experiments.shared.large_dimensions import large_and_next
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.experiments.shared.watched import watched
from sinkjax.transforms.attention_edits import SeesOnly
from sinkjax.transforms.find_sinks import life_of
from sinkjax.transforms.token_edits import AtTokens


class Case(enum.StrEnum):
  """What is done; the values are keys of recorded results."""

  PLAIN = "as it is"
  ALONE = "sees itself alone"
  NEIGHBOUR = "sees the token before alone"
  VARIANCE = "attention as large as the first's"
  NORM = "norm of the first"
  STATE = "state of the first"
  DIMS = "large dimensions of the first"
  OTHERS = "other dimensions as large"
  AVERAGE = "first given an average"
  CONTROL = "control given an average"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    at: the token that is made a sink; the one before it is the control of what
      is done to position 0.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts.
  """

  count: int = 3
  tokens: int = 64
  at: int = 16
  eps: float = 0.3
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Seen:
  """Of the unchanged model, means over texts.

  Attributes:
    states: [L + 1, 2] norms of the first token and of the one at `at`, after
      the embedding and each layer.
    squares: [L, D] of the first token's state after each layer.
    first: [L, D] the first token's state itself.
    written: [L, 2] norms of what attention writes to both.
    average: [L, D] what attention writes to all tokens but the first.
  """

  states: np.ndarray
  squares: np.ndarray
  first: np.ndarray
  written: np.ndarray
  average: np.ndarray


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Sink rates by key and losses in every case.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for a token that does not count, or fewer than two texts that
      are long enough.

  Cost: eleven forward passes of the texts.
  """
  # The token before it must not be the first, nor one of the prefix.
  check_at(config.at, config.tokens, 2 + len(subject.prefix))
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  step = Steps(progress, len(ids) * (1 + len(Case)))
  seen = _look(subject, ids, config.at, step)
  rise, _ = life_of(seen.states[:, 0])
  large, _ = large_and_next(seen.squares[rise])
  loss = EditedLoss(subject, ids, step, {"received": ("pattern", received)})
  arrays = {}
  for case in Case:
    nats, _, watched = loss.seen(_edits(case, config, seen, rise, large))
    above = watched["received"] > config.eps  # [L, P, H, S]
    # The token that is changed predicts the next one worse; all others count.
    kept = np.delete(nats, config.at, axis=1)
    arrays |= {
      f"rates, {case}": above.mean(axis=(0, 2)).astype(np.float32),
      f"loss, {case}": kept.mean(axis=1),
    }
  templates = templates_of(ids, subject.template)
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "rise": rise,
      "dimensions": np.flatnonzero(large).tolist(),
      "first_over_other": (seen.states[:, 0] / seen.states[:, 1]).tolist(),
      "written_over_other": (seen.written[:, 0] / seen.written[:, 1]).tolist(),
    },
    tables={"cases.csv": _table(config, arrays, {"templates": templates})},
    arrays=arrays,
  )


def _look(subject: Subject, ids: np.ndarray, at: int, step: Steps) -> Seen:
  pair = np.array([0, at])

  def states(x: jax.Array) -> dict[str, jax.Array]:
    return {"pair": jnp.linalg.norm(x[:, pair], axis=-1), "first": x[:, 0]}

  def written(x: jax.Array) -> dict[str, jax.Array]:
    norms = jnp.linalg.norm(x[:, pair], axis=-1)
    return {"pair": norms, "average": x[:, 1:].mean(axis=1)}

  watch = {
    "start": ("embed", states),
    "states": ("resid_post", states),
    "written": ("attn_out", written),
  }
  out = watched(subject, ids, watch, step)
  norms = [out[name]["pair"] for name in ("start", "states")]
  whole = {
    "states": np.concatenate(norms),
    "first": out["states"]["first"],
    "written": out["written"]["pair"],
    "average": out["written"]["average"],
  }
  mean = {name: value.mean(axis=1) for name, value in whole.items()}
  squares = np.square(whole["first"]).mean(axis=1)
  return Seen(squares=squares, **mean)


def _edits(
  case: Case, config: Config, seen: Seen, rise: int, large: np.ndarray
) -> dict[str, Any]:
  """All of one kind, whatever the case: one compiled program."""
  layers, width = seen.first.shape
  tokens = np.arange(config.tokens)
  nowhere = tokens < 0
  early = np.arange(layers) <= rise
  # attention: what it writes to `position` becomes by x + to up to the rise.
  by, to, position = np.ones(layers), np.zeros((layers, width)), -1
  if case is Case.VARIANCE:
    by, position = seen.written[:, 0] / seen.written[:, 1], config.at
  if case in (Case.AVERAGE, Case.CONTROL):
    by, to = np.zeros(layers), seen.average
    position = 0 if case is Case.AVERAGE else config.at - 1
  # state: after the rise, some dimensions of the token at `at`.
  factor, values, dims = 1.0, np.zeros(width), np.zeros(width, bool)
  if case is Case.STATE:
    factor, dims, values = 0.0, ~dims, seen.first[rise]
  if case is Case.NORM:
    factor = seen.states[rise + 1, 0] / seen.states[rise + 1, 1]
    dims = ~dims
  if case in (Case.DIMS, Case.OTHERS):
    factor, dims, values = 0.0, large, seen.first[rise] * large
    if case is Case.OTHERS:
      dims, values = moved(dims, values)
  sees = case in (Case.ALONE, Case.NEIGHBOUR)
  f32 = jnp.float32
  return {
    "scores": SeesOnly(
      jnp.asarray(tokens == config.at if sees else nowhere),
      jnp.asarray(int(case is Case.NEIGHBOUR)),
    ),
    "attn_out": AtTokens(
      jnp.asarray(by, f32)[:, None, None, None],
      jnp.asarray(to, f32)[:, None, None],
      jnp.asarray(early),
      jnp.asarray(tokens == position),
    ),
    "resid_post": AtTokens(
      jnp.asarray(factor, f32),
      jnp.asarray(values, f32),
      jnp.asarray(np.arange(layers) == rise),
      jnp.asarray(tokens == config.at),
      jnp.asarray(dims),
    ),
  }


def moved(
  dims: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Dimensions [D] and their values [D] by half of the width.

  Others of the same number and size. One that meets a large dimension goes on
  to the next free one.

  >>> dims, values = np.array([1, 0, 0, 0], bool), np.array([5.0, 0, 0, 0])
  >>> tuple(x.tolist() for x in moved(dims, values))
  ([False, False, True, False], [0.0, 0.0, 5.0, 0.0])
  """
  width = len(dims)
  to, new = np.zeros(width, bool), np.zeros(width)
  for at in np.flatnonzero(dims):
    place = (at + width // 2) % width
    while dims[place] or to[place]:
      place = (place + 1) % width
    to[place], new[place] = True, values[at]
  return to, new


def _table(
  config: Config, arrays: dict[str, np.ndarray], units: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["case"], []
  header += ends_columns("first", "token", "elsewhere", "loss")
  for case in Case:
    rates = arrays[f"rates, {case}"].astype(float)
    row: list[Any] = [str(case)]
    for values in (
      rate_at(rates, 0),
      rate_at(rates, config.at),
      rate_elsewhere(rates, config.at),
      arrays[f"loss, {case}"],
    ):
      row += ends_of(by_template(values, units))
    rows.append(row)
  return header, rows
