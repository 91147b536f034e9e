"""The loss of texts under edits, compiled once for a kind of edit."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.text_batches import batches
from sinkjax.inference.scoring import nats_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.intervene import intervene

ROW_TOKENS = 1024
"""Tokens of one forward pass: their logits take 200 MB at a vocabulary of
50,000."""


class EditedLoss:
  """Losses of the model under edits.

  Edits are pytrees: those of one kind share one compiled program, whatever
  their arrays hold. So the unchanged model is best measured by an edit of the
  same kind that changes nothing: it then has the same rounding.

  Args:
    subject: the model; its weights in memory.
    ids: [P, T] texts of one length.
    step: called with the number of texts that each pass has added.
  """

  def __init__(
    self, subject: Subject, ids: np.ndarray, step: Callable[[int], Any]
  ):
    self._subject, self._ids, self._step = subject, ids, step
    self._rows = max(1, min(len(ids), ROW_TOKENS // ids.shape[1]))
    f = forward(subject.cfg)

    @jax.jit
    def run(
      params: Any, ids: jax.Array, edits: dict[str, Any]
    ) -> tuple[jax.Array, jax.Array]:
      logits = intervene(f, edits)(params, ids).logits[:, :-1]
      right = jnp.argmax(logits, axis=-1) == ids[:, 1:]
      return nats_of(logits, ids[:, 1:]), right

    self._run = run

  def __call__(self, edits: Mapping[str, Any]) -> np.ndarray:
    """[P, T - 1] nats of every token after the first, under edits."""
    return self.both(edits)[0]

  def both(self, edits: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """`(nats, right)`, each [P, T - 1]: whether the greatest logit is right."""
    subject, found = self._subject, []
    for _, count, rows in batches(self._ids, self._rows):
      out = subject.kept(
        "batch", self._run, subject.params, jnp.asarray(rows), dict(edits)
      )
      found.append([np.asarray(x, np.float64)[:count] for x in out])
      self._step(count)
    nats, right = zip(*found, strict=True)
    return np.concatenate(nats), np.concatenate(right)
