"""Half of a change, in closed form."""

import numpy as np
import pytest

from sinkjax.metrics.emergence import half_step


def test_curves_by_hand():
  steps = np.expm1(np.arange(5.0))  # evenly spaced on the axis of log(1 + s)
  curves = np.array(
    [
      [0, 1, 2, 3, 4],
      [4, 3, 2, 1, 0],
      [0, 0, 0, 0, 1],
      [2, 2, 8, 2, 8],  # the first crossing counts
      [0, 10, 0, 0, 1],
      [3, 3, 3, 3, 3],
    ],
    float,
  )
  want = np.expm1([2, 2, 3.5, 1.5, 0.05])
  found = half_step(steps, curves)
  np.testing.assert_allclose(found[:-1], want, rtol=1e-12)
  assert np.isnan(found[-1])
  # No matter in which unit, and with other axes in front.
  again = half_step(steps, (7 - 3 * curves).reshape(2, 3, 5)).ravel()
  np.testing.assert_allclose(again[:-1], want, rtol=1e-12)


def test_finer_steps_of_a_curve_change_nothing():
  """Of a curve that is linear between its own points."""
  steps, curve = np.array([0.0, 1, 10, 100]), np.array([1.0, 2, 3, 9])
  fine = np.expm1(np.linspace(0, np.log1p(100), 1001))
  fine = np.union1d(fine, steps)
  between = np.interp(np.log1p(fine), np.log1p(steps), curve)
  want = half_step(steps, curve)
  np.testing.assert_allclose(half_step(fine, between), want, rtol=1e-9)


@pytest.mark.parametrize("steps", [[0], [0, 0], [3, 1], [-1, 2]])
def test_steps_that_do_not_increase_are_refused(steps):
  with pytest.raises(ValueError, match="must be at least two that increase"):
    half_step(np.array(steps, float), np.zeros(len(steps)))
