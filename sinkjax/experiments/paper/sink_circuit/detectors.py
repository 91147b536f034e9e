"""Which gates of a layer tell the first token from others, and by what.

Axes: P texts, T tokens, F gates, D width.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.paper.sink_circuit.neurons import BATCH
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import batches
from sinkjax.metrics.precision import wide
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import SeesOnly
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.token_edits import AtTokens


class Case(enum.StrEnum):
  """What is done; the values are keys of recorded results."""

  PLAIN = "as it is"
  ALONE = "sees itself alone"
  INDEX = "index of the first"
  AVERAGE = "first given an average"


class Gates(NamedTuple):
  """What a layer's gates are of some texts.

  Attributes:
    values: [P, T, F] before the non-linearity, without the bias, which is the
      same for all tokens.
    average: [D] what the layer's attention writes to all tokens but the first.
  """

  values: np.ndarray
  average: np.ndarray


class Reader:
  """Reads the gates of a layer in every case; one program for all of them.

  Without gates, the inputs of the hidden layer are read in their place.

  Args:
    subject: the model.
    layer: whose gates.
    at: the token that is made to see itself alone, or given the first's index.
    step: called with the number of texts that each pass has added.
  """

  def __init__(self, subject: Subject, layer: int, at: int, step: Steps):
    self._subject, self._at, self._step = subject, at, step
    cfg = subject.cfg
    f, name = forward(cfg), "gate" if cfg.gated_mlp else "up"

    @jax.jit
    def run(
      params: Any,
      ids: jax.Array,
      index: jax.Array,
      alone: jax.Array,
      given: jax.Array,
      average: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
      here = jnp.arange(cfg.n_layers) == layer
      edits = {
        "scores": SeesOnly(alone, layers=here),
        "attn_out": AtTokens(jnp.zeros(()), average, here, given),
      }
      watch = {
        "x": ("mlp_in", lambda x: x),
        "written": ("attn_out", lambda x: wide(x[:, 1:]).mean(axis=1)),
      }
      g = capture(intervene(f, edits), watch)
      trace = g(params, ids, positions=index).trace
      kernel = params["blocks"]["mlp"][name]["kernel"][layer]
      with jax.default_matmul_precision(cfg.precision):
        gates = jnp.einsum("btd,df->btf", wide(trace["x"][layer]), wide(kernel))
      return gates, trace["written"][layer]

    self._run = run

  def __call__(
    self, ids: np.ndarray, case: Case, average: np.ndarray | None = None
  ) -> Gates:
    """The gates of texts [P, T]; `average` [D] is what the first is given."""
    tokens = np.arange(ids.shape[1])
    index = tokens.copy()
    if case is Case.INDEX:
      index[[0, self._at]] = index[[self._at, 0]]
    alone = (tokens == self._at) & (case is Case.ALONE)
    given = (tokens == 0) & (case is Case.AVERAGE)
    if average is None:
      average = np.zeros(self._subject.cfg.d_model)
    parts = []
    for _, count, rows in batches(ids, min(BATCH, len(ids))):
      out = self._subject.kept(
        "gates",
        self._run,
        self._subject.params,
        jnp.asarray(rows),
        jnp.broadcast_to(index, rows.shape),
        jnp.asarray(alone),
        jnp.asarray(given),
        jnp.asarray(average, jnp.float32),
      )
      parts.append([np.asarray(x, np.float64)[:count] for x in out])
      self._step(count)
    gates, written = map(np.concatenate, zip(*parts, strict=True))
    return Gates(gates, written.mean(axis=0))


class Detectors(NamedTuple):
  """The gates that tell the first token best.

  Attributes:
    gates: [K] their indices, the best first.
    mean: [K] of the other tokens.
    scale: [K] of their standard deviations, with the sign by which the first
      token exceeds their mean.
    distance: [K] of the first token's mean, in standard deviations.
  """

  gates: np.ndarray
  mean: np.ndarray
  scale: np.ndarray
  distance: np.ndarray

  def each(self, values: np.ndarray) -> np.ndarray:
    """[P, T, K] of gates [P, T, F], in standard deviations of others."""
    return (values[..., self.gates] - self.mean) / self.scale


def detectors(values: np.ndarray, count: int) -> Detectors:
  """Those of the greatest distance between the first token and the others.

      d_f = |mean_p g_p0f - m_f| / s_f,   m_f, s_f of g_ptf over p and t > 0

  Args:
    values: [P, T, F].
    count: K, at most F.

  >>> values = np.zeros((1, 5, 2))
  >>> values[0, :, 0], values[0, :, 1] = [3, 0, 1, 0, 1], [-9, 1, 0, 1, 0]
  >>> found = detectors(values, 1)
  >>> found.gates.tolist(), found.distance.tolist(), found.scale.tolist()
  ([1], [19.0], [-0.5])
  """
  others = values[:, 1:]
  mean, sd = others.mean(axis=(0, 1)), others.std(axis=(0, 1))
  gap = values[:, 0].mean(axis=0) - mean
  # A gate that is the same for all other tokens tells nothing that has a scale.
  distance = np.where(sd > 0, np.abs(gap) / np.where(sd > 0, sd, 1), 0)
  best = np.argsort(-distance, kind="stable")[:count]
  sign = np.where(gap < 0, -1.0, 1.0)
  scale = np.where(sd > 0, sd, 1)[best] * sign[best]
  return Detectors(best, mean[best], scale, distance[best])


def above_others(score: np.ndarray) -> np.ndarray:
  """[P, ...] share of others above which the first of [P, T, ...] is.

  The AUROC of one positive in each text; ties are half.

  >>> above_others(np.array([[2.0, 1.0, 2.0, 3.0, 0.0]])).tolist()
  [0.625]
  """
  first, others = score[:, :1], score[:, 1:]
  return ((first > others) + 0.5 * (first == others)).mean(axis=1)


def look(
  subject: Subject,
  some: np.ndarray,
  held: np.ndarray,
  *,
  layer: int,
  at: int,
  count: int,
  step: Steps,
) -> tuple[Detectors, dict[str, np.ndarray]]:
  """Gates chosen on some texts, and what they tell of others.

  Args:
    subject: the model.
    some: [P, T] texts that choose.
    held: [P, T] the others.
    layer: whose gates.
    at: the token of `Reader`.
    count: of gates.
    step: called with the number of texts that each pass has added.

  Returns:
    The gates, and by name [P] of the other texts: "told" as `above_others`;
    and the score, the mean over gates of `Detectors.each`, of the first token,
    of the others, and of the one at `at` in every case. "told each" is [P, K].
  """
  read = Reader(subject, layer, at, step)
  chosen = read(some, Case.PLAIN)
  found = detectors(chosen.values, count)
  each = {
    case: found.each(read(held, case, chosen.average).values) for case in Case
  }
  score = {case: x.mean(axis=-1) for case, x in each.items()}
  plain = score[Case.PLAIN]
  others = np.delete(plain, [0, at], axis=1).mean(axis=1)
  return found, {
    "told": above_others(plain),
    "told each": above_others(each[Case.PLAIN]),
    "first": plain[:, 0],
    "others": others,
    "token": plain[:, at],
    "token alone": score[Case.ALONE][:, at],
    "token indexed": score[Case.INDEX][:, at],
    "first averaged": score[Case.AVERAGE][:, 0],
  }
