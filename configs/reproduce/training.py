"""The experiments that train, each field to be set; the scale after a colon.

    python -m launch.reproduce --config=configs/reproduce/training.py:cpu \
      --experiment=bigram_backcopy --scale=cpu \
      --config.bigram_backcopy.steps=1000 --out=DIR
"""

import dataclasses
import importlib

from ml_collections import ConfigDict

from sinkjax.experiments import TRAINING


def get_config(scale: str = "demo") -> ConfigDict:
  """The `Config` of every experiment that trains, at a scale."""
  found = {"scale": scale}
  for name, module in TRAINING.items():
    module = importlib.import_module(f"sinkjax.experiments.{module}")
    found[name] = dataclasses.asdict(module.Config(**module.SCALES[scale]))
  return ConfigDict(found)
