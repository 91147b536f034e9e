"""Kinds of query, by hand, and ratios that no length changes."""

import numpy as np
import pytest

from sinkjax.metrics import queries


def test_copyable_is_what_a_double_loop_finds():
  ids = np.random.default_rng(0).integers(4, size=(3, 40))
  want = np.zeros(ids.shape, bool)
  for p, row in enumerate(ids):
    for t in range(1, 40):
      pairs = [(row[s - 1], row[s]) for s in range(1, t)]
      want[p, t] = (row[t - 1], row[t]) in pairs
  assert 0 < want.sum() < want.size
  np.testing.assert_array_equal(queries.copyable(ids), want)


def test_surprising_takes_the_greatest_losses_of_each_text():
  nats = np.random.default_rng(0).normal(size=(4, 21))
  nats[:, 0] = np.nan
  found = queries.surprising(nats, 0.25)
  assert (found.sum(axis=1) == 5).all() and not found[:, 0].any()
  for row, here in zip(nats, found, strict=True):
    assert row[here].min() > np.nanmax(np.where(here, np.nan, row))
  # Of equal losses the earlier ones come first.
  same = queries.surprising(np.ones((1, 4)), 0.5)
  assert same[0].tolist() == [True, True, False, False]
  with pytest.raises(ValueError, match="between 0 and 1, got 1"):
    queries.surprising(nats, 1.0)


@pytest.mark.parametrize(
  ("pieces", "first", "signs"),
  [
    (["The", " king", "dom", "."], [1, 1, 0, 0], [0, 0, 0, 1]),
    (["a", "\n", "\n", "b"], [1, 0, 0, 1], [0, 0, 0, 0]),
    ([" (", "1", "2", ")"], [0, 1, 0, 0], [1, 0, 0, 1]),
    (["don", "'", "t", "", "x"], [1, 0, 1, 0, 0], [0, 1, 0, 0, 0]),
    (["x ", "y"], [1, 1], [0, 0]),
  ],
)
def test_words_and_punctuation(pieces, first, signs):
  assert queries.first_of_word(pieces).tolist() == list(map(bool, first))
  assert queries.punctuation(pieces).tolist() == list(map(bool, signs))


def test_even_attention_has_ratio_one_at_every_length():
  rng = np.random.default_rng(0)
  for length in (3, 17, 300):
    even = 1 / np.arange(1, length + 1)
    some = rng.random((5, length)) < 0.5
    some[:, -1] = True
    np.testing.assert_allclose(queries.over_even(even, some[0]), 1)
    ratio = queries.over_even(np.broadcast_to(3 * even, (5, length)), some)
    np.testing.assert_allclose(ratio, 3)
  assert np.isnan(queries.over_even(even, np.zeros(300, bool)))


def test_equal_positions_take_out_where_a_kind_stands():
  """Attention that falls along the text, and a kind that stands early."""
  length, width = 400, 4
  fall = np.exp(-(np.arange(length) // width) / 20.0)
  rng = np.random.default_rng(0)
  early = rng.random(length) < np.linspace(0.9, 0.1, length)
  ratio = queries.log_ratio_at_equal_positions(fall, early, ~early, width)
  assert ratio == pytest.approx(0, abs=1e-12)
  # By positions left out of account the early kind seems to give more.
  assert np.log(fall[early].mean() / fall[~early].mean()) > 0.3
  more = np.where(early, 1.5 * fall, fall)
  ratio = queries.log_ratio_at_equal_positions(more, early, ~early, width)
  assert ratio == pytest.approx(np.log(1.5))
  # Both one kind, or a kind without others in its blocks: nothing to compare.
  none = np.zeros(length, bool)
  assert np.isnan(queries.log_ratio_at_equal_positions(fall, early, none))
  first = np.arange(length) < 8
  assert np.isnan(queries.log_ratio_at_equal_positions(fall, first, ~first))
  with pytest.raises(ValueError, match="at least 1"):
    queries.log_ratio_at_equal_positions(fall, early, ~early, 0)
