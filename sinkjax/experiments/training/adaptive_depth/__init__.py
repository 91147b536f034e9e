"""Which tokens stop early where they may, and does the sink?

    python -m launch.reproduce --experiment=adaptive_depth --scale=cpu --out=DIR

A head that rests on the first token leaves a token as it is, and so does a
layer that the token does not take. Here tokens may leave layers out: by halting
(PonderNet, 2107.05407: a share of each token that has stopped, learned with a
geometric prior) or by routing (Mixture-of-Depths, 2404.02258: every second
layer takes half of the tokens). Both are compared with a model of as many
parameters, all of whose layers every token takes, and with one of three
quarters of the layers, whose work is that of the routed model. Does the first
token, which has nothing to read, stop early, do tokens whose heads rest, and is
there less of a sink?

The cpu scale is a screen: 4 variants at one seed, in the regime of
`configs/train/strong.py`, as long as those of `mixing_gate`, but for halting,
whose loss has every layer's prediction in it. It has no verdicts, since one
seed has no interval; `seeds` takes more, and five are the fewest for a verdict.
Variants but the shallow one have the same number of parameters within 0.2 %,
and all see equal tokens. In training every token is computed in every layer, so
that equal compute is meant of use: of the layers that tokens take.
"""

from sinkjax.experiments.harness import sweep_figures
from sinkjax.experiments.harness.sweep import Sweep
from sinkjax.experiments.harness.sweep_figures import STANDARD, Chart
from sinkjax.experiments.shared.controlled import controlled
from sinkjax.experiments.training.adaptive_depth.claims import claims
from sinkjax.experiments.training.adaptive_depth.experiment import (
  SCALES,
  Config,
  tokens_of,
  variants,
)
from sinkjax.experiments.training.adaptive_depth.figures import (
  INSIDE,
  depth_table,
  draw_depth,
  tokens_caption,
)

SWEEP = Sweep(
  "Depth for each token",
  Config,
  SCALES,
  variants,
  claims,
  charts=[
    Chart(
      "variants.png",
      lambda result: sweep_figures.bars(result, (*STANDARD, *INSIDE)),
      "Halting and routed have as many parameters as full. Their attention is "
      "here that of all tokens, as if each took every layer. A screen of one "
      "seed orders variants and decides nothing.",
      sweep_figures.bar_caption,
      lambda result: sweep_figures.table(result, INSIDE),
    ),
    Chart(
      "tokens.png",
      draw_depth,
      "Which layers tokens take, by where in the text they stand; and what "
      "tokens that leave out the next layer attend to, beside those that take "
      "it.",
      tokens_caption,
      depth_table,
      title="Which tokens stop early?",
    ),
  ],
)

EXPERIMENT = controlled(SWEEP, tokens_of)
