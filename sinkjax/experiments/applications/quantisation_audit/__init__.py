"""Which tensors cost what at eight bits, and is it the sink's doing?

    python -m launch.reproduce --experiment=quantisation_audit \\
        --model=smollm2-135m --out=out/applications

All weights and all inputs of projections are rounded, inputs with one step for
each tensor or for each token. Each tensor in turn is left as it is, and what
that gives back is attributed to it; so are position 0 and, as a control,
position 1. Beside them stands how far a tensor's largest row exceeds the usual
one, and how many numbers become 0. A model above ten times the reference's
perplexity gets no attribution.

Measured elsewhere at 8 bits, nats added with a step a tensor and a step a
token: GPT-2 0.2097 and 0.0047, Qwen3-0.6B 0.4378 and 0.0096, a model of 1B with
gates on its heads 0.0117 and 0.0012 against 0.6450 and 0.0203 without. The
first two are checked by the command above with --model=PATH of their folders;
the last needs two models that differ in their gates alone. Gated models are
rounded behind their gates.

Takes tens of minutes for SmolLM2-135M on two CPU cores. Expected: all but the
claim on gates are supported.
"""

from sinkjax.experiments.applications.quantisation_audit.claims import claims
from sinkjax.experiments.applications.quantisation_audit.experiment import (
  Config,
  measure,
)
from sinkjax.experiments.applications.quantisation_audit.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
