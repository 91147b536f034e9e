"""The area under the ROC curve, and its error by DeLong's method."""

import numpy as np


def placements(
  scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """How each positive and each negative is ranked, [..., P] and [..., N].

      V_i = 1/N sum_j psi(x_i, y_j),   W_j = 1/P sum_i psi(x_i, y_j)

  for scores x of P positives and y of N negatives, psi(x, y) = 1 for x > y, 1/2
  for x = y, else 0. Both have the area as their mean.

  Args:
    scores: [..., n].
    labels: [n] bool, True at positives.

  Raises:
    ValueError: where all labels are equal.

  Cost: O(n log n) for each row, by ranks.
  """
  from scipy import stats

  scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
  x, y = scores[..., labels], scores[..., ~labels]
  count, other = x.shape[-1], y.shape[-1]
  if not count or not other:
    raise ValueError(
      f"an ROC curve needs positives and negatives, got {count} and {other}"
    )
  ranks = stats.rankdata(scores, axis=-1)
  above = ranks[..., labels] - stats.rankdata(x, axis=-1)
  below = ranks[..., ~labels] - stats.rankdata(y, axis=-1)
  return above / other, 1 - below / count


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[...] how often a positive's score is above a negative's; ties are half.

  Args:
    scores: [..., n].
    labels: [n] bool.

  Raises:
    ValueError: where all labels are equal.

  >>> auroc(np.array([1.0, 3.0, 2.0, 3.0]), [False, True, False, False]).item()
  0.8333333333333334
  """
  return placements(scores, labels)[0].mean(axis=-1)


def delong(
  scores: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Areas of several scores on the same items, and their covariance.

      cov = cov(V) / P + cov(W) / N

  with V and W of `placements`, and sample covariances over positives and
  negatives (DeLong, DeLong and Clarke-Pearson 1988). Items are taken as
  independent of each other.

  Args:
    scores: [M, n].
    labels: [n] bool.

  Returns:
    ([M] areas, [M, M] covariance).

  Raises:
    ValueError: for fewer than two positives or negatives.

  >>> x = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]])
  >>> area, cov = delong(x, [False, False, True, True])
  >>> area.tolist(), cov.tolist()
  ([1.0, 0.75], [[0.0, 0.0], [0.0, 0.125]])
  """
  v, w = placements(np.atleast_2d(scores), labels)
  count, other = v.shape[-1], w.shape[-1]
  if min(count, other) < 2:
    raise ValueError(
      f"an error needs two positives and two negatives, got {count} and {other}"
    )
  cov = np.atleast_2d(np.cov(v)) / count + np.atleast_2d(np.cov(w)) / other
  return v.mean(axis=-1), cov


def item_values(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """[..., n] a value of each item, whose mean is the area.

      A + n/P (V_i - A) of a positive,   A + n/N (W_j - A) of a negative,

  A plus the item's influence on it: the standard error of their mean is
  DeLong's, but for P - 1 and N - 1 in place of P and N there. So an area is
  tested as any mean over items is, and two of the same items as a paired
  difference.

  Args:
    scores: [..., n].
    labels: [n] bool.

  Raises:
    ValueError: where all labels are equal.

  >>> item_values(np.array([1.0, 3.0, 2.0, 4.0]), [False, False, True, True])
  array([1.25, 0.25, 0.25, 1.25])
  """
  labels = np.asarray(labels, bool)
  v, w = placements(scores, labels)
  area = v.mean(axis=-1, keepdims=True)
  values = np.empty((*v.shape[:-1], len(labels)))
  values[..., labels] = area + (v - area) * (len(labels) / v.shape[-1])
  values[..., ~labels] = area + (w - area) * (len(labels) / w.shape[-1])
  return values
