"""Are the sink and the valley of entropy in the middle layers one thing?

    python -m launch.reproduce --experiment=compression_valley \\
        --model=smollm2-135m --out=out/paper

Queipo-de-Llano et al. (2025, arXiv 2510.06477), whose formulas were not at
hand, in our reading: where the first token's residual stream is massive, the
spectrum of all tokens' states has next to no entropy, and heads attend to the
first token. Entropy, the first token's norm and the sink rate by layer; as the
model is, without the first token's largest dimensions, without what the MLP of
the layer with the largest rise writes to it, and with a control for each.

Eleven texts took four minutes for SmolLM2-135M on two CPU cores beside other
work. Expected there: all claims are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.compression_valley.claims import claims
from sinkjax.experiments.paper.compression_valley.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.paper.compression_valley.figures import (
  TITLE,
  draw,
  sections,
)

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: config.tokens,
  given_texts=True,
)
