"""When, in training, a quantity has made half of its change."""

import numpy as np
from jaxtyping import Float


def half_step(
  steps: Float[np.ndarray, "K"], values: Float[np.ndarray, "*N K"]
) -> Float[np.ndarray, "*N"]:
  """The step at which a curve first crosses half of its change.

      v(s) = (v_0 + v_{K-1}) / 2,  v linear in log(1 + s) between the steps

  Checkpoints are spaced by factors, so that a step between two of them is read
  off a logarithmic axis, on which step 0 has a place, too. Of a curve that
  crosses more than once the first crossing counts. O(N K).

  Args:
    steps: [K] at least two, increasing, from 0 on.
    values: [..., K] at each step.

  Returns:
    The step; NaN for a curve that ends where it began.

  Raises:
    ValueError: for steps that do not increase or are below 0.

  >>> steps = np.array([0.0, 1.0, 3.0])
  >>> half_step(steps, np.array([5.0, 5.0, 9.0])).round(3).item()
  1.828
  """
  steps, values = np.asarray(steps, float), np.asarray(values, float)
  if len(steps) < 2 or steps[0] < 0 or (np.diff(steps) <= 0).any():
    raise ValueError(
      "steps must be at least two that increase from 0 on, got "
      f"{steps.tolist()}"
    )
  places = np.log1p(steps)
  first, last = values[..., :1], values[..., -1:]
  change = last - first
  # From 0 to 1, whether the quantity grows or falls.
  with np.errstate(invalid="ignore", divide="ignore"):
    share = (values - first) / change
  over = share >= 0.5
  # The first point at or above a half; the curve starts at 0, so it is not the
  # first of all.
  at = np.maximum(np.argmax(over, axis=-1), 1)[..., None]
  low, high = (
    np.take_along_axis(share, i, axis=-1)[..., 0] for i in (at - 1, at)
  )
  with np.errstate(invalid="ignore"):
    part = (0.5 - low) / (high - low)
  begin, end = places[at[..., 0] - 1], places[at[..., 0]]
  found = np.expm1(begin + part * (end - begin))
  return np.where(change[..., 0] == 0, np.nan, found)
