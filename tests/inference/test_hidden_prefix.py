"""The greedy search on scores by hand, and rows of one shape."""

import itertools

import numpy as np
import pytest

from sinkjax.inference.hidden_prefix import behind, greedy_prefix, log_range


def test_the_search_takes_the_best_next_token_until_nothing_is_gained():
  """Of a sum of independent gains, greedy is the best of all prefixes."""
  gains = {1: 0.2, 2: 3.0, 3: 1.0, 4: 0.05}

  def score(prefix):
    return 10 - sum(gains[token] for token in set(prefix))

  prefix, steps = greedy_prefix(score, list(gains), most=4, gain=0.1)
  assert prefix == [2, 3, 1]
  assert [step.taken for step in steps] == [True, True, True, False]
  assert steps[0].scores == [score((token,)) for token in gains]
  best = min(score(x) for x in itertools.product(gains, repeat=3))
  assert score(prefix) == pytest.approx(best)
  assert greedy_prefix(score, list(gains), most=1, gain=0.1)[0] == [2]
  assert greedy_prefix(score, list(gains), most=3, gain=5.0)[0] == []
  for bad in ({"candidates": [], "most": 1}, {"candidates": [1], "most": 0}):
    with pytest.raises(ValueError, match="at least one candidate"):
      greedy_prefix(score, **bad, gain=0.1)


def test_every_prefix_gives_rows_of_one_shape():
  ids = np.arange(6).reshape(2, 3)
  for prefix in ([], [7], [7, 8]):
    rows, own = behind(prefix, ids, 2)
    assert rows.shape == (2, 5) and own.sum() == 3
    assert (rows[:, : len(prefix)] == prefix).all()
    np.testing.assert_array_equal(rows[:, own], ids)
    # What fills a row stands behind its text.
    assert not own[len(prefix) + 3 :].any()
  with pytest.raises(ValueError, match="3 tokens has room for 2"):
    behind([1, 2, 3], ids, 2)


def test_log_range_is_a_mean_of_logarithms():
  rng = np.random.default_rng(0)
  ends = {site: rng.normal(size=(3, 4, 2)) for site in "ab"}
  want = np.zeros(4)
  for site, layer, text in itertools.product("ab", range(3), range(4)):
    want[text] += np.log(max(map(abs, ends[site][layer, text]))) / 6
  np.testing.assert_allclose(log_range(ends), want)
  # Inputs that are ten times as large have a range larger by log 10.
  tenfold = {site: 10 * x for site, x in ends.items()}
  np.testing.assert_allclose(log_range(tenfold) - want, np.log(10))
