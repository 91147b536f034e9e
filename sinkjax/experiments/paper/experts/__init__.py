"""Which experts carry the sink, in a model with experts?

    python -m launch.reproduce --experiment=experts \\
        --model=hf:Qwen/Qwen1.5-MoE-A2.7B --out=out/experts

Su et al. (2025, arXiv 2507.23279), whose text was not at hand, so in our
reading: a few experts, "super experts", have by far the largest outputs of
their last map; these make the first token's massive activations, and without
them sinks and model break. Here each expert's largest output over texts, what
it adds to the first token, and how often it is used there and elsewhere; then
the experts of the largest outputs are ablated one after the other (they add
nothing, the routing stays), against as many others of the same layers that are
used by about as many tokens.

A super expert has an output above the 99.5th percentile of all experts' and
above a tenth of the largest; of these, at most `most` are ablated. A shared
expert is none, nor is a layer without experts.

Any model with experts goes in (families Mixtral, OLMoE, Qwen 2 and 3 MoE,
gpt-oss, DeepSeek V3); one without is refused. A small one is trained by

    python -m launch.train --config=configs/train/strong_moe.py \\
        --workdir=out/moe
    python -m launch.reproduce --experiment=experts --model=out/moe \\
        --out=out/experts

With BOS the first token is the same in all texts, and sees nothing else, so
that it is always used by the same experts: --prefix=none asks whether other
first tokens are, too.

Not recorded yet. Takes 2 + `most` (1 + `draws`) forward passes of the texts.
Expected, if the source's models are like others: all claims are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.experts.claims import claims
from sinkjax.experiments.paper.experts.experiment import Config, measure, unfit
from sinkjax.experiments.paper.experts.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: config.tokens,
  given_texts=True,
  unfit=unfit,
)
