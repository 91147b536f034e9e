"""Which queries attend to the sink, and is it missed in a long text?

    python -m launch.reproduce --experiment=which_queries \\
        --model=smollm2-135m --out=out/paper

The questions of arXiv 2609.08574, whose definitions were not at hand, in our
reading: attention on the first token by kind of query (surprising, copyable
from an earlier bigram, first of a word, punctuation), each against even
attention and against other queries at equal positions; at the end of a question
that the text answers, against one that it does not; then the loss with
position 0 hidden at every layer from the start, up to every length of a text.

Takes three minutes and a half for SmolLM2-135M on two CPU cores. Expected:
copyable_less_sink and cost_falls_with_length are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.which_queries.claims import claims
from sinkjax.experiments.paper.which_queries.experiment import Config, measure
from sinkjax.experiments.paper.which_queries.figures import (
  TITLE,
  draw,
  sections,
)

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
