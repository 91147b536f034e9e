"""Wall-clock times of several ways to do one thing, in interleaved rounds."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sinkjax.experiments.harness.stats import Mean, mean_over


def interleaved(
  works: Mapping[str, Callable[[], Any]], rounds: int, *, seed: int = 0
) -> dict[str, np.ndarray]:
  """[R] wall-clock seconds of each, every round in a random order of its own.

  Each is called once before, to compile. Whatever else the machine does slows
  all of them alike, so ratios within a round say more than seconds.

  Args:
    works: what is timed, by name; results are waited for.
    rounds: R.
    seed: of the orders.

  Raises:
    ValueError: for fewer than two rounds, which have no interval.

  Cost: R + 1 calls of each.
  """
  if rounds < 2:
    raise ValueError(f"rounds must be 2 or more, got {rounds}")
  for work in works.values():
    jax.block_until_ready(work())
  rng, names = np.random.default_rng(seed), list(works)
  found = {name: np.zeros(rounds) for name in names}
  for i in range(rounds):
    for name in rng.permutation(names):
      start = time.perf_counter()
      jax.block_until_ready(works[name]())
      found[name][i] = time.perf_counter() - start
  return found


def time_saved(seconds: np.ndarray, plain: np.ndarray) -> Mean:
  """The share of the time of `plain` that is saved, over [R] rounds."""
  return mean_over(1 - seconds / plain, range(len(plain)))
