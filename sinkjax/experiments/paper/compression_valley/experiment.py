"""Entropy of the spectrum, first norm and sinks by layer: what is measured.

Axes: P texts, T tokens, L layers, C conditions, D dimensions. After the
embedding and after each layer there are L + 1 states.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_columns, ends_of
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.jacobian_runs import CONTROL_KEY
from sinkjax.experiments.shared.large_dimensions import large_and_next
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.metrics.collapse import (
  entropy_bound,
  first_row_share,
  spectral_entropy,
)
from sinkjax.metrics.norms import median, token_norms
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.find_sinks import life_of
from sinkjax.transforms.token_edits import AtTokens

FEWEST = 4
"""Tokens of a text: the first, the control, and two that make a spectrum."""


class Edit(enum.StrEnum):
  """What is taken away; the values are keys of recorded results."""

  NONE = "as it is"
  DIMS = "largest dimensions"
  OTHERS = "next largest dimensions"
  MLP = "MLP at position 0"
  NEIGHBOUR = "MLP at the control position"


STATES = ("entropy", "entropy of the rest", "bound", "norm")
"""What is seen of each state: entropies over the logarithm of the largest rank,
the bound of the first by the first row, and the logarithm of the first token's
norm over the median of the others'."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    eps: a head has a sink where its score exceeds this.
    seed: of the choice of texts.
  """

  count: int = 3
  tokens: int = 64
  eps: float = 0.3
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Entropy, norm and sinks by layer under every edit.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for fewer than two texts that are long enough.

  Cost: six forward passes, with the eigenvalues of two [T, T] a layer of
  every text in five of them.
  """
  control = CONTROL_KEY + len(subject.prefix)
  if config.tokens < control + FEWEST - 1:
    raise ValueError(
      f"tokens must be at least {control + FEWEST - 1}, got {config.tokens}"
    )
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  step = Steps(progress, len(ids) * (1 + len(Edit)))
  start, first, sizes = _look(subject, ids, step)
  rise, fall = life_of(first)
  dims, others = large_and_next(sizes[rise])
  watch = {"alpha": ("pattern", sink_score), "state": ("resid_post", _state)}
  loss = EditedLoss(subject, ids, step, watch)
  losses, states, sinks = [], [], []
  for edit in _edits(subject, dims, others, rise, control, config.tokens):
    nats, _, seen = loss.seen(edit)
    losses.append(nats.mean(axis=1))
    # No edit changes the embedding.
    states.append(np.concatenate([start[None], seen["state"]]))
    sinks.append((seen["alpha"] > config.eps).mean(axis=-1))
  arrays = {
    name: np.stack(states)[..., i].astype(np.float32)
    for i, name in enumerate(STATES)
  }
  arrays |= {"loss": np.stack(losses), "sink rate": np.stack(sinks)}
  templates = templates_of(ids, subject.template)
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "control_position": control,
      "rise": rise,
      "fall": fall,
      "dimensions": np.flatnonzero(dims).tolist(),
      "share": float(sizes[rise][dims].sum() / sizes[rise].sum()),
    },
    tables={
      "edits.csv": _edit_table(arrays, rise, fall, {"templates": templates}),
      "layers.csv": _layer_table(arrays),
    },
    arrays=arrays,
  )


def _state(x: jax.Array) -> jax.Array:
  """[B, 4] `STATES` of one residual stream [B, T, D]."""
  length, width = x.shape[1:]
  most, rest = (math.log(min(n, width)) for n in (length, length - 1))
  bound = entropy_bound(first_row_share(x), min(length, width))
  norms = token_norms(x)
  ratio = jnp.log(norms[:, 0] / median(norms[:, 1:]))
  return jnp.stack(
    [
      spectral_entropy(x, gram=True) / most,
      spectral_entropy(x[:, 1:], gram=True) / rest,
      bound / most,
      ratio,
    ],
    axis=-1,
  )


