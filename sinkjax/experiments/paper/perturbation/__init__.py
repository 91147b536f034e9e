"""Does a swapped word change later tokens more without the sink?

    python -m launch.reproduce --experiment=perturbation \\
        --model=smollm2-135m --out=out/paper

Section 3.1 and figure 2 of the paper. One word of a text is swapped for
another of as many tokens, and both texts are run: unchanged, with the sink
hidden from a layer on, with another token hidden as a control, and, where
texts start with BOS, without it. The difference between the two runs after the
swapped word is how far the swap has spread.

Takes 83 s for SmolLM2-135M on two CPU cores. Expected there: four claims
are supported, and the one about BOS is not testable.
"""

from sinkjax.experiments.harness.api import Experiment, whole_texts
from sinkjax.experiments.paper.perturbation.claims import claims
from sinkjax.experiments.paper.perturbation.experiment import Config, measure
from sinkjax.experiments.paper.perturbation.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, chat=whole_texts
)
