"""Where does the sink go when the first token is removed or hidden?

    python -m launch.reproduce --experiment=smoothing \\
        --model=smollm2-135m --out=out/paper

Section 3.1 and figure 3 of the paper. Every text is run unchanged, without its
first token, and with position 0 hidden from layer l on, for every l. Measured
are where the sink goes, the entropy of attention, the loss, and, on a few short
texts, the mixing of the exact Jacobian.

Took 198 s for SmolLM2-135M on two CPU cores. Expected there: four claims are
supported; removing the first token has no effect on the entropy beyond the
margin, since the sink moves to the new first token; and that on mixing is
inconclusive, as three texts are fewer than a verdict needs.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.smoothing.claims import claims
from sinkjax.experiments.paper.smoothing.experiment import Config, measure
from sinkjax.experiments.paper.smoothing.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: min(config.tokens, config.jacobian_tokens),
  given_texts=True,
)