def _look(
  subject: Subject, ids: np.ndarray, step: Steps
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of the unchanged model: `STATES` of the embedding [P, 4], mean norms of the
  first token [L + 1] and its mean squares by dimension [L, D]."""
  watch = {
    "start": ("embed", lambda x: {"state": _state(x), "first": x[:, 0]}),
    "first": ("resid_post", lambda x: x[:, 0]),
  }
  run = jax.jit(capture(forward(subject.cfg), watch))

  def look(params: Any, rows: jax.Array) -> dict[str, Any]:
    return run(params, rows).trace

  starts, norms, sizes = [], [], 0.0
  for _, count, rows in batches(ids, min(8, len(ids))):
    out = subject.kept("look", look, subject.params, jnp.asarray(rows))
    starts.append(out["start"]["state"].astype(np.float64)[:count])
    first = np.concatenate([out["start"]["first"][None], out["first"]])
    first = first.astype(np.float64)[:, :count]
    norms.append(np.linalg.norm(first, axis=-1))
    sizes = sizes + np.square(first[1:]).sum(axis=1)
    step(count)
  mean = np.concatenate(norms, axis=1).mean(axis=1)
  return np.concatenate(starts), mean, sizes / len(ids)


def _edits(
  subject: Subject,
  dims: np.ndarray,
  others: np.ndarray,
  rise: int,
  control: int,
  tokens: int,
) -> list[dict[str, AtTokens]]:
  """One for each `Edit`, all of one kind: one compiled program."""
  layers, at = np.arange(subject.cfg.n_layers), np.arange(tokens)
  nothing, every = np.zeros_like(dims), np.ones_like(dims)
  chosen = {
    Edit.NONE: (nothing, nothing, 0),
    Edit.DIMS: (dims, nothing, 0),
    Edit.OTHERS: (others, nothing, 0),
    Edit.MLP: (nothing, every, 0),
    Edit.NEIGHBOUR: (nothing, every, control),
  }

  def zero(layers: np.ndarray, dims: np.ndarray, position: int) -> AtTokens:
    places = (layers, at == position, dims)
    return AtTokens(0.0, 0.0, *map(jnp.asarray, places))

  return [
    {
      # In every layer from the rise on, so that no later one makes them again.
      "resid_post": zero(layers >= rise, stream, 0),
      "mlp_out": zero(layers == rise, written, position),
    }
    for stream, written, position in chosen.values()
  ]


def in_life(values: np.ndarray, rise: int, fall: int) -> np.ndarray:
  """[..., P] the mean over the states of the first token's life.

  Args:
    values: [..., L + 1, P], or [..., L, P] of what is read in layers: these
      read the state before them.
    rise: the layer after which it begins.
    fall: the layer after which it has ended.
  """
  return values[..., rise + 1 : fall + 1, :].mean(axis=-2)


def _edit_table(
  arrays: dict[str, np.ndarray], rise: int, fall: int, units: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  header, rows = ["edit"], []
  header += ends_columns("entropy", "sink_rate", "loss")
  for i, edit in enumerate(Edit):
    row: list[Any] = [str(edit)]
    for values in (
      in_life(arrays["entropy"][i], rise, fall),
      arrays["sink rate"][i].mean(axis=0),
      arrays["loss"][i],
    ):
      row += ends_of(by_template(values, units))
    rows.append(row)
  return header, rows


def _layer_table(
  arrays: dict[str, np.ndarray],
) -> tuple[list[str], list[list[Any]]]:
  """Of the unchanged model, after the embedding and after each layer."""
  plain = {name: arrays[name][0].mean(axis=-1) for name in STATES}
  sinks = arrays["sink rate"][0].mean(axis=-1)
  rows = []
  for i in range(len(sinks) + 1):
    values = [float(plain[name][i]) for name in STATES[:3]]
    ratio = math.exp(plain["norm"][i])
    rows.append([i, *values, ratio, float(sinks[i - 1]) if i else None])
  header = ["after", *STATES[:3], "first_norm_over_median", "sink_rate"]
  return header, rows
