"""Which tokens' keys and values should stay in full precision?

    python -m launch.reproduce --experiment=predicted_protection \\
        --model=smollm2-135m --out=out/applications

The question of arXiv 2508.04257, whose text was not at hand, in our reading:
few-bit caches keep the first tokens in full precision, since one of them is the
sink; but sinks stand elsewhere, too, and can be predicted from the states after
the layer that makes them. At equal memory, so many tokens of each text: the
first ones, those that are predicted, those that `sinkjax.find_sinks` finds,
those that receive the most attention, or any.

Seven texts took eight minutes for SmolLM2-135M on two CPU cores beside other
work. Expected there: first_lowers_loss and predicted_over_random are supported.
"""

from sinkjax.experiments.applications.predicted_protection.claims import claims
from sinkjax.experiments.applications.predicted_protection.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.applications.predicted_protection.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
