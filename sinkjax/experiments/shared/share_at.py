"""How many heads can go before the loss has risen by one per cent."""

from collections.abc import Sequence
from typing import Any

import numpy as np

LIMIT = 0.01
"""The loss increase at which shares are read off: the 1 % that arXiv 2504.03889
allows the accuracy, here of the loss."""

SAMPLES = 2000
"""Bootstrap samples of the texts: 50 lie beyond each end of the interval."""


def share_at(
  shares: Sequence[float] | np.ndarray, loss: np.ndarray, limit: float = LIMIT
) -> dict[str, Any]:
  """The share at which the mean loss first exceeds `limit`, interpolated.

  Args:
    shares: [S] increasing; the curve begins at (0, 0).
    loss: [S, P] increase of each text.
    limit: of the mean over texts.

  Returns:
    "value", and "low" and "high" of the 95 % interval by bootstrap over
    texts. A curve that never passes gives the greatest share, a lower bound.

  >>> found = share_at([0.1, 0.2], np.array([[0.0, 0.0], [0.02, 0.02]]))
  >>> round(found["value"], 6)
  0.15
  """
  x = np.concatenate([[0.0], shares])
  y = np.concatenate([np.zeros((1, loss.shape[1])), loss])
  # The same draws for every curve: differences between curves are theirs.
  rng = np.random.default_rng(0)
  draws = rng.integers(loss.shape[1], size=(SAMPLES, loss.shape[1]))
  found = [_crossing(x, y[:, draw].mean(axis=1), limit) for draw in draws]
  low, high = np.quantile(found, [0.025, 0.975])
  return {
    "value": _crossing(x, y.mean(axis=1), limit),
    "low": float(low),
    "high": float(high),
    "passes": bool((y.mean(axis=1) > limit).any()),
  }


def _crossing(x: np.ndarray, y: np.ndarray, limit: float) -> float:
  over = np.flatnonzero(y > limit)
  if not over.size:
    return float(x[-1])
  i = int(over[0])
  # y[i] is above the limit and y[i - 1] is not, so this is in [0, 1).
  part = (limit - y[i - 1]) / (y[i] - y[i - 1])
  return float(x[i - 1] + part * (x[i] - x[i - 1]))
