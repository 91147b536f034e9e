"""How do the over-squashing bounds compare with the exact Jacobian?

    python -m launch.reproduce --experiment=bound \\
        --model=smollm2-135m --out=out/paper

Theorem 3.2 of the paper. For some short texts, with the sink, with position 0
hidden from a layer on, and with the next token hidden as a control: three valid
bounds, the norms that they bound, and the decades (powers of ten) between.

Took 354 s for SmolLM2-135M on two CPU cores, without the control. Expected
there: that the bounds hold is supported; that the sink lowers them is
inconclusive, as four texts are fewer than a verdict needs; `--count` takes
more.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.bound.claims import claims
from sinkjax.experiments.paper.bound.experiment import Config, measure
from sinkjax.experiments.paper.bound.figures import TITLE, draw, sections

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
