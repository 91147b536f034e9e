"""How much attention can be skipped with a proof that it hardly matters?

    python -m launch.reproduce --experiment=sink_compute \\
        --model=smollm2-135m --out=out/applications

Blocks of queries that are dormant, and blocks of keys that carry little weight,
are skipped under a bound of the error: from summaries of the keys, from keys in
a few bits, from all scores; next to what the pattern itself allows, with the
sink and without it. Then loss and KL divergence, and time against length. That
queries attend to the sink instead of other tokens is section 3.2 of Barbero et
al. (2025, arXiv 2504.02732); bounds from summaries are those of Quest
(2406.10774).

Takes 14 minutes for SmolLM2-135M on two CPU cores. Expected there: loss, bound
and faster_known are supported, summaries has no effect beyond the margin, all
others are inconclusive; three of them, dormant_rows, few_bits and
sink_helps_proof, since no sign-flip test over 8 texts can decide 8 claims.
"""

from sinkjax.experiments.applications.sink_compute.claims import claims
from sinkjax.experiments.applications.sink_compute.config import Config
from sinkjax.experiments.applications.sink_compute.experiment import measure
from sinkjax.experiments.applications.sink_compute.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.applications.sink_compute.results import condense
from sinkjax.experiments.harness.api import ALL_SITES, Experiment

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  condense=condense,
  chat=lambda config: min(*config.lengths, *config.timed),
  unedited=ALL_SITES,
  given_texts=True,
)
