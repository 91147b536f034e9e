"""Intervals over groups: honest by simulation, exact where they can be."""

import numpy as np
import pytest
from scipy import stats

from sinkjax.experiments.harness.stats import (
  group_means,
  mean_over,
  pooled,
  sign_flip,
)


def test_intervals_cover_where_groups_differ():
  """Ten members each share most of their noise: members are no sample."""
  rng = np.random.default_rng(0)
  groups, covered, narrow = np.repeat(np.arange(8), 10), 0, 0
  for _ in range(2000):
    values = rng.normal(size=8)[groups] + 0.2 * rng.normal(size=80) + 3.0
    found = mean_over(values, groups)
    covered += found.low <= 3.0 <= found.high
    half = 1.99 * values.std(ddof=1) / np.sqrt(80)
    narrow += abs(values.mean() - 3.0) <= half
  assert 0.93 < covered / 2000 < 0.97
  assert narrow / 2000 < 0.6  # what counting every member would give


def test_mean_is_of_groups():
  found = mean_over([0.0, 0.0, 0.0, 4.0], ["a", "a", "a", "b"])
  assert found.value == 2.0 and found.groups == 2
  want = stats.ttest_1samp([0.0, 4.0], 0).confidence_interval(0.95)
  assert (found.low, found.high) == pytest.approx((want.low, want.high))


@pytest.mark.thorough
def test_pooled_weighs_groups_by_size():
  values, groups = [0.0, 0.0, 3.0, 9.0], ["a", "a", "a", "b"]
  assert pooled(values, groups).value == 3.0
  equal = [1.0, 2.0, 5.0, -1.0, 0.5, 3.0]
  for x, y in zip(
    pooled(equal, [0, 0, 1, 1, 2, 2]),
    mean_over(equal, [0, 0, 1, 1, 2, 2]),
    strict=True,
  ):
    assert x == pytest.approx(y)
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(12), [2, 9, 5, 7, 1, 9, 8, 3, 9, 6, 9, 4])
  covered = 0
  for _ in range(2000):
    values = rng.normal(size=12)[groups] + 0.2 * rng.normal(size=72) + 3.0
    found = pooled(values, groups)
    covered += found.low <= 3.0 <= found.high
  assert 0.915 < covered / 2000 < 0.97


def test_sign_flip_is_exact_and_uniform_under_its_null():
  values = np.array([1.0, 2.0, -0.5, 3.0])
  sums = [
    abs(values @ [(1 if i >> k & 1 else -1) for k in range(4)])
    for i in range(16)
  ]
  want = np.mean(np.array(sums) >= abs(values.sum()) - 1e-9)
  assert sign_flip(values) == want
  rng = np.random.default_rng(1)
  p = [sign_flip(rng.normal(size=9)) for _ in range(2000)]
  assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.02)
  many = rng.normal(size=30) + 0.4
  exact = stats.permutation_test(
    (many,), np.mean, permutation_type="samples", n_resamples=50_000, rng=0
  )
  assert sign_flip(many) == pytest.approx(exact.pvalue, abs=0.01)


def test_refusals():
  with pytest.raises(ValueError, match="one group each"):
    group_means([1.0], [])
  with pytest.raises(ValueError, match="at least two groups"):
    mean_over([1.0, 2.0], ["a", "a"])
