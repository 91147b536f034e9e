"""The loss of texts under edits, compiled once for a kind of edit."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.text_batches import batches
from sinkjax.inference.scoring import nats_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
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
    watch: of `capture`, what `seen` returns besides; observers whose results
      are [L, B, ...].
  """

  def __init__(
    self,
    subject: Subject,
    ids: np.ndarray,
    step: Callable[[int], Any],
    watch: Mapping[str, Any] = MappingProxyType({}),
  ):
    self._subject, self._ids, self._step = subject, ids, step
    self._rows = max(1, min(len(ids), ROW_TOKENS // ids.shape[1]))
    f = forward(subject.cfg)

    @jax.jit
    def run(
      params: Any, ids: jax.Array, edits: dict[str, Any]
    ) -> dict[str, jax.Array]:
      out = capture(intervene(f, edits), watch)(params, ids)
      logits = out.logits[:, :-1]
      right = jnp.argmax(logits, axis=-1) == ids[:, 1:]
      nats = nats_of(logits, ids[:, 1:])
      return {**out.trace, "nats": nats, "right": right}

    self._run = run

  def __call__(self, edits: Mapping[str, Any]) -> np.ndarray:
    """[P, T - 1] nats of every token after the first, under edits."""
    return self.both(edits)[0]

  def both(self, edits: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """`(nats, right)`, each [P, T - 1]: whether the greatest logit is right."""
    return self.seen(edits)[:2]

  def seen(
    self, edits: Mapping[str, Any]
  ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The same, and what was watched by name, [L, P, ...]."""
    subject, parts = self._subject, []
    for _, count, rows in batches(self._ids, self._rows):
      out = subject.kept(
        "batch", self._run, subject.params, jnp.asarray(rows), dict(edits)
      )
      # Texts are the first axis of losses, and the second of what is watched.
      parts.append(
        [np.asarray(out.pop(x), np.float64)[:count] for x in ("nats", "right")]
        + [{k: np.asarray(x, np.float64)[:, :count] for k, x in out.items()}]
      )
      self._step(count)
    nats, right, watched = zip(*parts, strict=True)
    return (
      np.concatenate(nats),
      np.concatenate(right),
      {k: np.concatenate([x[k] for x in watched], axis=1) for k in watched[0]},
    )
