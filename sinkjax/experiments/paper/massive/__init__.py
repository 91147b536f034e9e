"""What makes massive activations, and what depends on them?

    python -m launch.reproduce --experiment=massive \\
        --model=smollm2-135m --out=out/paper

Sun et al. (2024, arXiv 2402.17762): a few dimensions of the first token's
residual stream are thousands of times the median. Set to zero, the model
breaks; fixed at their mean, it does not. Asked here as well: does the sink need
them?

Takes 8 s for SmolLM2-135M on two CPU cores. Expected there: three claims are
supported; that the sink needs massive activations is contradicted.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.massive.claims import claims
from sinkjax.experiments.paper.massive.experiment import Config, measure
from sinkjax.experiments.paper.massive.figures import TITLE, draw, sections

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
