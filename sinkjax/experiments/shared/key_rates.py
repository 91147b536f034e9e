"""Sink rates of every key of a text, and which of them count.

Axes: P texts, S keys.
"""

import jax
import numpy as np

from sinkjax.metrics import rows

LAST = 8
"""Keys at the end of a text that do not count: each is seen by few queries,
itself first of all."""


def received(pattern: jax.Array) -> jax.Array:
  """[B, H, S] sink scores of all keys, of a pattern [B, H, T, S]."""
  return rows.of_pattern(rows.received_mass(), pattern)


def rate_at(rates: np.ndarray, at: np.ndarray | int) -> np.ndarray:
  """[P] of rates [P, S], those of one key in each text.

  >>> rate_at(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1, 0])).tolist()
  [2.0, 3.0]
  """
  return rates[np.arange(len(rates)), at]


def rate_elsewhere(rates: np.ndarray, *besides: np.ndarray | int) -> np.ndarray:
  """[P] the mean rate of the keys that count, without the first and others.

  >>> rate_elsewhere(np.array([[9.0, 1.0, 3.0, *[7.0] * LAST]]), 2).tolist()
  [1.0]
  """
  counts = np.ones(rates.shape, bool)
  counts[:, 0] = counts[:, -LAST:] = False
  for at in besides:
    counts[np.arange(len(rates)), at] = False
  return np.where(counts, rates, 0).sum(axis=1) / counts.sum(axis=1)


def check_at(at: int, tokens: int, least: int = 1) -> None:
  """Refuses a key that does not count.

  Raises:
    ValueError: naming the range.
  """
  if not least <= at < tokens - LAST:
    raise ValueError(
      f"at must be in [{least}, {tokens - LAST}), as the last {LAST} keys do "
      f"not count, got {at}"
    )
