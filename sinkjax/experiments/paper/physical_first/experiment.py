"""Sinks of texts whose position indices or BOS are moved.

Axes: P texts, T tokens, L layers, H heads, S keys.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.key_rates import (
  LAST,
  check_at,
  rate_at,
  rate_elsewhere,
  received,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.scoring import nats_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture


class Case(enum.StrEnum):
  """What is moved; the values are keys of recorded results."""

  PLAIN = "as it is"
  SHIFTED = "all indices shifted"
  SWAPPED = "first index exchanged"
  PERMUTED = "indices permuted"
  BOS_FIRST = "BOS first"
  BOS_MOVED = "BOS in the middle"


INDEXED = (Case.SHIFTED, Case.SWAPPED, Case.PERMUTED)
"""Cases that need a model with positions."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    shift: of all indices.
    at: the token that exchanges its index with the first, and where BOS is put.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts and of the permutations.
  """

  count: int = 3
  tokens: int = 64
  shift: int = 32
  at: int = 16
  eps: float = 0.3
  seed: int = 0


class Input(NamedTuple):
  """The texts of one case.

  Attributes:
    ids: [P, T].
    index: [P, T] the position index of each token.
    zero: [P] the token whose index is the least.
  """

  ids: np.ndarray
  index: np.ndarray
  zero: np.ndarray


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Sink rates by key in every case.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for indices beyond the model's context, a token that does not
      count, or fewer than two texts that are long enough.

  Cost: a forward pass of the texts for each case.
  """
  _check(subject, config)
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  inputs = inputs_of(subject, config, ids)
  step = Steps(progress, len(ids) * len(inputs))
  run = _runner(subject)
  by_key, losses = {}, {}
  for case, given in inputs.items():
    by_key[case], losses[case] = _scores(subject, run, given, config.eps, step)
  templates = templates_of(ids, subject.template)
  arrays = {}
  for case, rates in by_key.items():
    arrays |= {
      f"rates, {case}": rates.astype(np.float32),
      f"zero, {case}": inputs[case].zero,
      f"loss, {case}": losses[case],
    }
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "cases": [str(case) for case in inputs],
      "bos": subject.tokenizer.bos_id if Case.BOS_FIRST in inputs else None,
      "bos_is_first": subject.has_bos(),
      "positions": subject.cfg.positions,
    },
    tables={
      "cases.csv": _table(config, arrays, inputs, {"templates": templates})
    },
    arrays=arrays,
  )


def _check(subject: Subject, config: Config) -> None:
  check_at(config.at, config.tokens)
  if config.shift + config.tokens > subject.cfg.max_len:
    raise ValueError(
      f"shift + tokens must be at most the model's context of "
      f"{subject.cfg.max_len}, got {config.shift} + {config.tokens}"
    )


def inputs_of(
  subject: Subject, config: Config, ids: np.ndarray
) -> dict[Case, Input]:
  """The texts of every case that the model allows.

  Args:
    subject: whose positions, prefix and BOS.
    config: what is moved.
    ids: [P, T] as the model is given them.
  """
  plain = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
  first = np.zeros(len(ids), int)
  found = {Case.PLAIN: Input(ids, plain, first)}
  if subject.cfg.positions != "none":
    found[Case.SHIFTED] = Input(ids, plain + config.shift, first)
    swapped = plain.copy()
    swapped[:, [0, config.at]] = swapped[:, [config.at, 0]]
    found[Case.SWAPPED] = Input(ids, swapped, first + config.at)
    permuted = _permuted(ids.shape, config.seed)
    found[Case.PERMUTED] = Input(ids, permuted, permuted.argmin(axis=1))
  bos = getattr(subject.tokenizer, "bos_id", None)
  if bos is not None:
    # Without the prefix, so that BOS stands where it is put and nowhere else.
    words = ids[:, int(subject.has_bos()) :]
    for case, at in ((Case.BOS_FIRST, 0), (Case.BOS_MOVED, config.at)):
      moved = np.insert(words, at, bos, axis=1)[:, : ids.shape[1]]
      found[case] = Input(moved, plain, first)
  return found


def _permuted(shape: tuple[int, int], seed: int) -> np.ndarray:
  """[P, T] permutations whose 0 is neither first nor among the last keys."""
  rng, (count, length) = np.random.default_rng(seed), shape
  found = np.stack([rng.permutation(length) for _ in range(count)])
  for row in found:
    to, at = rng.integers(1, length - LAST), int(row.argmin())
    row[[at, to]] = row[[to, at]]
  return found


def _runner(subject: Subject) -> Callable:
  """Sink scores of all keys [P, L, H, S] and losses [P, T - 1]."""
  f = capture(forward(subject.cfg), {"received": ("pattern", received)})

  @jax.jit
  def run(
    params: Any, ids: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    out = f(params, ids, positions=index)
    nats = nats_of(out.logits[:, :-1], ids[:, 1:])
    return jnp.moveaxis(out.trace["received"], 1, 0), nats

  return run


def _scores(
  subject: Subject, run: Callable, given: Input, eps: float, step: Steps
) -> tuple[np.ndarray, np.ndarray]:
  """(sink rates [P, S] of every key, mean losses [P])."""
  size = min(8, len(given.ids))
  pairs = zip(batches(given.ids, size), batches(given.index, size), strict=True)
  rates, losses = [], []
  for (_, count, ids), (_, _, index) in pairs:
    scores, nats = subject.kept(
      "batch", run, subject.params, jnp.asarray(ids), jnp.asarray(index)
    )
    rates.append((scores > eps).mean(axis=(1, 2))[:count])
    losses.append(nats.astype(np.float64).mean(axis=1)[:count])
    step(count)
  return np.concatenate(rates), np.concatenate(losses)


def _table(
  config: Config,
  arrays: dict[str, np.ndarray],
  inputs: dict[Case, Input],
  units: dict[str, Any],
) -> tuple[list[str], list[list[Any]]]:
  table = []
  for case, given in inputs.items():
    rates = arrays[f"rates, {case}"].astype(float)
    second = None
    if case in INDEXED[1:]:
      second = given.zero
    elif case is Case.BOS_MOVED:
      second = np.full(len(rates), config.at)
    others = rate_elsewhere(rates, *([] if second is None else [second]))
    row: list[Any] = [str(case)]
    for values in (
      rate_at(rates, 0),
      None if second is None else rate_at(rates, second),
      others,
      arrays[f"loss, {case}"],
    ):
      empty: list[Any] = [None] * 3
      row += empty if values is None else ends_of(by_template(values, units))
    table.append(row)
  header = ["case"]
  header += ends_columns("first", "moved", "elsewhere", "loss")
  return header, table
