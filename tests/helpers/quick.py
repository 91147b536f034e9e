"""Which values of a parametrised test the gate runs."""

import pytest


def quick(names, *kept):
  """Only these are not slow."""
  return [
    name if name in kept else pytest.param(name, marks=pytest.mark.slow)
    for name in names
  ]
