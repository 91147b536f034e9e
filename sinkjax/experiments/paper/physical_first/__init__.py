"""Is the sink the token that stands first, the one at position 0, or BOS?

    python -m launch.reproduce --experiment=physical_first \\
        --model=smollm2-135m --out=out/paper

Three things coincide in a text as a model is given it: the first token is the
only one that sees nothing but itself, its position index is 0, and it may be
BOS. Here they are taken apart. Indices are moved, exchanged or permuted while
the order of the tokens, and with it the causal mask, stays; and BOS is put
into the middle of a text. The question is that of Barbero et al. (2025, arXiv
2504.02732) and Gu et al. (2025, 2410.10781), who move BOS in training; ours is
of trained models.

Eleven texts took three minutes for SmolLM2-135M on two CPU cores beside other
work. Expected there: all claims are supported.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.physical_first.claims import claims
from sinkjax.experiments.paper.physical_first.experiment import Config, measure
from sinkjax.experiments.paper.physical_first.figures import (
  TITLE,
  draw,
  sections,
)

EXPERIMENT = Experiment(
  TITLE, Config, measure, claims, draw, sections, given_texts=True
)
