"""The layer that builds the sink, its neurons, and their ablation."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import batches
from sinkjax.inference.scoring import nats_of
from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.score_parts import leaves_range
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.neuron_edits import ScaleNeurons

BATCH = 8
"""Texts in one forward pass."""


class Norms(NamedTuple):
  """Of some texts, the first token's and the others'.

  Attributes:
    mlp: [L, P, T] of the MLP's output.
    mid: [L, P, T] of the residual stream before it is added.
    post: [L, P, T] after.
    act: [L, P, F] hidden activations at position 0.
    later: [L, P, F] mean |hidden activation| of the other positions.
    alpha: [L, P, H] sink scores.
  """

  mlp: np.ndarray
  mid: np.ndarray
  post: np.ndarray
  act: np.ndarray
  later: np.ndarray
  alpha: np.ndarray


def look(subject: Subject, ids: np.ndarray, step: Steps) -> Norms:
  """The norms and activations of texts [P, T]."""
  watch = {
    "mlp": ("mlp_out", token_norms),
    "mid": ("resid_mid", token_norms),
    "post": ("resid_post", token_norms),
    "act": ("mlp_act", lambda x: x[:, 0]),
    "later": ("mlp_act", lambda x: jnp.abs(x[:, 1:]).mean(axis=1)),
    "alpha": ("pattern", sink_score),
  }
  f = capture(forward(subject.cfg), watch)
  run = jax.jit(lambda params, ids: f(params, ids).trace)
  parts = []
  for _, count, rows in batches(ids, min(BATCH, len(ids))):
    trace = subject.kept("look", run, subject.params, jnp.asarray(rows))
    parts.append(Norms(**{k: trace[k][:, :count] for k in watch}))
    step(count)
  return Norms(*(np.concatenate(x, axis=1) for x in zip(*parts, strict=True)))


class Builder(NamedTuple):
  """The layer that builds the sink.

  Attributes:
    layer: out of range, where the residual stream grows most; `None` if the
      first token's MLP output leaves the range nowhere.
    first: the first layer that is out of range, or `None`.
    out: [L] share of texts in which it is.
    over: [L, P] the norm over the end of the ordinary range.
  """

  layer: int | None
  first: int | None
  out: np.ndarray
  over: np.ndarray


def builder(norms: Norms, deviations: float) -> Builder:
  """The layer whose MLP makes the first token's norm, see `Builder`."""
  over = np.stack(
    [np.asarray(leaves_range(jnp.asarray(x), deviations)) for x in norms.mlp]
  )
  out = (over > 1).mean(axis=1)
  growth = (norms.post / norms.mid)[:, :, 0].mean(axis=1)
  # Some layers leave the range by taking the norm away again.
  builds = (out > 0.5) & (growth > 1)
  if not builds.any():
    return Builder(None, None, out, over)
  layer = int(np.argmax(np.where(builds, growth, 0)))
  return Builder(layer, int(np.argmax(builds)), out, over)


def contributions(act: np.ndarray, out_norms: np.ndarray) -> np.ndarray:
  """[F] mean over texts of |activation| times the norm of what it writes.

  Args:
    act: [P, F] at position 0.
    out_norms: [F] of the output projection's rows.

  >>> contributions(np.array([[1.0, -2.0]]), np.array([3.0, 0.5])).tolist()
  [3.0, 1.0]
  """
  return np.abs(act).mean(axis=0) * out_norms


def carried(act: np.ndarray, down: np.ndarray, top: np.ndarray) -> np.ndarray:
  """[P] share of the squared norm of the output that some neurons account for.

      1 - ||sum_{f not in top} a_f w_f||^2 / ||sum_f a_f w_f||^2

  Args:
    act: [P, F] at position 0.
    down: [F, D] what each neuron writes.
    top: indices of neurons.

  >>> down = np.eye(2)
  >>> carried(np.array([[3.0, 4.0]]), down, np.array([1])).round(2).tolist()
  [0.64]
  """
  whole = act @ down
  left = whole - act[:, top] @ down[top]
  return 1 - (left**2).sum(-1) / (whole**2).sum(-1)


