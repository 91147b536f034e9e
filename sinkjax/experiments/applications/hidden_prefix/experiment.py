"""Searches a prefix, and measures sinks, ranges and 8 bits with and without."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.prompt_corpus import Text, apart
from sinkjax.experiments.shared.sink_removal import EPS
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.hidden_prefix import (
  Step,
  behind,
  greedy_prefix,
  log_range,
)
from sinkjax.inference.quantize_linear import (
  inputs_of,
  limits_of,
  quantize_inputs,
  quantize_weights,
  range_observers,
)
from sinkjax.inference.scoring import nats_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

FEWEST = 4
"""Texts, at least: two that the search reads and two that are measured."""

BATCH = 8
"""Texts in one forward pass."""


class Condition(enum.StrEnum):
  """What stands before the text; keys of recorded results."""

  NONE = "no prefix"
  KEPT = "no prefix, first token kept"
  FOUND = "found prefix"
  RANDOM = "random prefix"
  BOS = "BOS"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    search: texts that the search reads, and that set the ranges of 8 bits; the
      others are measured.
    candidates: tokens of the vocabulary that are tried at each place, special
      ones among them.
    most: tokens of the prefix, at most.
    gain: least fall of the mean logarithm of the largest activations by one
      more token of the prefix.
    bits: of weights and activations.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts and candidates.
  """

  count: int = 3
  tokens: int = 48
  search: int = 6
  candidates: int = 40
  most: int = 3
  # A tenth of the largest activation, the margin of ratios.
  gain: float = 0.1
  bits: int = 8
  eps: float = EPS
  seed: int = 0


