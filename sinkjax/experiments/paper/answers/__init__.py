"""Does the sink mass of a question tell whether the model answers it rightly?

    python -m launch.reproduce --experiment=answers \\
        --model=smollm2-135m --out=out/paper

Ours. The attention that a question gives position 0, mean over layers, heads
and the question's tokens, beside the answer: multiple-choice tasks and needles
in a haystack. Two rivals that need no attention, the question's length (of a
needle its distance) and its mean surprisal, are asked the same, and what is
left of the mass without them. An area under the ROC curve within each task or
haystack, by DeLong's method over items; needles of one haystack are one unit.
Directions were fixed before any run: surprising tokens attend to the sink more
(`which_queries`), so less of it should go with right answers; so should short
and unsurprising questions.

Takes minutes for SmolLM2-135M on two CPU cores, and 358 MB are fetched once.
Expected: no effect beyond the margin, if a sink says nothing of an answer.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.answers.claims import claims
from sinkjax.experiments.paper.answers.experiment import Config, measure
from sinkjax.experiments.paper.answers.figures import TITLE, draw, sections

EXPERIMENT = Experiment(TITLE, Config, measure, claims, draw, sections)
