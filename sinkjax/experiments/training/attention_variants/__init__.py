"""Which normalisers, biases, gates and registers have sinks?

    python -m launch.reproduce --experiment=attention_variants --scale=cpu \\
      --out=DIR

The variants of Gu et al. (2025, arXiv 2410.10781, section 7) and of those who
came after, each an option of the one block, trained alike. The base "softmax"
has BOS pinned at the start of every window, which is a learned sink token.

The cpu scale (54 runs) took 3.4 hours on two CPU cores; at gpu scale, 14
of the 18 variants (42 runs) took 105 minutes on an H100. Expected verdicts: all
inconclusive, as three seeds are fewer than a verdict needs; `seeds` takes more.
A variant without a sink that is a worse model stays inconclusive.
"""

from sinkjax.experiments.harness.sweep import Sweep
from sinkjax.experiments.training.attention_variants import papers
from sinkjax.experiments.training.attention_variants.claims import claims
from sinkjax.experiments.training.attention_variants.experiment import (
  SCALES,
  Config,
  variants,
)
from sinkjax.experiments.training.attention_variants.figures import (
  CHARTS,
  DRAWN,
)
from sinkjax.experiments.training.attention_variants.masses import (
  relative_sinks,
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
  numbers=lambda config, trained: {
    "left": relative_sinks(
      {name: trained.as_trained(name) for name in trained.probes}
    )
  },
  tables=papers.tables,
).experiment()
