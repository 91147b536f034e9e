"""Every experiment on a given model, at its default, on SmolLM2-135M.

    python -m launch.reproduce --config=configs/reproduce/default.py --out=DIR

The same as without a config; here each field can be set by itself, as in
`--config.prompts.count=5`, those of --experiment=applications too. Two CPU
cores: the time, the machine and what comes out are in
docs/results/paper-smollm2-135m and docs/results/uses-smollm2-135m.
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
