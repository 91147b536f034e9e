"""Every experiment of `launch.reproduce` at its default, on SmolLM2-135M.

    python -m launch.reproduce --config=configs/reproduce/default.py --out=DIR

The same as without a config; here each field can be set by itself, as in
`--config.prompts.count=5`, those of --experiment=uses too. Two CPU cores: the
time, the machine and what comes out are in docs/results/paper-smollm2-135m and
docs/results/uses-smollm2-135m.
"""

import dataclasses
import importlib

from ml_collections import ConfigDict

from sinkjax.experiments import EXPERIMENTS, USES


def get_config() -> ConfigDict:
  """The fields of every experiment's `Config`."""
  config = {"model": "smollm2-135m", "prefix": "auto"}
  for name, module in {**EXPERIMENTS, **USES}.items():
    experiment = importlib.import_module(f"sinkjax.experiments.{module}")
    config[name] = dataclasses.asdict(experiment.Config())
  return ConfigDict(config)
