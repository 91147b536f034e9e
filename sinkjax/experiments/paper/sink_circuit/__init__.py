"""Which layer and neurons build the sink, and why do queries attend to it?

    python -m launch.reproduce --experiment=sink_circuit \\
        --model=smollm2-135m --out=out/paper

Yona et al. (2025, arXiv 2503.08908): the first token's MLP output leaves the
ordinary range in an early layer, by a few neurons, which fire on repeated
tokens too. Here with the exact derivative of the norm beside every ablation,
and the score of later queries to key 0 split into content, query bias and
position (arXiv 2603.06591 and 2604.14722; the split is our reading); and the
gates of layer 0 that tell the first token from the others, asked whether they
know it by its attention, which mixes nothing, or by its position. The
authors name neurons 7890 and 10411 of layer 1 in Llama 2 7B; to check them:

    python -m launch.reproduce --experiment=sink_circuit \\
        --model=FOLDER_OF_LLAMA_2_7B --config.sink_circuit.layer=1 \\
        --out=out/llama2

Takes 4 minutes for SmolLM2-135M on two CPU cores beside other work. Expected:
mlp_leaves_range, few_neurons_carry and derivative_ranks_neurons are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.sink_circuit.claims import claims
from sinkjax.experiments.paper.sink_circuit.experiment import Config, measure
from sinkjax.experiments.paper.sink_circuit.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
