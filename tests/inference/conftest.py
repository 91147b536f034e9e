"""A text for the tests of caches."""

import numpy as np
import pytest
from kv_walk import LENGTH


@pytest.fixture(scope="session")
def text():
  """[2, LENGTH] ids that every model of the tests knows."""
  return np.random.default_rng(0).integers(3, 64, (2, LENGTH))
