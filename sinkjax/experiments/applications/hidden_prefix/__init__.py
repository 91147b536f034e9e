"""Which hidden prefix takes the largest activations off a text?

    python -m launch.reproduce --experiment=hidden_prefix \\
        --model=smollm2-135m --out=out/applications

Son et al. (2024, arXiv 2406.12016): a greedy search for the tokens before the
text behind which its own activations are the smallest, in our reading of the
objective and without the tuning that follows there. Sink rate, activation
range and the loss that 8 bits add, with and without it, against random tokens,
BOS, and the text's first token left unrounded.

Took 6 minutes for SmolLM2-135M on two CPU cores beside other work. Expected:
prefix_takes_ranges, prefix_takes_the_sink and prefix_lowers_cost_of_bits are
supported.
"""

from sinkjax.experiments.applications.hidden_prefix.claims import claims
from sinkjax.experiments.applications.hidden_prefix.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.applications.hidden_prefix.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
