"""Intervals and tests for measurements that come in groups.

Twenty changes of one paragraph are not twenty independent texts. The group
(text, prompt, task) is what is repeated: everything here takes one mean a
group, and its spread over groups is the uncertainty.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# 2^16 are 65,536 assignments, fewer than the 100,000 that are drawn for more
# groups.
EXACT = 16
"""Up to this many groups every assignment of signs is tried."""


class Mean(NamedTuple):
  """A mean over groups with its interval.

  Attributes:
    value: mean of the groups' means.
    low: lower end of the 95 % interval, Student's t over groups.
    high: upper end.
    groups: how many.
    p: of the sign-flip test of mean zero, two-sided.
  """

  value: float
  low: float
  high: float
  groups: int
  p: float

  @classmethod
  def read(cls, stored: Mapping[str, Any]) -> "Mean":
    """A mean as a result file holds it: `None` there is NaN here.

    >>> Mean.read({"value": 1, "low": 0, "high": None, "groups": 2, "p": 1})
    Mean(value=1, low=0, high=nan, groups=2, p=1)
    """
    return cls(**{k: np.nan if x is None else x for k, x in stored.items()})

  @property
  def error(self) -> float:
    """The standard error, which the interval gives back.

    So files that kept the mean alone are judged by the same tests.
    """
    from scipy import stats

    return (self.high - self.low) / 2 / stats.t.ppf(0.975, self.groups - 1)

  def scaled(self, factor: float) -> "Mean":
    """The same in another unit, such as percent for a share.

    >>> Mean(0.5, 0.4, 0.6, 9, 0.004).scaled(100).text(".0f", " %")
    '50 (40 to 60) %'
    """
    ends = [factor * x for x in (self.value, self.low, self.high)]
    return Mean(*ends, self.groups, self.p)

  def text(self, form: str = ".3g", unit: str = "") -> str:
    """'0.5 (0.4 to 0.6)'.

    >>> Mean(0.5, 0.4, 0.6, 9, 0.004).text(unit=" nats")
    '0.5 (0.4 to 0.6) nats'
    """
    ends = f"{self.low:{form}} to {self.high:{form}}"
    return f"{self.value:{form}} ({ends}){unit}"


def _grouped(values: Sequence[float], groups: Sequence[Any]):
  """The values of each group, in the order in which groups appear."""
  if len(values) != len(groups) or not len(values):
    raise ValueError(
      f"{len(values)} values in {len(groups)} groups: one group each is needed"
    )
  found: dict[Any, list[float]] = {}
  for value, group in zip(values, groups, strict=True):
    found.setdefault(group, []).append(float(value))
  return [np.array(members) for members in found.values()]


def group_means(values: Sequence[float], groups: Sequence[Any]) -> np.ndarray:
  """[G] the mean of each group, in the order in which groups appear.

  Raises:
    ValueError: for lengths that differ, or no values.

  >>> group_means([1.0, 3.0, 5.0], ["a", "a", "b"]).tolist()
  [2.0, 5.0]
  """
  return np.array([members.mean() for members in _grouped(values, groups)])


def student(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(mean, half of its 95 % interval by Student's t), over the last axis."""
  from scipy import stats

  values = np.asarray(values, float)
  count = values.shape[-1]
  error = values.std(axis=-1, ddof=1) / np.sqrt(count)
  return values.mean(axis=-1), stats.t.ppf(0.975, count - 1) * error


def mean_over(values: Sequence[float], groups: Sequence[Any]) -> Mean:
  """The mean with an interval and a test, by groups.

  Args:
    values: one number a measurement; differences of pairs for a paired test.
    groups: the text, or whatever is repeated, of each.

  Raises:
    ValueError: as `group_means`, or for fewer than two groups.
  """
  means = group_means(values, groups)
  if len(means) < 2:
    raise ValueError("an interval needs at least two groups")
  value, half = map(float, student(means))
  return Mean(value, value - half, value + half, len(means), sign_flip(means))


def pooled(values: Sequence[float], groups: Sequence[Any]) -> Mean:
  """The mean of all values, with an interval and a test, by groups.

  Where groups differ in size, `mean_over` gives each the same weight; here each
  has that of its values. With sums S_g and sizes n_g of G groups,

      m = sum S_g / sum n_g,
      var m = G / (G - 1) sum (S_g - m n_g)^2 / (sum n_g)^2,

  and Student's t of G - 1; the same as `mean_over` where sizes are equal.

  Args:
    values: one number a measurement; differences of pairs for a paired test.
    groups: of each.

  Raises:
    ValueError: as `mean_over`.
  """
  found = _grouped(values, groups)
  count = len(found)
  if count < 2:
    raise ValueError("an interval needs at least two groups")
  from scipy import stats

  sums = np.array([members.sum() for members in found])
  sizes = np.array([len(members) for members in found])
  value = float(sums.sum() / sizes.sum())
  error = np.sqrt(count / (count - 1) * np.sum((sums - value * sizes) ** 2))
  half = float(stats.t.ppf(0.975, count - 1) * error / sizes.sum())
  # Sums, not means, are flipped: they weigh each group by its size, as the
  # pooled mean does.
  return Mean(value, value - half, value + half, count, sign_flip(sums))


