"""Is the trained amount of attention on the first token the best one?

    python -m launch.reproduce --experiment=graded_sink \\
        --model=smollm2-135m --out=out/paper

The question of arXiv 2505.11739, in our reading: attention on the first token
is multiplied by g in all layers and heads, and normalised, which is log g added
to its scores. Loss, accuracy, entropy and the exact mixing of tokens as curves
in g, beside another early token as the control; and every head's exact
derivative of the loss by log g, of which finite steps check the largest.

Took 50 minutes for SmolLM2-135M on two CPU cores beside other work, 20 of them
for 40 exact Jacobians. Expected there: more_raises_loss is supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.graded_sink.claims import claims
from sinkjax.experiments.paper.graded_sink.experiment import Config, measure
from sinkjax.experiments.paper.graded_sink.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: min(config.tokens, config.map_tokens),
  given_texts=True,
)
