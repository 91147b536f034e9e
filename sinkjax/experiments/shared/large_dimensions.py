"""The dimensions in which tokens are large, and controls for them."""

import numpy as np

LARGE = 0.05
"""A dimension is large if it holds this share of the first token's squares: so
there are at most twenty, and in a state without structure, of hundreds of equal
dimensions, none."""


def next_largest(size: np.ndarray, taken: np.ndarray) -> np.ndarray:
  """[..., D] as many of the next largest dimensions: a control.

  Args:
    size: [..., D].
    taken: [..., D] the dimensions that are taken. Where most are, the control
      has the others.

  >>> one = np.array([5.0, 1.0, 3.0, 2.0])
  >>> next_largest(one, one > 4).tolist()
  [False, False, True, False]
  """
  order = np.argsort(np.where(taken, np.inf, -size), axis=-1, kind="stable")
  rank = np.argsort(order, axis=-1, kind="stable")
  return (rank < taken.sum(axis=-1, keepdims=True)) & ~taken


def large_and_next(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[D] the large dimensions, and as many of the next largest: a control.

  Args:
    squares: [D] mean squares of the first token's state after one layer.

  >>> large, others = large_and_next(np.array([90.0, 1.0, 4.0, 2.0]))
  >>> large.tolist(), others.tolist()
  ([True, False, False, False], [False, False, True, False])
  """
  large = squares >= LARGE * squares.sum()
  return large, next_largest(squares, large)
