"""A config with a field that there is not."""

from ml_collections import ConfigDict


def get_config():
  """Colourful."""
  return ConfigDict({"perturbation": {"colour": "red"}})
