"""Where the first token becomes massive, and in which dimensions."""

import numpy as np

LARGE = 0.05
"""A dimension is large if it holds this share of the first token's squares: so
there are at most twenty, and in a state without structure, of hundreds of equal
dimensions, none."""


def life_of(first: np.ndarray) -> tuple[int, int]:
  """The layer of the first token's largest rise, and that of its fall.

  The rule of `find_sinks`, on the mean over texts: the fall is the largest one
  after the rise, and the number of layers if there is none.

  Args:
    first: [L + 1] norms after the embedding and each layer.

  >>> life_of(np.array([1.0, 2.0, 90.0, 91.0, 5.0])), life_of(np.arange(4.0))
  ((1, 3), (0, 3))
  """
  change = np.diff(first)
  rise = int(np.argmax(change))
  after = change[rise + 1 :]
  if not after.size or after.min() >= 0:
    return rise, len(change)
  return rise, rise + 1 + int(np.argmin(after))


def large_and_next(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[D] the large dimensions, and as many of the next largest: a control.

  Args:
    squares: [D] mean squares of the first token's state after one layer.

  >>> large, others = large_and_next(np.array([90.0, 1.0, 4.0, 2.0]))
  >>> large.tolist(), others.tolist()
  ([True, False, False, False], [False, False, True, False])
  """
  large = squares >= LARGE * squares.sum()
  order = np.argsort(np.where(large, np.inf, -squares), kind="stable")
  others = np.zeros(len(squares), bool)
  # Where most are large, as many as there are.
  others[order[: min(large.sum(), (~large).sum())]] = True
  return large, others
