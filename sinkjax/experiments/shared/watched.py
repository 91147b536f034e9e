"""What observers see of many texts, batch by batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.shared.text_batches import batches
from sinkjax.models.transformer import forward
from sinkjax.taps import ALL_SITES
from sinkjax.transforms.capture import capture

BATCH = 8
"""Texts of one pass, at most."""


def watched(
  subject: Subject,
  ids: np.ndarray,
  watch: Mapping[str, tuple[Any, Callable]],
  step: Callable[[int], Any],
) -> dict[str, Any]:
  """What observers return of all texts, in float64.

  Args:
    subject: the model; its weights in memory.
    ids: [P, T] texts of one length.
    watch: of `capture`; observers whose results are [B, ...], or trees of such.
    step: called with the number of texts that each pass has added.

  Returns:
    By name [L, P, ...], and [1, P, ...] at a site outside the layers.

  Cost: a forward pass of the texts.
  """
  f = jax.jit(capture(forward(subject.cfg), watch))
  once = {
    name
    for name, (sites, _) in watch.items()
    if isinstance(sites, str) and not ALL_SITES[sites].stacked
  }

  def look(params: Any, rows: jax.Array) -> dict[str, Any]:
    trace = f(params, rows).trace
    return {
      name: jax.tree.map(lambda x: x[None], seen) if name in once else seen
      for name, seen in trace.items()
    }

  parts = []
  for _, count, rows in batches(ids, min(BATCH, len(ids))):
    out = subject.kept("look", look, subject.params, jnp.asarray(rows))
    parts.append(
      jax.tree.map(lambda x, n=count: np.asarray(x, np.float64)[:, :n], out)
    )
    step(count)
  return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