@dataclasses.dataclass(frozen=True)
class After:
  """A model with some neurons scaled, by text.

  Attributes:
    norm: [P] of the first token where it is the greatest.
    others: [P] mean norm of the other tokens there.
    rate: [P] sink rate of the layers after the one that builds it.
    loss: [P] nats a token.
  """

  norm: np.ndarray
  others: np.ndarray
  rate: np.ndarray
  loss: np.ndarray


class Ablation:
  """Runs the model with a layer's neurons scaled; one program for all of them.

  Args:
    subject: the model.
    layer: whose neurons.
    peak: the layer after which norms are taken.
    eps: a head has a sink where its score exceeds this.
    step: called with the number of texts that each pass has added.
  """

  def __init__(
    self,
    subject: Subject,
    layer: int,
    peak: int,
    eps: float,
    step: Callable[[int], Any],
  ):
    self._subject, self._layer, self._step = subject, layer, step
    self._width, f = subject.cfg.d_ff, forward(subject.cfg)

    def scaled(gains: jax.Array, everywhere: jax.Array, length: int) -> Any:
      first = jnp.arange(length) == 0
      return ScaleNeurons(gains, jnp.asarray(layer), first | everywhere)

    @jax.jit
    def run(
      params: Any, ids: jax.Array, gains: jax.Array, everywhere: jax.Array
    ) -> tuple[jax.Array, ...]:
      edits = {"mlp_act": scaled(gains, everywhere, ids.shape[1])}
      watch = {
        "norm": ("resid_post", token_norms),
        "alpha": ("pattern", sink_score),
      }
      out = capture(intervene(f, edits), watch)(params, ids)
      norm = out.trace["norm"][peak]
      rate = (out.trace["alpha"][layer + 1 :] > eps).mean(axis=(0, 2))
      nats = nats_of(out.logits[:, :-1], ids[:, 1:]).mean(axis=1)
      return norm[:, 0], norm[:, 1:].mean(axis=1), rate, nats

    def height(gains: jax.Array, params: Any, ids: jax.Array) -> jax.Array:
      edits = {"mlp_act": scaled(gains, jnp.asarray(False), ids.shape[1])}
      watch = {"norm": ("resid_post", lambda x: token_norms(x)[:, 0])}
      out = capture(intervene(f, edits), watch)(params, ids)
      # The norm of a text depends on its own gains alone, so the gradient of
      # the sum has every text's.
      return out.trace["norm"][peak].sum()

    self._run, self._slope = run, jax.jit(jax.grad(height))

  def __call__(
    self, ids: np.ndarray, gone: Any = (), everywhere: bool = False
  ) -> After:
    """With some neurons set to zero.

    Args:
      ids: [P, T].
      gone: indices of neurons.
      everywhere: at all positions, or at position 0 alone.
    """
    gains = np.ones(self._width, np.float32)
    gains[list(gone)] = 0
    parts = []
    for _, count, rows in batches(ids, min(BATCH, len(ids))):
      out = self._subject.kept(
        "ablation",
        self._run,
        self._subject.params,
        jnp.asarray(rows),
        jnp.asarray(gains),
        jnp.asarray(everywhere),
      )
      parts.append([x.astype(np.float64)[:count] for x in out])
      self._step(count)
    return After(*map(np.concatenate, zip(*parts, strict=True)))

  def slopes(self, ids: np.ndarray) -> np.ndarray:
    """[P, F] exact derivative of the first token's norm by each log gain."""
    parts = []
    for _, count, rows in batches(ids, min(BATCH, len(ids))):
      gains = jnp.ones((len(rows), self._width))
      slope = self._slope(gains, self._subject.params, jnp.asarray(rows))
      parts.append(np.asarray(slope, np.float64)[:count])
      self._step(count)
    return np.concatenate(parts)
