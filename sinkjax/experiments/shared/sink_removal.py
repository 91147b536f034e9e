"""Takes the sink away: hides position 0 from the layer where that works best.

Hidden at every layer, position 0 only passes the sink on to position 1: the
model settles where its sink is in its first layers. Hidden from a later layer
on, no position replaces it. `late_layer` finds that layer on a given model.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.swap_texts import parse_swaps
from sinkjax.metrics.sinks import attention_entropy, sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import knockout
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene


class Condition(enum.StrEnum):
  """A pair of runs: the model unchanged, and with position 0 hidden.

  The values are keys of recorded results and names of their columns.
  """

  SINK = "with the sink"
  HIDDEN = "sink hidden"


KEYS = 8
"""A sink is looked for at so many first positions: a hidden one moves to the
next few, and even short texts have more tokens."""

EPS = 0.3
"""A head has a sink where its score exceeds this: the threshold of Gu et al.,
arXiv 2410.10781, section 3."""

TEXTS = 6
"""So many texts decide on the layer: all twelve choose the same one on
SmolLM2-135M."""


def _rows(subject: Subject, texts: str) -> list[list[int]]:
  """The ids of the user's texts, or of every one in its original wording."""
  if subject.texts is not None:
    return subject.encode(subject.texts)
  originals = {swap.text: swap.before for swap in parse_swaps(texts)}
  return subject.encode(list(originals.values()))


def texts_of(subject: Subject, texts: str, tokens: int) -> np.ndarray:
  """[P, T] ids of the texts that are long enough.

  Args:
    subject: whose tokenizer and prefix.
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used, and
      none of it where the user gave texts.
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


def hide(fn: Callable, layer: Any, key: Any = 0) -> Callable:
  """`fn` with one position hidden from every other token.

  Args:
    fn: `forward(cfg)`.
    layer: the first layer at which it is hidden.
    key: the position; 0 is the sink.
  """
  return intervene(fn, {"scores": knockout(key, from_layer=layer)})


def observe(pattern: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(sink scores of the first keys [B, H, K], normalized entropy [B, H])."""
  scores = [sink_score(pattern, key=k) for k in range(KEYS)]
  return jnp.stack(scores, -1), attention_entropy(pattern, normalize=True)


def loss_from(logits: jax.Array, tokens: jax.Array, start: int) -> jax.Array:
  """Mean loss of the tokens from `start` on, [B]."""
  # In bfloat16 a loss has fewer than three digits, and changes that are
  # reported may be smaller than that.
  logs = jax.nn.log_softmax(logits[:, start - 1 : -1].astype(jnp.float32))
  taken = jnp.take_along_axis(logs, tokens[:, start:, None], -1)
  return -jnp.mean(taken[..., 0], axis=-1)


def sweep(
  subject: Subject,
  ids: np.ndarray,
  *,
  progress: Callable[[int], Any] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Hides position 0 from layer l on, for every l, and then not at all.

  Args:
    subject: the model; its weights in memory.
    ids: [P, T].
    progress: called with the number of passes done.

  Returns:
    Sink scores [L + 1, L, P, H, K], normalized entropy [L + 1, L, P, H] and
    loss [L + 1, P]; the last entry hides nothing.
  """
  f, tokens, passes = forward(subject.cfg), jnp.asarray(ids), []

  # The layer is an argument, not a constant, so that one compiled program
  # serves every layer.
  @jax.jit
  def hidden_from(
    params: Any, tokens: jax.Array, layer: jax.Array
  ) -> tuple[jax.Array, ...]:
    watched = capture(hide(f, layer), {"seen": ("pattern", observe)})
    out = watched(params, tokens)
    return (*out.trace["seen"], loss_from(out.logits, tokens, KEYS))

  # From layer L on means nowhere: the unchanged model is measured by the same
  # program as the others.
  for layer in range(subject.cfg.n_layers + 1):
    hidden = jnp.asarray(layer)
    passes.append(
      subject.kept("layer", hidden_from, subject.params, tokens, hidden)
    )
    progress(layer + 1)
  scores, entropy, loss = (np.stack(x) for x in zip(*passes, strict=True))
  return scores, entropy, loss


def rates(scores: np.ndarray, eps: float) -> np.ndarray:
  """[..., P, K] share of heads with a sink, from scores [..., L, P, H, K]."""
  return (scores > eps).mean(axis=(-4, -2))


def late_layer(scores: np.ndarray, eps: float) -> int:
  """The layer from which hiding leaves the fewest sinks at any position.

  Args:
    scores: of `sweep`.
    eps: a head has a sink where its score exceeds this.
  """
  # Summed over positions, since a hidden sink may move to a later one.
  anywhere = rates(scores, eps).sum(axis=-1).mean(axis=-1)
  # The last entry hides nothing, so it is no layer to choose.
  return int(np.argmin(anywhere[:-1]))


def resolve_from_layer(subject: Subject, config: Any) -> Any:
  """`config` with `from_layer` checked, and found where it is `None`.

  Args:
    subject: the model; its weights in memory.
    config: with `texts` and `from_layer`.

  Raises:
    ValueError: for a layer that the model does not have.

  Cost: L + 1 forward passes of `TEXTS` texts, where it is `None`.
  """
  layers = subject.cfg.n_layers
  if config.from_layer is None:
    rows = _rows(subject, config.texts)[:TEXTS]
    # Texts are cut, not padded: padding would be queries of the sink score.
    shortest = min(map(len, rows))
    scores, _, _ = sweep(subject, np.array([row[:shortest] for row in rows]))
    return dataclasses.replace(config, from_layer=late_layer(scores, EPS))
  if not 0 <= config.from_layer < layers:
    raise ValueError(
      f"from_layer must be in [0, {layers}), got {config.from_layer}"
    )
  return config
