"""Which heads act on a trigger and otherwise attend to the sink?

    python -m launch.reproduce --experiment=noop_heads \\
        --model=smollm2-135m --out=out/paper

Section 3.2 and figure 4 of the paper, whose example is one head: it attends to
an apostrophe if that is the previous token, and otherwise to BOS, whose value
is small. Here such heads are searched for in the whole model, without assuming
what their triggers are; the search is in `triggers`. Also here: no-op sinks,
whose value is so small that attending to them does nothing, and broadcast
sinks, which send a value to every token (arXiv 2606.08105).

Takes 48 s for SmolLM2-135M on two CPU cores. Expected there: that there are
such heads and that they read a small value while dormant is supported; the
value that they read when active differs from the others by no more than the
margin, and broadcast sinks are no more of the sinks than that.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.noop_heads.claims import claims
from sinkjax.experiments.paper.noop_heads.examples import TEXT
from sinkjax.experiments.paper.noop_heads.experiment import Config, measure
from sinkjax.experiments.paper.noop_heads.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: min(config.tokens, TEXT),
  given_texts=True,
)