class Seen(NamedTuple):
  """Of texts behind a prefix.

  Attributes:
    range: [P] of `log_range`, over the texts' own tokens.
    first: [L, P, H] mean attention on the row's position 0.
    own: [L, P, H] mean attention on the text's first token.
    limits: {site: [L, 2]} static ranges over these texts.
  """

  range: np.ndarray
  first: np.ndarray
  own: np.ndarray
  limits: dict[str, jax.Array]


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Searches on some texts, and measures on the others.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (forward passes done, in all, at most).

  Raises:
    ValueError: for too few texts, or a model whose inputs cannot be rounded.

  Cost: candidates times `most` forward passes of the texts that the search
    reads, and four of all texts for each condition.
  """
  if config.candidates < 2 * config.most:
    raise ValueError(
      f"candidates must be at least {2 * config.most}, twice most="
      f"{config.most}, to leave as many for a control; got {config.candidates}"
    )
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=FEWEST
  )
  first = min(config.search, len(ids) // 2)
  found, held = apart(ids, first, config.seed, subject.template)
  tokens = candidates_of(subject, config)
  steps = 1 + config.most * len(tokens) + 4 * len(Condition)
  model = Model(subject, config, Steps(progress, steps))
  prefix, path = greedy_prefix(
    lambda one: float(model.look(found, one).range.mean()),
    tokens,
    most=config.most,
    gain=config.gain,
  )
  # One token at least: what a model without massive activations is given.
  prefix = prefix or [path[0].token]
  # Random tokens come last; a control must not be what was found.
  others = [token for token in tokens if token not in prefix]
  before = {
    Condition.NONE: [],
    Condition.KEPT: [],
    Condition.FOUND: prefix,
    Condition.RANDOM: others[-len(prefix) :],
  }
  if subject.tokenizer.bos_id is not None:
    before[Condition.BOS] = [subject.tokenizer.bos_id]
  measured = {
    condition: model.measure(found, held, one, condition is Condition.KEPT)
    for condition, one in before.items()
  }
  templates = templates_of(held, subject.template)
  return _result(subject, config, before, path, measured, templates)


def candidates_of(subject: Subject, config: Config) -> list[int]:
  """Special tokens, a line end and a full stop, then random tokens."""
  tokenizer, size = subject.tokenizer, subject.cfg.vocab_size
  special = [tokenizer.bos_id, subject.cfg.eos_id]
  for sign in ("\n", "."):
    special += tokenizer.encode(sign)[:1]
  drawn = np.random.default_rng(config.seed).permutation(size).tolist()
  every = dict.fromkeys(x for x in [*special, *drawn] if x is not None)
  return list(every)[: config.candidates]


class Model:
  """The model behind any prefix: two programs for all of them.

  Args:
    subject: the model.
    config: what is run.
    step: called after each forward pass of some texts.
  """

  def __init__(self, subject: Subject, config: Config, step: Steps):
    self._params, self._config, self._step = subject.params, config, step
    self._cfg, f, self._kept = subject.cfg, forward(subject.cfg), subject.kept
    # Refuses a model that cannot be rounded before anything is searched.
    quantize_inputs(self._cfg, config.bits, ranges="token")
    self._rounded = jax.jit(quantize_weights)(self._params, config.bits)

    @jax.jit
    def look(params: Any, rows: jax.Array, own: jax.Array) -> dict[str, Any]:
      start = jnp.argmax(own)
      # The first token of a text sees too few keys to have a choice.
      late = (own & (jnp.arange(len(own)) > start)).astype(jnp.float32)

      def sinks(pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = late / late.sum()
        columns = pattern[..., 0], jnp.take(pattern, start, axis=-1)
        return tuple(jnp.einsum("bht,t->bh", x, weights) for x in columns)

      watch = range_observers(~own, sites=inputs_of(subject.cfg))
      watch |= {"sinks": ("pattern", sinks)}
      return capture(f, watch)(params, rows).trace

    @jax.jit
    def nats(params: Any, rows: jax.Array, edits: dict[str, Any]) -> jax.Array:
      logits = intervene(f, edits)(params, rows).logits
      return nats_of(logits[:, :-1], rows[:, 1:])

    self._look, self._nats = look, nats

  def look(
    self, ids: np.ndarray, prefix: Sequence[int], *, keep_first: bool = False
  ) -> Seen:
    """What is seen of texts behind a prefix.

    Args:
      ids: the texts.
      prefix: before each.
      keep_first: count the text's first token as a part of the prefix.
    """
    rows, own = behind(prefix, ids, self._config.most)
    if keep_first:
      own[len(prefix)] = False
    parts = []
    for _, count, batch in batches(rows, min(BATCH, len(rows))):
      out = self._kept(
        "look", self._look, self._params, jnp.asarray(batch), jnp.asarray(own)
      )
      parts.append(jax.tree.map(lambda x, n=count: x[:, :n], out))
    self._step()
    trace = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    ends = {site: trace[site] for site in inputs_of(self._cfg)}
    first, at = trace["sinks"]
    return Seen(log_range(ends), first, at, limits_of(ends))

  def loss(
    self,
    ids: np.ndarray,
    prefix: Sequence[int],
    limits: Mapping[str, jax.Array],
    *,
    rounded: bool,
    keep_first: bool,
  ) -> np.ndarray:
    """[P] mean loss of the texts' tokens after their first.

    Args:
      ids: the texts.
      prefix: before each; it is never rounded.
      limits: static ranges of the activations.
      rounded: weights and activations, or nothing.
      keep_first: leave the text's first token unrounded too.
    """
    rows, own = behind(prefix, ids, self._config.most)
    keep = ~own
    if keep_first:
      keep[len(prefix)] = True
    layers = np.full(self._cfg.n_layers, rounded)
    edits = quantize_inputs(
      self._cfg,
      jnp.asarray(self._config.bits, jnp.float32),
      ranges="tensor, static",
      keep=jnp.asarray(keep),
      layers=jnp.asarray(layers),
      limits=limits,
    )
    params = self._rounded if rounded else self._params
    parts = []
    for _, count, batch in batches(rows, min(BATCH, len(rows))):
      nats = self._kept("loss", self._nats, params, jnp.asarray(batch), edits)
      parts.append(nats.astype(np.float64)[:count])
    self._step()
    start = len(prefix)
    nats = np.concatenate(parts)[:, start : start + ids.shape[1] - 1]
    return nats.mean(axis=1)

  def measure(
    self,
    found: np.ndarray,
    held: np.ndarray,
    prefix: Sequence[int],
    keep_first: bool,
  ) -> tuple[Seen, np.ndarray, np.ndarray]:
    """(what is seen, loss, loss of the rounded model) of the held texts."""
    # Ranges are set on other texts, as where they are set before any is read.
    limits = self.look(found, prefix, keep_first=keep_first).limits
    seen = self.look(held, prefix)
    losses = [
      self.loss(held, prefix, limits, rounded=r, keep_first=keep_first)
      for r in (False, True)
    ]
    return seen, *losses


def _result(
  subject: Subject,
  config: Config,
  before: Mapping[Condition, list[int]],
  path: list[Step],
  measured: Mapping[Condition, tuple[Seen, np.ndarray, np.ndarray]],
  templates: list[int],
) -> Result:
  arrays: dict[str, np.ndarray] = {}
  units, rows = {"templates": templates}, []
  for condition, (seen, loss, rounded) in measured.items():
    own, first = (
      (x > config.eps).mean(axis=(0, 2)) for x in (seen.own, seen.first)
    )
    values = {
      "range": seen.range,
      "own_rate": own,
      "first_rate": first,
      "loss": loss,
      "rounded": rounded - loss,
    }
    arrays |= {f"{name}, {condition}": x for name, x in values.items()}
    row: list[Any] = [condition, len(before[condition])]
    for value in values.values():
      row += ends_of(by_template(value, units))
    rows.append(row)
  header = ["before the text", "tokens"]
  header += ends_columns(
    "log_range", "own_rate", "first_rate", "loss", "cost_of_bits"
  )
  for i, step in enumerate(path):
    arrays[f"search {i}"] = np.array(step.scores)
  decode = subject.tokenizer.decode
  return Result(
    numbers={
      "texts": len(templates),
      "templates": templates,
      "prefix": {str(c): list(x) for c, x in before.items()},
      "prefix_text": decode(before[Condition.FOUND]),
      "steps": [[s.token, s.score, s.taken] for s in path],
    },
    tables={"prefixes.csv": (header, rows)},
    arrays=arrays,
  )
