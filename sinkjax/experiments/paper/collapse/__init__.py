"""Do representations collapse, and do repeated digits merge in 16 bits?

    python -m launch.reproduce --experiment=collapse \\
        --model=smollm2-135m --out=out/paper

Section 3 of the paper. Rank collapse: texts, by layer and by length, with the
sink and with position 0 hidden from a layer on. Representational collapse: a
digit repeated ever more often (Barbero et al. 2024, arXiv 2406.04267), where
the next repetition changes less and less, until rounding cannot distinguish it;
and the commas that are said to help.

Takes 35 s for SmolLM2-135M on two CPU cores. Expected there: three claims are
supported; no digits merge in bfloat16, so that claim is contradicted; and
whether digits collapse further without the sink is inconclusive.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.collapse.claims import claims
from sinkjax.experiments.paper.collapse.experiment import Config, measure
from sinkjax.experiments.paper.collapse.figures import TITLE, draw, sections

EXPERIMENT = Experiment(TITLE, Config, measure, claims, draw, sections)
