"""Which normalisers, biases, gates and registers have sinks?

    python -m launch.reproduce --experiment=attention_variants --scale=cpu \\
      --out=DIR

The variants of Gu et al. (2025, arXiv 2410.10781, section 7) and of those who
came after, each an option of the one block, trained alike. The base "softmax"
has BOS pinned at the start of every window, which is a learned sink token.

The cpu scale (54 runs) took 3.4 hours on two CPU cores; at gpu scale, 14
of the 18 variants (42 runs) took 105 minutes on an H100. Expected verdicts: at
cpu scale 3 agree and 13 are undecided; at gpu scale 7 agree and 5 are
undecided, because a variant without a sink is a worse model.
"""

from sinkjax.experiments.harness.sweep import Sweep
from sinkjax.experiments.training.attention_variants import papers
from sinkjax.experiments.training.attention_variants.claims import claims
from sinkjax.experiments.training.attention_variants.experiment import (
  SCALES,
  Config,
  relative_sinks,
  variants,
)
from sinkjax.experiments.training.attention_variants.figures import (
  CHARTS,
  DRAWN,
)

EXPERIMENT = Sweep(
  "Which attention has sinks?",
  Config,
  SCALES,
  variants,
  claims,
  CHARTS,
  curves=("first_mass", "sink_rate"),
  curves_of=DRAWN,
  numbers=lambda config, trained: {"left": relative_sinks(trained)},
  tables=papers.tables,
).experiment()
