"""A stretch of text in which a head is both dormant and active, to be drawn."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.paper.noop_heads.triggers import DORMANT, Head
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

WIDTH = 18
"""Tokens of an example: more labels would not be legible."""

TEXT = 46
"""Tokens of the texts that it is taken from: every built-in text has them."""


def example(subject: Subject, texts: str, head: Head) -> dict[str, Any]:
  """The stretch of the texts in which a head changes most between the two.

  Args:
    subject: the model; its weights in memory.
    texts: as `swap_texts.parse_swaps` takes them.
    head: which.

  Returns:
    The pattern [W, W + 1] of queries start, start + 1, ... and keys 0, start,
    ..., the norms of these keys' values, their tokens, and `start`.
  """
  ids = texts_of(subject, texts, TEXT)
  number, kv = head.head, head.head // subject.cfg.group_size
  watch = {
    "pattern": ("pattern", lambda p: p[:, number]),
    "value": ("v", lambda v: jnp.linalg.norm(v[:, :, kv], axis=-1)),
  }
  trace = jax.jit(capture(forward(subject.cfg), watch))(
    subject.params, jnp.asarray(ids)
  ).trace
  pattern, value = (np.asarray(trace[name][head.layer]) for name in watch)
  active = pattern[:, :, 0] <= DORMANT
  width = min(WIDTH, ids.shape[1] - 1)
  text, start = max(
    itertools.product(range(len(ids)), range(1, ids.shape[1] - width + 1)),
    key=lambda at: _both(active[at[0], at[1] : at[1] + width]),
  )
  keys = [0, *range(start, start + width)]
  return {
    "pattern": pattern[text][np.ix_(keys[1:], keys)],
    "value": value[text][keys],
    "tokens": [subject.tokenizer.decode([int(i)]) for i in ids[text][keys]],
    "start": start,
  }


def _both(active: np.ndarray) -> int:
  """Pairs of a query at which the head is active and one at which it is not."""
  return int(active.sum() * (~active).sum())
