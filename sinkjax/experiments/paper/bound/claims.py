"""Whether bounds hold, and whether the sink lowers them."""

import numpy as np

from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  DECADES,
  Count,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, mean_of
from sinkjax.experiments.paper.bound.experiment import VALID, rises_of
from sinkjax.experiments.shared.jacobian_runs import CONTROL_KEY, kept_positions


def claims(result: Result) -> list[Claim]:
  """The theorem holds, and the sink lowers what it allows."""
  numbers = result.numbers
  # The naive form leaves out the residual stream and need not hold, so its
  # violations do not count against the theorem.
  violations = sum(numbers["violations"][name] for name in VALID)
  margins = "; ".join(
    f"{name} {Mean.read(numbers['median_decades'][name]).text('.1f')}"
    for name in VALID
  )
  paper, full = (
    Mean.read(numbers["rise_without_sink"][name]) for name in ("paper", "full")
  )
  exact = Mean.read(numbers["rise_of_the_truth"])
  # Files recorded before lack the position; their texts had no prefix.
  control = numbers.get("control_position", CONTROL_KEY)
  rises = {
    name: _rises_of_others(result, name, control) for name in ("paper", "full")
  }
  of_others = mean_of(rises["paper"])
  return [
    Claim(
      id="bound_holds",
      claim="The norms of the exact Jacobian stay within the over-squashing "
      "bounds.",
      source="theorem 3.2",
      paper="a theorem",
      ours=f"{violations} of {numbers['pairs']} pairs exceed a bound; decades "
      f"of the median bound above the exact norm: {margins}",
      # A theorem has no interval: a single violation beyond rounding refutes
      # it.
      effect=Count(
        "comparisons of a pair's norm with a bound exceed it",
        violations,
        len(VALID) * numbers["pairs"],
      ),
      how=f"the forms {', '.join(VALID)}; the constants are measured on the "
      "weights; C absorbs the residual stream",
    ),
    Claim(
      id="sink_lowers_bound",
      claim="The sink lowers the over-squashing bound.",
      source="section 3.2",
      paper="no number",
      ours=f"without the sink the paper's bound is {paper.text('+.1f')} "
      f"decades higher, the full bound {full.text('+.1f')}, the exact norms "
      f"{exact.text('+.2f')}; between tokens other than positions 0 and "
      f"{control} the paper's bound is {of_others.text('+.1f')} decades higher",
      effect=effect(
        rises["paper"],
        "the paper's bound between the other tokens, with position 0 hidden "
        "over that with the sink",
        DECADES,
        Expect.MORE,
      ),
      how=f"{paper.groups} texts of {numbers['tokens']} tokens, position 0 "
      f"hidden from layer {numbers['from_layer']} on; pairs with positions 0 "
      f"and {control} do not count",
      # The full form bounds the model's own Jacobian, the paper's only one
      # whose pattern is held.
      provided=(
        *_beyond_control(result, control),
        effect(
          rises["full"],
          "the full bound between the other tokens, with position 0 hidden "
          "over that with the sink",
          DECADES,
          Expect.MORE,
        ),
      ),
    ),
  ]


def _others(log: np.ndarray, control: int) -> np.ndarray:
  """Of [..., T, T], the pairs of tokens but the sink and the control."""
  kept = kept_positions(log.shape[-1], control)
  return log[..., kept[:, None], kept]


def _rises_of_others(result: Result, name: str, control: int) -> np.ndarray:
  log = result.arrays[f"log10_bound_{name}"]
  return rises_of(_others(log, control))


def _beyond_control(result: Result, control: int) -> tuple[Effect, ...]:
  """What hiding any token does to a bound is not the sink's doing."""
  hidden = result.arrays.get("log10_bound_paper_control")
  # Files recorded before have no control.
  if hidden is None:
    return ()
  sink = result.arrays["log10_bound_paper"][:, 1]
  pair = _others(np.stack([hidden, sink], axis=1), control)
  return (
    effect(
      rises_of(pair),
      "the paper's bound between the other tokens, with position 0 hidden over "
      f"that with position {control} hidden",
      DECADES,
      Expect.MORE,
    ),
  )
