"""The defaults of every experiment on a given model, written out.

    python -m launch.reproduce --config=configs/reproduce/default.py --out=DIR

measures the same as without --config. Copy this file and change it to set many
fields at once. Results on two CPU cores, with the time that each experiment
took, are in docs/results/paper-smollm2-135m and docs/results/uses-smollm2-135m.
"""

import dataclasses

from ml_collections import ConfigDict

from sinkjax.experiments import REGISTRY


def get_config() -> ConfigDict:
  """The fields of the Config of every experiment that takes a model."""
  config = {"model": "smollm2-135m", "prefix": "auto"}
  for entry in REGISTRY:
    experiment = entry.load()
    if experiment.scales is None:
      config[entry.name] = dataclasses.asdict(experiment.config())
  return ConfigDict(config)
