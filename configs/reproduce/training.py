"""The fields of every experiment that trains models, at a scale.

    python -m launch.reproduce --config=configs/reproduce/training.py:cpu \\
      --experiment=bigram_backcopy --scale=cpu \\
      --config.bigram_backcopy.steps=1000 --out=DIR

The scale stands after the colon, and --scale must be the same one.
"""

import dataclasses

from ml_collections import ConfigDict

from sinkjax.experiments import REGISTRY


def get_config(scale: str = "demo") -> ConfigDict:
  """The Config of every experiment that trains, at a scale."""
  found = {"scale": scale}
  for entry in REGISTRY:
    experiment = entry.load()
    if experiment.scales is not None:
      config = experiment.configured(scale, {})
      found[entry.name] = dataclasses.asdict(config)
  return ConfigDict(found)
