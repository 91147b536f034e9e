"""Does noise on embeddings in training grow sinks or robustness?

    python -m launch.reproduce \\
      --experiment=sink_regulariser,noise_training --scale=cpu --out=DIR

Small models are trained with noise on their embeddings, in random directions or
along the gradient, and without, on equal tokens. Each trained model then meets
the same changes, see `robustness_score`; so do the models of `sink_regulariser`
if they are in the same folder, whose sinks were set by a term in the loss.
Barbero et al. (2025, arXiv 2504.02732) hold that sinks keep changes from
spreading.

The cpu scale (9 runs, and measurements of 24 models) took 42 minutes on two CPU
cores beside `sink_regulariser`. Expected verdicts: all inconclusive, as three
seeds are fewer than a verdict needs; `seeds` takes more.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.sweep import Sweep
from sinkjax.experiments.training.noise_training.claims import claims
from sinkjax.experiments.training.noise_training.experiment import (
  REGULARISED,
  SCALES,
  Config,
  robustness_rows,
  robustness_table,
  variants,
)
from sinkjax.experiments.training.noise_training.figures import CHARTS

SWEEP = Sweep(
  "Training under noise, and the robustness of trained models",
  Config,
  SCALES,
  variants,
  lambda trained, result: claims(result.numbers["sturdiness"]),
  CHARTS,
  curves_body="Measured on the starts of held-out documents, read as in "
  "training, without noise.",
  notes=lambda config: [
    "then their robustness and that of the models of "
    f"{REGULARISED} in the same folder, if any: {config.tests} texts of "
    f"{config.tokens} tokens"
  ],
)


def measure(
  config: Config,
  *,
  folder: pathlib.Path,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains the runs that are missing, then measures every trained model.

  Args:
    config: of the sweep.
    folder: where runs are kept; other experiments' folders are beside it.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `Sweep.measure`.

  Cost: that of the runs, of which an adversarial one takes five thirds of
    another; a model is measured in seconds.
  """
  folder = pathlib.Path(folder)
  result = SWEEP.measure(config, folder=folder, progress=progress)
  rows = robustness_rows(config, folder, progress)
  numbers = {
    "share": config.share,
    "gradients": config.gradients,
    "tests": config.tests,
    "tokens": config.tokens,
    "sturdiness": rows,  # the name in recorded results, of the files as well
  }
  return dataclasses.replace(
    result,
    numbers=result.numbers | numbers,
    tables=result.tables | {"sturdiness.csv": robustness_table(rows)},
  )


EXPERIMENT = dataclasses.replace(SWEEP.experiment(), measure=measure)
