"""Which tokens beside the first are sinks, where, and for how many layers?

    python -m launch.reproduce --experiment=secondary_sinks \\
        --model=smollm2-135m --out=out/paper

The question of arXiv 2512.22213, with the rule of `sinkjax.find_sinks`: a token
is a sink by the attention that it receives, by its norm, or by its direction,
which is the first token's. Over many texts: how many there are, of which kind
and of which token, whether it occurs for the first time, and from which layer
to which they last, each against the other tokens of the same texts.

Sixteen texts took two minutes for SmolLM2-135M on two CPU cores beside other
work. Expected there: secondary_sinks_exist, secondary_last_less,
secondary_have_fewer_heads and secondary_values_are_small are supported; that
they begin later and are delimiters is contradicted.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.secondary_sinks.claims import claims
from sinkjax.experiments.paper.secondary_sinks.experiment import Config, measure
from sinkjax.experiments.paper.secondary_sinks.figures import (
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
