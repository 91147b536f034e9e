"""Areas and their covariance, by all pairs and by drawing anew."""

import numpy as np
import pytest

from sinkjax.experiments.harness.roc import auroc, delong, item_values


def drawn(rng, count=60):
  labels = rng.random(count) < 0.4
  one = rng.normal(size=count) + labels
  two = np.round(one + rng.normal(size=count), 0)  # with ties
  return np.stack([one, two]), labels


def test_all_pairs():
  scores, labels = drawn(np.random.default_rng(0))
  area, cov = delong(scores, labels)
  psi = [
    np.where(
      s[labels][:, None] == s[~labels], 0.5, s[labels][:, None] > s[~labels]
    )
    for s in scores
  ]
  np.testing.assert_allclose(area, np.mean(psi, axis=(1, 2)))
  np.testing.assert_allclose(auroc(scores, labels), area)
  v, w = np.mean(psi, axis=2), np.mean(psi, axis=1)
  want = np.cov(v) / v.shape[1] + np.cov(w) / w.shape[1]
  np.testing.assert_allclose(cov, want)
  # Equal scores differ by nothing, without any error.
  _, same = delong(np.stack([scores[0]] * 2), labels)
  np.testing.assert_allclose(np.array([1, -1]) @ same @ [1, -1], 0, atol=1e-15)


def test_the_error_is_the_spread_of_areas_over_draws():
  rng, areas, errors = np.random.default_rng(1), [], []
  for _ in range(400):
    scores, labels = drawn(rng, 80)
    area, cov = delong(scores, labels)
    areas.append(area[0] - area[1])
    errors.append(np.array([1, -1]) @ cov @ [1, -1])
  # The spread of 400 draws is known to 3.5 %, of its square to 7.
  assert abs(np.mean(errors) / np.var(areas) - 1) < 0.2


def test_one_kind_of_label_is_refused():
  with pytest.raises(ValueError, match="got 0 and 3"):
    auroc(np.arange(3), np.zeros(3, bool))
  with pytest.raises(ValueError, match="two positives and two negatives"):
    delong(np.arange(3), [True, False, False])


def test_values_of_items_have_the_area_and_delong_s_error():
  scores, labels = drawn(np.random.default_rng(2), 400)
  values = item_values(scores, labels)
  area, cov = delong(scores, labels)
  np.testing.assert_allclose(values.mean(axis=-1), area)
  # P - 1 and N - 1 of 160 and 240 items in the place of P and N.
  np.testing.assert_allclose(np.cov(values) / 400, cov, rtol=2e-2)
  gap = values[0] - values[1]
  error = np.array([1, -1]) @ cov @ [1, -1]
  np.testing.assert_allclose(gap.var(ddof=1) / 400, error, rtol=2e-2)
