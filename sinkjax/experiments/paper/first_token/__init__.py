"""What is lost on multiple choice and needles without BOS or the sink?

    python -m launch.reproduce --experiment=first_token \\
        --model=smollm2-135m --out=out/paper

Section 5 and table 3 of the paper. Multiple-choice tasks and needles in a
haystack, with BOS, without it, with the sink hidden from the layer on where
that removes it, and, as a control, with the next token hidden.

Takes 903 s for SmolLM2-135M on two CPU cores, and 358 MB are fetched once.
Expected there: the two claims on the sink are supported, and the one on BOS is
not testable.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.first_token.claims import claims
from sinkjax.experiments.paper.first_token.experiment import Config, measure
from sinkjax.experiments.paper.first_token.figures import TITLE, draw, sections

EXPERIMENT = Experiment(TITLE, Config, measure, claims, draw, sections)
