"""What a change of weights or activations costs: loss, and KL to the model."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.text_batches import batches
from sinkjax.models.transformer import forward
from sinkjax.transforms.intervene import intervene


class Setting(NamedTuple):
  """One way to change the model: its weights, and edits."""

  params: Any
  edits: dict[str, Any]


class Cost(NamedTuple):
  """What a setting costs.

  Attributes:
    loss: [P] increase, nats a token.
    kl: [P] KL(whole || changed), nats a token.
  """

  loss: np.ndarray
  kl: np.ndarray


def meter(
  subject: Subject, batch: int, after: int, step: Callable[[], Any]
) -> Callable[
  [np.ndarray, Mapping[Hashable, Setting]], tuple[np.ndarray, dict[Any, Cost]]
]:
  """`g(ids, settings) -> (loss [P] of the whole model, {key: Cost})`.

  Compiled once for each kind of edit; the whole model's logits are computed
  once for each batch.

  Args:
    subject: the model.
    batch: texts in one forward pass.
    after: predictions made from this position on count.
    step: called after each batch under each setting.
  """
  f = forward(subject.cfg)

  def nll(logs: Array, ids: Array) -> Array:
    logs, targets = logs[:, after:-1], ids[:, after + 1 :, None]
    return -jnp.mean(jnp.take_along_axis(logs, targets, -1)[..., 0], axis=-1)

  @jax.jit
  def plain(params: Any, ids: Array) -> tuple[Array, Array]:
    logs = jax.nn.log_softmax(f(params, ids).logits.astype(jnp.float32))
    return logs, nll(logs, ids)

  @jax.jit
  def each(
    params: Any, ids: Array, whole: Array, edits: dict[str, Any]
  ) -> tuple[Array, Array]:
    out = intervene(f, edits)(params, ids)
    logs = jax.nn.log_softmax(out.logits.astype(jnp.float32))
    kl = jnp.sum(jnp.exp(whole) * (whole - logs), axis=-1)
    return nll(logs, ids), jnp.mean(kl[:, after:], axis=-1)

  def cost_of(
    ids: np.ndarray, settings: Mapping[Hashable, Setting]
  ) -> tuple[np.ndarray, dict[Any, Cost]]:
    wholes, parts = [], {key: [] for key in settings}
    for _, count, rows in batches(ids, batch):
      tokens = jnp.asarray(rows)
      # Every setting is compared with the same logits, too many to keep.
      logs, loss = plain(subject.params, tokens)
      wholes.append(np.asarray(loss, np.float64)[:count])
      for key, (params, edits) in settings.items():
        out = subject.kept("setting", each, params, tokens, logs, edits)
        ours, kl = (x.astype(np.float64)[:count] for x in out)
        # Paired by text: the spread of the texts' own losses cancels.
        parts[key].append((ours - wholes[-1], kl))
        step()
    return np.concatenate(wholes), {
      key: Cost(*map(np.concatenate, zip(*part, strict=True)))
      for key, part in parts.items()
    }

  return cost_of
