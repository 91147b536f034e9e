"""Loss, accuracy, entropy and mixing as curves in g: what is run and measured.

Axes: P texts, G factors g, K keys (the sink, then the control), L layers,
H heads.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of
from sinkjax.experiments.shared.edited_loss import EditedLoss
from sinkjax.experiments.shared.jacobian_runs import (
  CONTROL_KEY,
  mixing_of,
  others,
)
from sinkjax.experiments.shared.prompt_corpus import Text
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.experiments.shared.text_batches import (
  by_template,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.scoring import nats_of
from sinkjax.metrics.sinks import attention_entropy, sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import graded
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.jacobian import jacobian_norms

KEYS = ("sink", "control")
"""Of which token's attention g is a factor; keys of recorded results."""

FEW, MANY = 0.5, 2.0
"""Factors that claims on the loss compare with 1: half and twice as much."""

MAPPED = (0.25, 1.0, 4.0)
"""Factors at which the exact Jacobian is computed."""

CHECKED = 4
"""Heads, of the largest derivatives, that finite steps check."""

STEP = 0.01
"""Of log g, to both sides: small, as the loss may curve, and still far above
the rounding of its mean over thousands of tokens."""

WATCH = {
  "alpha": ("pattern", lambda pattern: sink_score(pattern, key=0)),
  "entropy": ("pattern", attention_entropy),
}
"""What is seen beside the loss, of every head."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    factors: g; 0.5, 1 and 2 must be among them.
    map_texts: how many texts have exact Jacobians.
    map_tokens: T of these.
    seed: of the choice of texts.
  """

  count: int = 5
  tokens: int = 64
  factors: tuple[float, ...] = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16)
  map_texts: int = 8
  map_tokens: int = 8
  seed: int = 0


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The curves, the derivatives and the mixing.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`, for all but the Jacobians.
    progress: called with (texts done, in all).

  Raises:
    ValueError: for factors without 0.5, 1 and 2, fewer than two texts that are
      long enough, or a model whose attention is no softmax.

  Cost: two forward passes for each factor, one backward pass, and five exact
  Jacobians of each of `map_texts` texts.
  """
  missing = {FEW, 1.0, MANY} - set(map(float, config.factors))
  if missing or min(config.factors) < 0:
    raise ValueError(
      f"factors must be at least 0, with {FEW:g}, 1 and {MANY:g} among them, "
      f"got {config.factors}"
    )
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=2
  )
  short = texts_of(subject, SWAP_TEXTS, config.map_tokens)[: config.map_texts]
  keys = (0, CONTROL_KEY + len(subject.prefix))
  maps = len(short) * (1 + (len(MAPPED) - 1) * len(keys))
  passes = len(keys) * len(config.factors) + 1 + 2 * CHECKED
  step = Steps(progress, len(ids) * passes + maps)
  loss = EditedLoss(subject, ids, step, WATCH)
  curves = _curves(config, keys, loss)
  slopes = _slopes(subject, ids, step)
  templates = templates_of(ids, subject.template)
  checked = _check(loss, slopes)
  mixing = _mixing(subject, short, keys, step)
  units = {"templates": templates}
  alpha = curves.pop("alpha by head")
  return Result(
    numbers={
      "texts": len(ids),
      "templates": templates,
      "map_texts": len(short),
      "control_position": keys[1],
      "checked": checked,
    },
    tables={
      "curves.csv": _curve_table(config, curves, units),
      "heads.csv": _head_table(slopes, alpha, units),
    },
    arrays={**curves, "slopes": slopes, "alpha_by_head": alpha, **mixing},
  )


def _edit(by: Any, key: int) -> dict[str, Any]:
  # Both are arrays, so that one program serves every factor and key.
  return {"scores": graded(jnp.asarray([key]), jnp.asarray(by, jnp.float32))}


def _curves(
  config: Config, keys: tuple[int, int], loss: EditedLoss
) -> dict[str, np.ndarray]:
  """[K, G, P] of each quantity, and [L, H] scores of the unchanged model."""
  found: dict[str, Any] = {name: [] for name in ("loss", "right", *WATCH)}
  for key in keys:
    for by in config.factors:
      nats, right, watched = loss.seen(_edit(by, key))
      found["loss"].append(nats.mean(axis=1))
      found["right"].append(right.mean(axis=1))
      for name, whole in watched.items():  # [L, P, H]
        found[name].append(whole.mean(axis=(0, 2)))
      if key == 0 and by == 1:
        by_head = watched["alpha"].mean(axis=1)
  shape = (len(keys), len(config.factors), -1)
  arrays = {name: np.reshape(x, shape) for name, x in found.items()}
  return arrays | {"alpha by head": by_head}


def _slopes(subject: Subject, ids: np.ndarray, step: Steps) -> np.ndarray:
  """[P, L, H] exact derivative of a text's loss by log g of each head."""
  f = forward(subject.cfg)
  zero = jnp.zeros((subject.cfg.n_layers, subject.cfg.n_heads), jnp.float32)

  @jax.jit
  def of_text(params: Any, row: jax.Array) -> jax.Array:
    def loss(log_by: jax.Array) -> jax.Array:
      edits = {"scores": graded(jnp.asarray([0]), jnp.exp(log_by))}
      logits = intervene(f, edits)(params, row[None]).logits[:, :-1]
      return nats_of(logits, row[None, 1:]).mean()

    return jax.grad(loss)(zero)

  found = []
  for row in ids:
    slope = subject.kept("slopes", of_text, subject.params, jnp.asarray(row))
    found.append(np.asarray(slope, np.float64))
    step()
  return np.stack(found)


def _check(loss: EditedLoss, slopes: np.ndarray) -> list[dict[str, float]]:
  """Finite steps of the heads whose mean derivative is the largest."""
  mean = slopes.mean(axis=0)
  shape = mean.shape
  order = np.argsort(-np.abs(mean), axis=None)[: min(CHECKED, mean.size)]
  found = []
  for at in order:
    layer, head = np.unravel_index(at, shape)
    ends = []
    for sign in (1, -1):
      by = np.ones(shape)
      by[layer, head] = np.exp(sign * STEP)
      ends.append(loss(_edit(by, 0)).mean())
    found.append(
      {
        "layer": int(layer),
        "head": int(head),
        "derivative": float(mean[layer, head]),
        "finite": float((ends[0] - ends[1]) / (2 * STEP)),
      }
    )
  return found


def _mixing(
  subject: Subject, ids: np.ndarray, keys: tuple[int, int], step: Steps
) -> dict[str, np.ndarray]:
  """[K, len(MAPPED), P] mixing of all positions but 0 and the control's."""
  f, control = forward(subject.cfg), keys[1]
  found = np.zeros((len(keys), len(MAPPED), len(ids)))
  for text, row in enumerate(ids):
    for k, key in enumerate(keys):
      for m, by in enumerate(MAPPED):
        if by == 1 and k:  # the unchanged model, whichever the key
          found[k, m, text] = found[0, m, text]
          continue
        fn = intervene(f, _edit(by, key))
        norms = subject.kept(
          "map", jacobian_norms, fn, subject.params, jnp.asarray(row)
        )
        found[k, m, text] = mixing_of(others(np.asarray(norms), control))
        step()
  return {"mixing": found}


def _curve_table(
  config: Config, curves: dict[str, np.ndarray], units: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  rows = []
  one = [float(x) for x in config.factors].index(1.0)
  for k, key in enumerate(KEYS):
    for g, by in enumerate(config.factors):
      change = curves["loss"][k, g] - curves["loss"][k, one]
      means = [
        float(by_template(curves[name][k, g], units).mean())
        for name in ("loss", "right", "alpha", "entropy")
      ]
      rows.append([key, by, *means, *ends_of(by_template(change, units))])
  header = ["key", "g", "loss", "accuracy", "attention", "entropy"]
  return [*header, "change", "change_low", "change_high"], rows


def _head_table(
  slopes: np.ndarray, alpha: np.ndarray, units: dict[str, Any]
) -> tuple[list[str], list[list[Any]]]:
  rows = [
    [
      layer,
      head,
      float(alpha[layer, head]),
      *ends_of(by_template(slopes[:, layer, head], units)),
    ]
    for layer, head in np.ndindex(alpha.shape)
  ]
  rows.sort(key=lambda row: -abs(row[3]))
  return ["layer", "head", "attention", "slope", "low", "high"], rows
