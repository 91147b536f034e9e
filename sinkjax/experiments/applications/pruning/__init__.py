"""Which dormant heads can be removed, and how much time does it save?

    python -m launch.reproduce --experiment=pruning \\
        --model=smollm2-135m --out=out/applications

Heads are ranked on some texts by how little they do, and the loss is measured
on others: with the lowest of them removed (their output zero, or its mean), and
with heads skipped only at queries that attend to the first token. Then the time
of a model without these heads. Dormant heads are those of arXiv 2504.03889;
that they are close to no-ops is section 3.2 of Barbero et al. (2504.02732).

Takes 18 minutes for SmolLM2-135M on two CPU cores. Expected there:
nonsink_over_random, nonsink_over_weights, skip_dormant and predict_dormant are
supported, remove_14_percent is contradicted, remove_4_percent and
faster_without are inconclusive.
"""

from sinkjax.experiments.applications.pruning.claims import claims
from sinkjax.experiments.applications.pruning.config import Config
from sinkjax.experiments.applications.pruning.experiment import measure
from sinkjax.experiments.applications.pruning.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import ALL_SITES, Experiment

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: config.tokens,
  unedited=ALL_SITES,
  given_texts=True,
)
