"""Do changes of equal norm do more at the sink than at other tokens?

    python -m launch.reproduce --experiment=attack \\
        --model=smollm2-135m --out=out/applications

Gradient attacks on a token's embedding, its keys and values, and its residual
stream in the middle layer; swaps of a token for random others; and random
tokens inserted. Barbero et al. (2025, arXiv 2504.02732) hold that the sink
makes a model more robust; Mirage in the Eyes (2501.15269) and Forgetting to
Forget (2510.17021) attack models through it.

Takes 13 minutes for SmolLM2-135M on two CPU cores. Expected there:
attack_v_* and attack_resid_post_relative are supported,
attack_resid_post_absolute is contradicted, all others are inconclusive.
"""

from sinkjax.experiments.applications.attack.claims import claims
from sinkjax.experiments.applications.attack.config import Config
from sinkjax.experiments.applications.attack.experiment import measure
from sinkjax.experiments.applications.attack.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
