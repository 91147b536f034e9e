"""Do trained models with weaker sinks mix more?

    python -m launch.reproduce --scale=cpu --out=DIR --experiment=\\
      context_length,packing,attention_variants,sink_regulariser,mixing

The other experiments leave their trained models in the same folder; here each
is measured with the exact Jacobian, the over-squashing bounds, rank collapse
and the spread of a perturbation (Barbero et al. 2025, theorem 3.2 and section
3).

Measuring the 96 models of the cpu scale took 24 minutes on two CPU cores.
Expected verdicts: that the bound holds is supported; all others are
inconclusive, as three seeds of the models are fewer than a verdict needs.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.training.mixing.claims import claims
from sinkjax.experiments.training.mixing.experiment import (
  SCALES,
  Config,
  measure,
  plan,
)
from sinkjax.experiments.training.mixing.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, scales=SCALES, plan=plan
)
