"""Does the sink add something, or does it make the others smaller?

    python -m launch.reproduce --experiment=adds_or_rescales \\
        --model=smollm2-135m --out=out/paper

The question of arXiv 2606.07604 and 2601.22966, whose formulas were not at
hand, in our reading. Of the sink: rows as they are, without its value, and
renormalised without it, with and without its value. Of dimensions of the
residual stream that are large on most tokens: not read, not counted in the
norm, or both, which is zeroing them after or before it.

Took 4 minutes for SmolLM2-135M on two CPU cores beside other work. Expected:
takes_more_than_it_adds, rows_need_the_sink and sink_rescales are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.adds_or_rescales.claims import claims
from sinkjax.experiments.paper.adds_or_rescales.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.paper.adds_or_rescales.figures import (
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
