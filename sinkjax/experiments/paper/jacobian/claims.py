"""Whether tokens mix more without the sink."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  TOKENS,
  Expect,
  Unit,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio, mean_of
from sinkjax.experiments.shared.jacobian_runs import (
  CONTROL_KEY,
  kept_positions,
  mixing_of,
  others,
)
from sinkjax.experiments.shared.sink_removal import Condition
from sinkjax.metrics import spread


def claims(result: Result) -> list[Claim]:
  """More mixing, at two lengths, and from further back."""
  numbers = result.numbers
  ratio, long_ratio, reach = (
    Mean.read(numbers[name])
    for name in ("log_mixing", "log_mixing_long", "reach")
  )
  share = {
    name: f"{100 * numbers[f'mixing, {name}']['value']:.1f} %"
    for name in Condition
  }
  return [
    _mixing_claim(
      result,
      "norms",
      "exact_mixing",
      "By its exact Jacobian, the model mixes tokens more without the sink.",
      f"{format_ratio(ratio, '.2f')} the total mixing at "
      f"T={numbers['tokens']}: {share[Condition.SINK]} with the sink, "
      f"{share[Condition.HIDDEN]} without",
    ),
    _mixing_claim(
      result,
      "estimated",
      "estimated_mixing",
      "By an estimated Jacobian of longer texts, the model mixes tokens more "
      "without the sink.",
      f"{format_ratio(long_ratio, '.2f')} the total mixing, estimated at "
      f"T={numbers['long_tokens']}; {100 * numbers['inside_interval']:.0f} % "
      "of exact norms lie within the estimator's 95 % intervals where both "
      "were computed",
    ),
    _claim(
      result,
      "norms",
      _reach_of_others,
      "effective reach of the other tokens",
      TOKENS,
      "effective_reach",
      "Without the sink, tokens are sensitive to tokens further back.",
      f"effective reach changes by {reach.text('+.2f', ' tokens')}",
    ),
  ]


def _log_mixing_of_others(norms: np.ndarray, control: int) -> np.ndarray:
  """As a logarithm, so that a difference is a ratio."""
  return np.log(mixing_of(others(norms, control)))


def _mixing_claim(
  result: Result, maps: str, id: str, claim: str, ours: str
) -> Claim:
  what = "total mixing of the other tokens"
  return _claim(
    result, maps, _log_mixing_of_others, what, LOG_RATIO, id, claim, ours
  )


def _claim(
  result: Result,
  maps: str,
  measured: Callable[[np.ndarray, int], np.ndarray],
  what: str,
  unit: Unit,
  id: str,
  claim: str,
  ours: str,
) -> Claim:
  """A claim that something of all tokens but sink and control is more.

  Args:
    result: the result.
    maps: name of the array of norms; with layers, those of the last count.
    measured: of norms [..., T, T] and the control's position.
    what: it is.
    unit: of its differences.
    id: of the claim.
    claim: the sentence.
    ours: the same of all tokens.
  """
  numbers, norms = result.numbers, result.arrays[maps]
  # Files recorded before have no control; their texts had no prefix.
  control = numbers.get("control_position", CONTROL_KEY)
  if norms.ndim == 5:
    norms = norms[:, :, -1]
  sink, hidden = measured(norms, control).T
  against = "over" if unit is LOG_RATIO else "less"
  about = f"{what} with position 0 hidden {against} that"
  change = mean_of(hidden - sink)
  shown = (
    f"{format_ratio(change, '.2f')} the mixing"
    if unit is LOG_RATIO
    else f"a change of {change.text('+.2f', ' tokens')}"
  )
  provided = ()
  if f"{maps}_control" in result.arrays:
    other = measured(result.arrays[f"{maps}_control"], control)
    provided = (
      effect(
        hidden - other,
        f"{about} with position {control} hidden",
        unit,
        Expect.MORE,
      ),
    )
  return Claim(
    id=id,
    claim=claim,
    source="theorem 3.2, section 3.1",
    paper="no number; the bound falls with sinks",
    ours=f"without the rows and columns of positions 0 and {control}, {shown}; "
    f"with them {ours}",
    effect=effect(hidden - sink, f"{about} with the sink", unit, Expect.MORE),
    how=f"{numbers['texts']} texts, position 0 hidden from layer "
    f"{numbers['from_layer']} on; the blocks of positions 0 and {control} do "
    "not count, since most of the Jacobian with the sink is the block of "
    "position 0 on itself, which hiding cannot change",
    provided=provided,
  )


def _reach_of_others(norms: np.ndarray, control: int) -> np.ndarray:
  """Mean effective reach over all tokens but the sink and the control."""
  reach = spread.effective_reach(
    jnp.asarray(others(norms, control), jnp.float32)
  )
  return np.asarray(reach)[..., kept_positions(norms.shape[-1], control)].mean(
    axis=-1
  )
