"""A small model trained until it has strong sinks: `small.py` for 25M tokens.

    python -m launch.train --config=configs/train/strong.py --workdir=DIR

The model, data and optimiser are those of `small.py`, with four times its
steps: of what was tried there, steps were what a strong sink lacked. Sinks and
the held-out loss are also measured at `EARLY`, evenly spaced on a logarithmic
axis, since checkpoints of a run do not outlive it.

Measured once, on 2 cores (Intel Xeon) beside other work, in 105 minutes; on 48
held-out texts, at the end and, in brackets, after 1,500 of these steps: a sink
rate of 33.1 % (2.0) at eps 0.3 and of 8.5 % (0.0) at eps 0.5; 0.258 (0.146) of
attention on the first token where uniform attention gives 0.074; the value of
BOS at 0.24 (0.44) of the others' norm; the largest activation 33 (17) times the
median; a held-out loss of 2.719 (3.107) nats. On the built-in text of
`launch.analyze` 43.8 % of heads have their sink with BOS and none without it
(`--prefix=none`). The model, in bfloat16, and all measurements are in
`docs/models/strong`.
"""

import pathlib
import runpy

import numpy as np
from ml_collections import ConfigDict

SMALL = pathlib.Path(__file__).with_name("small.py")
STEPS = 6000
EARLY = tuple(
  int(step) for step in np.unique(np.geomspace(1, STEPS, 20).round())
)


def get_config() -> ConfigDict:
  """Fields of `TrainConfig`: those of `small.py`, but for a few."""
  config = runpy.run_path(str(SMALL))["get_config"]()
  config.update(steps=STEPS, probe_steps=EARLY, probe_texts=48)
  return config
