"""Whether the gradient gathers on the sink, and what norms do to it."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, Expect, Unit, effect
from sinkjax.experiments.harness.stats import (
  format_ratio,
  mean_of,
  rank_correlation,
)
from sinkjax.experiments.paper.gradient_sinks.experiment import first_over_rest

SOURCE = "2603.17771"

RANK = Unit("of a rank correlation", "rank correlation", 0.1, "+.2f")
"""Over layers, of which models have ten or more: 0.1 moves no rank by one."""


def claims(result: Result) -> list[Claim]:
  """A gradient sink, its norm, and the attention that it comes from."""
  return [_gathers(result), _shrunk(result), _follows(result)]


def _log(result: Result, name: str, token: int = 0) -> np.ndarray:
  """[P, L] of `first_over_rest`."""
  control = result.numbers["control_position"]
  return first_over_rest(result.arrays[name], control, token)


def _about(result: Result) -> str:
  numbers = result.numbers
  return (
    f"{numbers['texts']} texts of {numbers['tokens']} tokens, the mean over "
    "layers of logarithms; the rest are all tokens but the first, the control, "
    f"position {numbers['control_position']}, and the last, which predicts "
    "nothing"
  )


def _gathers(result: Result) -> Claim:
  control = result.numbers["control_position"]
  first = _log(result, "attn_in").mean(axis=1)
  other = _log(result, "attn_in", control).mean(axis=1)
  what = "the gradient at what the attention reads of the first token, over"
  return Claim(
    id="gradient_gathers",
    claim="The loss's gradient at what the attention reads is larger at the "
    "first token than at the others.",
    source=SOURCE,
    paper="no number that we know of: a gradient sink",
    ours=f"{format_ratio(mean_of(first), '.2f')} that of the rest; of position "
    f"{control} {format_ratio(mean_of(other), '.2f')}",
    effect=effect(first, f"{what} that of the rest", LOG_RATIO, Expect.MORE),
    how=_about(result),
    provided=(
      # Early tokens are read by more later ones, sink or not.
      effect(
        first - other,
        f"{what} that of position {control}",
        LOG_RATIO,
        Expect.MORE,
      ),
    ),
  )


def _shrunk(result: Result) -> Claim:
  control = result.numbers["control_position"]
  kept, other = (
    (_log(result, "attn_through", token) - _log(result, "attn_in", token)).mean(
      axis=1
    )
    for token in (0, control)
  )
  through = _log(result, "attn_through").mean(axis=1)
  factor = _log(result, "attn_factor").mean(axis=1)
  what = "what the attention's norm lets back of the gradient, the first"
  return Claim(
    id="norm_shrinks_gradient",
    claim="The norm before the attention passes on less of the gradient at the "
    "first token than at the others.",
    source=SOURCE,
    paper="argued: about one over the size of what it normalises",
    ours=f"{format_ratio(mean_of(kept), '.2g')} what it passes on at the rest, "
    f"its own factor is {format_ratio(mean_of(factor), '.2g')} as large; "
    "behind the norm the first token's gradient is "
    f"{format_ratio(mean_of(through), '.2g')} that of the rest",
    effect=effect(kept, f"{what} token over the rest", LOG_RATIO, Expect.LESS),
    how=_about(result),
    provided=(
      effect(
        kept - other,
        f"{what} token over position {control}",
        LOG_RATIO,
        Expect.LESS,
      ),
    ),
  )


def _follows(result: Result) -> Claim:
  control = result.numbers["control_position"]
  alpha = result.arrays["alpha"]
  first, other = (
    rank_correlation(alpha, _log(result, "attn_in", token))
    for token in (0, control)
  )
  made, provided = None, ()
  ours = "no spread over layers"
  if np.isfinite(first).all() and np.isfinite(other).all():
    ours = f"rank correlation {mean_of(first).text('+.2f')}"
    what = "rank correlation of sink score and gradient over layers, at the"
    made = effect(first, f"{what} first token", RANK, Expect.MORE)
    provided = (
      effect(
        first - other,
        f"{what} first token, less that at position {control}",
        RANK,
        Expect.MORE,
      ),
    )
  return Claim(
    id="gradient_follows_attention",
    claim="The gradient gathers on the first token more in layers whose heads "
    "attend to it more.",
    source=SOURCE,
    paper="argued: attention sinks induce gradient sinks",
    ours=ours,
    effect=made,
    how=f"{_about(result)}; a layer's sink score is the mean over heads",
    provided=provided,
    untested="" if made else "all layers are alike",
  )
