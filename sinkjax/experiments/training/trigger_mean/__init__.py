"""Does a task that softmax cannot solve without a sink grow one?

    python -m launch.reproduce --experiment=trigger_mean --scale=cpu --out=DIR

The task of arXiv 2603.11487: at a trigger the output is the mean of the tokens
before it, at any other token it is zero. Weights that must sum to one can only
add up to zero on a value that is zero, that of the first token; weights without
that constraint can be zero themselves. The model is one attention layer whose
output is the answer.

The cpu scale (18 runs) took 3 minutes on two CPU cores. Expected verdicts: all
inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes
more.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.training.trigger_mean.claims import claims
from sinkjax.experiments.training.trigger_mean.experiment import (
  SCALES,
  Config,
  measure,
  plan,
)
from sinkjax.experiments.training.trigger_mean.figures import (
  TITLE,
  draw,
  sections,
)

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, scales=SCALES, plan=plan
)
