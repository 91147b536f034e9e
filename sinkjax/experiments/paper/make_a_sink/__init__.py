"""Can any token be made a sink, and position 0 be kept from being one?

    python -m launch.reproduce --experiment=make_a_sink \\
        --model=smollm2-135m --out=out/paper

The question of arXiv 2605.06611, whose text was not at hand, in our reading:
the first token differs from others in that it sees nothing but itself, so that
what attention writes to it is one value and no average of many. A token in the
middle of a text is given one property of the first after the other: it sees
nothing but itself; what attention writes to it has the size that it has at the
first token; its state has the first token's norm, or is the first token's,
whole or in its largest dimensions. And position 0 is given the average of what
attention writes to other tokens. Each has a control.

Eleven texts took three minutes for SmolLM2-135M on two CPU cores beside other
work. Expected there: alone_makes_sink, state_makes_sink and average_takes_sink
are supported; attention of the first token's size, its norm and its largest
dimensions alone have no effect.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.make_a_sink.claims import claims
from sinkjax.experiments.paper.make_a_sink.experiment import Config, measure
from sinkjax.experiments.paper.make_a_sink.figures import TITLE, draw, sections

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
