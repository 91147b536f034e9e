"""From which layer on hiding position 0 takes the sink away.

Hidden at every layer, position 0 only hands the sink on to position 1: the
model decides where its sink is in its first layers. Hidden later, the sink is
gone. `late_layer` finds where, on the model at hand.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.swap_texts import parse_swaps
from sinkjax.metrics.sinks import attention_entropy, sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.intervene import intervene

CONDITIONS = ("with the sink", "sink hidden")
"""The names of a pair of runs: as the model is, and with position 0 hidden."""

KEYS = 8
"""Positions at which a sink is looked for; a text must have more tokens."""

EPS = 0.3
"""A head has a sink where its score exceeds this."""

TEXTS = 6
"""As many texts decide on the layer."""


def _rows(subject: Subject, texts: str) -> list[list[int]]:
  """The ids of every text as it stands, its swaps not made."""
  whole = {swap.text: swap.before for swap in parse_swaps(texts)}
  encode = subject.tokenizer.encode
  return [subject.prefix + encode(text) for text in whole.values()]


def texts_of(subject: Subject, texts: str, tokens: int) -> np.ndarray:
  """[P, T] ids of the texts that are long enough.

  Args:
    subject: whose tokenizer and prefix.
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    tokens: T.

  Raises:
    ValueError: if fewer than two are.
  """
  rows = [row[:tokens] for row in _rows(subject, texts) if len(row) >= tokens]
  if len(rows) < 2:
    raise ValueError(
      f"{len(rows)} texts have {tokens} tokens; at least 2 are needed"
    )
  return np.array(rows)


def observe(pattern):
  """Sink score of the first keys, [B, H, K], and evenness [B, H]."""
  scores = [sink_score(pattern, key=k) for k in range(KEYS)]
  return jnp.stack(scores, -1), attention_entropy(pattern, normalize=True)


def loss_from(logits, tokens, start: int):
  """Mean loss of the tokens from `start` on, [B]."""
  picked = jax.nn.log_softmax(logits[:, start - 1 : -1].astype(jnp.float32))
  taken = jnp.take_along_axis(picked, tokens[:, start:, None], -1)
  return -jnp.mean(taken[..., 0], axis=-1)


def sweep(
  subject: Subject,
  ids: np.ndarray,
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Position 0 hidden from layer l on, for every l, and never.

  Args:
    subject: the model; its weights in memory.
    ids: [P, T].
    progress: called with the number of passes done.

  Returns:
    Sink scores [L + 1, L, P, H, K], evenness [L + 1, L, P, H] and loss
    [L + 1, P]; the last entry hides nothing.
  """
  f, tokens, found = forward(subject.cfg), jnp.asarray(ids), []

  @jax.jit
  def hidden_from(params, tokens, layer):
    g = intervene(f, {"scores": knockout(0, from_layer=layer)})
    out = capture(g, {"seen": ("pattern", observe)})(params, tokens)
    return (*out.trace["seen"], loss_from(out.logits, tokens, KEYS))

  for layer in range(subject.cfg.n_layers + 1):
    out = hidden_from(subject.params, tokens, jnp.asarray(layer))
    found.append(jax.tree.map(np.asarray, out))
    progress(layer + 1)
  scores, even, loss = (np.stack(x) for x in zip(*found, strict=True))
  return scores, even, loss


def rates(scores: np.ndarray, eps: float) -> np.ndarray:
  """[..., P, K] share of heads with a sink, from scores [..., L, P, H, K]."""
  return (scores > eps).mean(axis=(-4, -2))


def late_layer(scores: np.ndarray, eps: float) -> int:
  """The layer from which hiding leaves the fewest sinks, wherever they are.

  Args:
    scores: of `sweep`.
    eps: a head has a sink where its score exceeds this.
  """
  anywhere = rates(scores, eps).sum(axis=-1).mean(axis=-1)
  return int(np.argmin(anywhere[:-1]))


def with_layer(subject: Subject, config: Any) -> Any:
  """`config` with `from_layer` found if it is `None`, and checked.

  Args:
    subject: the model; its weights in memory.
    config: with `texts` and `from_layer`.

  Raises:
    ValueError: for a layer that there is not.

  Cost: L + 1 forward passes of `TEXTS` texts, where it is `None`.
  """
  layers = subject.cfg.n_layers
  if config.from_layer is None:
    rows = _rows(subject, config.texts)[:TEXTS]
    shortest = min(map(len, rows))
    scores, _, _ = sweep(subject, np.array([row[:shortest] for row in rows]))
    return dataclasses.replace(config, from_layer=late_layer(scores, EPS))
  if not 0 <= config.from_layer < layers:
    raise ValueError(
      f"from_layer must be in [0, {layers}), got {config.from_layer}"
    )
  return config
