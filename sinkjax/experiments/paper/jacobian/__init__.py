"""How much do tokens mix, by exact Jacobians, with and without the sink?

    python -m launch.reproduce --experiment=jacobian \\
        --model=smollm2-135m --out=out/paper

Theorem 3.2 and section 3.1 of the paper. Exact Jacobians of several texts
after every layer, of the unchanged model, with position 0 hidden from a layer
on, and with the next token hidden as a control; and estimates at a greater
length, whose intervals are checked against exact maps where both are known.

Took 578 s for SmolLM2-135M on two CPU cores, without the control. Expected
there: all three claims are inconclusive, as four texts are fewer than a verdict
needs; `--count` takes more.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.jacobian.claims import claims
from sinkjax.experiments.paper.jacobian.experiment import Config, measure
from sinkjax.experiments.paper.jacobian.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: min(config.tokens, config.long_tokens),
  given_texts=True,
)
