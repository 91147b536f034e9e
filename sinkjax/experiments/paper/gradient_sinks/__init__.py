"""Does the loss's gradient gather on the sink, and do norms take it away?

    python -m launch.reproduce --experiment=gradient_sinks \\
        --model=smollm2-135m --out=out/paper

Chen et al. (2026, arXiv 2603.17771): where attention gathers on a token, so
does the gradient that comes back through it, and a massive activation makes the
norm before the attention pass little of it on. Measured at every layer and
token: the gradient at what the attention reads, what of it comes back through
the norm, and the norm's own factor, one over the size of its input.

Takes half a minute for SmolLM2-135M on two CPU cores. Expected there: that the
gradient gathers on the first token, that norms take it away, and that it
gathers more in layers with stronger sinks are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.gradient_sinks.claims import claims
from sinkjax.experiments.paper.gradient_sinks.experiment import Config, measure
from sinkjax.experiments.paper.gradient_sinks.figures import (
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
