"""What is the sink rate over many prompts of many domains?

    python -m launch.reproduce --experiment=prompts \\
        --model=smollm2-135m --out=out/paper

Section 2 and appendix C.3 of the paper. The rate is measured by domain,
threshold and length, with a special token put first, on random tokens, and on
one token repeated, as in Gu et al. (2025, arXiv 2410.10781), table 2.

Takes 128 s for SmolLM2-135M on two CPU cores, and about 10 MB are fetched once.
Expected there: four claims are supported; that the first token hardly matters
is contradicted, since the special token changes the rate by more than the
margin.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.prompts.claims import claims
from sinkjax.experiments.paper.prompts.experiment import Config, measure
from sinkjax.experiments.paper.prompts.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: min(config.tokens, *config.lengths),
  given_texts=True,
)
