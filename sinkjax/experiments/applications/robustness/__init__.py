"""Does the sink dampen noise, and what do defences of the sink cost?

    python -m launch.reproduce --experiment=robustness \\
        --model=smollm2-135m --out=out/applications

The same noise and the same swapped tokens with the sink, with the sink hidden
from a late layer on, with its value set to zero, and with another token hidden;
and attacks on the first token against a model that is defended, with what each
defence costs where nothing attacks. Barbero et al. (2025, arXiv 2504.02732)
hold that sinks slow the spread of perturbations; Mirage in the Eyes
(2501.15269) and Forgetting to Forget (2510.17021) attack models through them.

Takes 21 minutes for SmolLM2-135M on two CPU cores. Expected there: the claims
on noise and swaps are supported, but for hidden_more_than_empty and
noise_at_sink, which are inconclusive; all three pinned defences are supported;
clip_embed_max has no effect beyond the margin, clip_resid_median is
contradicted, the other clips are inconclusive.

Sharp edges:
  A model without its sink has a higher loss, and may be perturbed more for
  that reason alone; the other token that is hidden is a control for the hiding,
  not for the loss.
"""

from sinkjax.experiments.applications.robustness.claims import claims
from sinkjax.experiments.applications.robustness.config import Config
from sinkjax.experiments.applications.robustness.experiment import measure
from sinkjax.experiments.applications.robustness.figures import (
  TITLE,
  draw,
  sections,
)
from sinkjax.experiments.harness.api import Experiment

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
