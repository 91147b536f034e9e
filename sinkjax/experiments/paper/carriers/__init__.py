"""Which heads carry the exact map between tokens, and are they sink heads?

    python -m launch.reproduce --experiment=carriers \\
        --model=smollm2-135m --out=out/paper

Section 3.2 of the paper argues that a head that attends to the sink does next
to nothing, which keeps tokens from mixing. Here the exact Jacobian from earlier
tokens to the last one is split, at every layer, by who carries it there: each
head by its values and by its scores, the MLP of what each head wrote, the
residual and the MLP (`sinkjax.carriers`). With the sink, with position 0 hidden
from a layer on, and with the next token hidden as a control. Sink heads are
those whose score on longer stretches of the same texts exceeds a threshold.

Takes minutes for each of 18 maps of SmolLM2-135M on two CPU cores; the whole
was not timed, and is not recorded yet. Expected there: that sink heads carry
less, that hiding the sink makes them carry more, and that heads carry more by
values than by scores are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.carriers.claims import claims
from sinkjax.experiments.paper.carriers.experiment import Config, measure
from sinkjax.experiments.paper.carriers.figures import TITLE, draw, sections

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
