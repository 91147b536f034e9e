"""What does the Jacobian lens leave out, and is it better than the logit lens?

    python -m launch.reproduce --experiment=lens \\
        --model=smollm2-135m --out=out/paper

The Jacobian lens of a layer is the mean over texts and tokens t of the sum over
t' >= t of d h_final,t' / d h_l,t (`sinkjax.fit_lens`; the definition is our
reading). Lenses are fitted with 0, 1 and 16 first tokens skipped, with the sink
and with position 0 hidden from a layer on. Measured are the shares of the map
that go across tokens and that come of the skipped ones, and on texts that the
fit has not seen, how often a lens's likeliest token is that which the model
predicts in the end.

Took 37 minutes for SmolLM2-135M on two CPU cores that other work shared.
Expected there: that more goes across tokens without the sink is supported; the
first token makes no difference beyond the margin to the share across tokens or
to the map alone as a lens; whether 16 skipped tokens do is inconclusive; that
the map alone agrees with the model more often than the logit lens is
contradicted.
"""

from sinkjax.experiments.harness.api import Experiment
from sinkjax.experiments.paper.lens.claims import claims
from sinkjax.experiments.paper.lens.experiment import Config, measure
from sinkjax.experiments.paper.lens.figures import TITLE, draw, sections

EXPERIMENT = Experiment(
  TITLE,
  Config,
  measure,
  claims,
  draw,
  sections,
  chat=lambda config: config.tokens,
  given_texts=True,
)
