"""How many heads are inactive, and which of twelve scores finds them?

    python -m launch.reproduce --experiment=inactive_heads \\
        --model=smollm2-135m --out=out/applications

Version 4 of arXiv 2504.03889 (its first version, whose 4 and 14 % `pruning`
tests, has one score): heads ranked by twelve scores of their weights, values
and output, the overlap of what they pick, and the loss on other texts with the
lowest removed, to zero and to the mean, against random heads; and answers to
multiple-choice items, for which 358 MB are fetched once (`items=0` for none).

Took 36 minutes for SmolLM2-135M on two CPU cores beside other work. Expected:
inactive_over_random is supported.
"""

from sinkjax.experiments.applications.inactive_heads.claims import claims
from sinkjax.experiments.applications.inactive_heads.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.applications.inactive_heads.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

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
