"""When in training is the sink born, and what comes with it?

    python -m launch.reproduce --experiment=sink_birth \\
        --model=run/step4000 --out=out/paper \\
        --config.sink_birth.checkpoints='run/step{0,100,1000}'

and likewise of the Hub's revisions, as in
'hf:EleutherAI/pythia-160m@step{0,512,4000}'.

Sink rate, value drain, massive activations, entropy of rows and loss of any
list of checkpoints, oldest first, against their steps; the given model is the
last of them. A name's braces stand for one name each. The step is what follows
"step" in a name, or the last number of it. `history` is the folder of a
training run of `launch.train`, or a model's of docs/models, whose own records
of the same quantities are drawn besides, or alone.

Gu et al. (2025, arXiv 2410.10781) report that sinks come after the loss has
fallen; that values drain and activations become massive with them is asked here
of every text. Takes as long as reading the checkpoints does.
"""

from sinkjax.experiments.harness.api import ALL_SITES, Experiment
from sinkjax.experiments.paper.sink_birth.checkpoints import Config
from sinkjax.experiments.paper.sink_birth.claims import claims
from sinkjax.experiments.paper.sink_birth.experiment import measure
from sinkjax.experiments.paper.sink_birth.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  unedited=ALL_SITES,
  given_texts=True,
)
