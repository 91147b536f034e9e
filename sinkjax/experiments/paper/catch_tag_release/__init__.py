"""Do sinks tag the tokens that attend to them, and are the tags used?

    python -m launch.reproduce --experiment=catch_tag_release \\
        --model=smollm2-135m --out=out/paper

The question of arXiv 2502.00919, whose formulas were not at hand, in our
reading. What a sink writes (its value through the output projection, weighted
by the attention on it) is a direction: the share of later tokens' attention
output and residual variance along it; the loss without it, and without what
tokens differ in along it; and whether the coefficient along it tells, on texts
that the direction was not made from, which tokens attended. Position 0, and
sinks found elsewhere, each beside another token at about the same place.

It bears on `noop_heads`, where 49.9 % of SmolLM2-135M's sinks are no-op and 0 %
broadcast: that verdict is on the norm of a value beside other values. Here is
what it becomes in the output. A sink that is no-op by its norm may still write
the direction along which tokens differ most, since it is read by all of them.

Takes minutes for SmolLM2-135M on two CPU cores. Expected if sinks tag: all
claims are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.catch_tag_release.claims import claims
from sinkjax.experiments.paper.catch_tag_release.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.paper.catch_tag_release.figures import (
  TITLE,
  draw,
  sections,
)

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
