"""How much of the loss of few-bit keys and values comes from the sink?

    python -m launch.reproduce --experiment=kv_quantisation \\
        --model=smollm2-135m --out=out/applications

Keys and values are rounded to few bits, or weights and activations; the first
token stays in full precision, or a control token, or none. The loss and the KL
divergence from the whole model over many texts, and which layers and inputs
need it. KVQuant (arXiv 2401.18079), IntactKV (2403.01241) and PrefixQuant
(2410.05265) keep such tokens; Bondarenko et al. (2306.12929) train models
without the outliers that make it necessary.

Takes 30 minutes for SmolLM2-135M on two CPU cores. Expected there: keep_sink_*
and static_activations_fail are supported; most_of_loss and static_over_token
are contradicted.
"""

from sinkjax.experiments.applications.kv_quantisation.claims import claims
from sinkjax.experiments.applications.kv_quantisation.config import Config
from sinkjax.experiments.applications.kv_quantisation.experiment import measure
from sinkjax.experiments.applications.kv_quantisation.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

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