def mean_of(values: Sequence[float] | np.ndarray) -> Mean:
  """`mean_over` of values that are a group each."""
  return mean_over(values, range(len(values)))


def ends_of(values: Sequence[float] | np.ndarray) -> list[float]:
  """[mean, low, high] over values that are a group each, for a table."""
  return [float(x) for x in mean_of(values)[:3]]


def ends_columns(*names: str) -> list[str]:
  """Columns for `ends_of` of each name, the mean under the name itself.

  >>> ends_columns("loss")
  ['loss', 'loss_low', 'loss_high']
  """
  return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def sign_flip(means: Sequence[float], *, seed: int = 0) -> float:
  """How often signs at random give a mean as far from zero, two-sided.

  Exact up to `EXACT` groups, else from 100,000 assignments, the observed one
  counted. Assumes that a group's mean is as likely to be x as -x.

  >>> sign_flip([1.0, 1.0, 1.0])
  0.25
  """
  means = np.asarray(means, float)
  # The same numbers added in another order differ by rounding. Without a margin
  # an assignment that equals the observed one might not be counted.
  sums = np.abs(_signed_sums(_signs(len(means), seed), means))
  return float(np.mean(sums >= np.abs(means.sum()) * (1 - 1e-12)))


# Many tests of one page are over equally many groups and share these signs, in
# a bit each: of 400 groups 5 MB.
@functools.lru_cache(maxsize=16)
def _signs(count: int, seed: int) -> np.ndarray:
  """[M, ceil(count / 8)] uint8, M assignments, where a bit of 1 is a plus.

  All of them up to `EXACT` groups, else 100,000, the observed one first.
  """
  if count <= EXACT:
    every, place = np.arange(2**count)[:, None], np.arange(count)
    return np.packbits((every >> place & 1).astype(np.uint8), axis=1)
  drawn = np.random.default_rng(seed).integers(2, size=(99_999, count))
  # The observed signs are one of the assignments, so p is never 0.
  ones = np.ones((1, count), np.uint8)
  return np.packbits(np.concatenate([ones, drawn.astype(np.uint8)]), axis=1)


def _signed_sums(signs: np.ndarray, means: np.ndarray) -> np.ndarray:
  """[M] sums of the means under each of `_signs`, eight of them at a time."""
  padded = np.zeros(8 * signs.shape[1])
  padded[: len(means)] = means
  # Row v has the bits of the byte v, so that a byte's sum is looked up.
  bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
  plus = sum(
    (bits @ part)[byte]
    for part, byte in zip(padded.reshape(-1, 8), signs.T, strict=True)
  )
  # Those with a plus less those with a minus.
  return 2 * plus - means.sum()


def logs(kl: np.ndarray) -> np.ndarray:
  """Logarithms of divergences, those that rounding made 0 or less raised."""
  # 1e-9 nats is far below what float32 log-probabilities resolve, about 1e-7.
  return np.log(np.maximum(kl, 1e-9))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[P] Spearman's, of the rows of two [P, n]; NaN where one has no spread.

  >>> a = np.array([[1.0, 2.0, 9.0]])
  >>> rank_correlation(a, np.array([[3, 5, 6]])).tolist()
  [1.0]
  >>> rank_correlation(a, -a).tolist(), rank_correlation(a, 0 * a).tolist()
  ([-1.0], [nan])
  """
  from scipy import stats

  x, y = (
    ranks - ranks.mean(axis=1, keepdims=True)
    for ranks in (stats.rankdata(part, axis=1) for part in (a, b))
  )
  with np.errstate(invalid="ignore"):
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return (x * y).sum(axis=1) / size


def format_ratio(mean: Mean, form: str = ".3g") -> str:
  """A mean of log ratios as a factor with its interval.

  >>> format_ratio(Mean(0.0, -0.6931472, 0.6931472, 5, 1.0), ".2f")
  '1.00 (0.50 to 2.00) times'
  """
  value, low, high = (float(np.exp(x)) for x in mean[:3])
  return f"{value:{form}} ({low:{form}} to {high:{form}}) times"


def mean(values: Sequence[float] | np.ndarray, form: str = ".3f") -> str:
  """'mean (low to high)' over seeds.

  >>> mean([1.0, 1.0, 1.0], ".1f")
  '1.0 (1.0 to 1.0)'
  """
  return mean_of(values).text(form)


def slopes(rows, name: str) -> np.ndarray:
  """[S] by seed: the least-squares slope of a number over `first_mass`.

  Seeds that all rows have, and rows that have the number.
  """
  rows = [row for row in rows if None not in row[name]]
  if len(rows) < 2:
    return np.zeros(0)
  # With other variants for each seed, slopes could not be compared.
  seeds = functools.reduce(np.intersect1d, [row["seeds"] for row in rows])
  found = []
  for seed in seeds:
    at = [row["seeds"].index(seed) for row in rows]
    x, y = (
      np.array([row[key][i] for row, i in zip(rows, at, strict=True)])
      for key in ("first_mass", name)
    )
    off = x - x.mean()
    # Variants with equal sinks have no slope.
    if off @ off > 0:
      found.append(off @ y / (off @ off))
  return np.array(found)
