"""What bfloat16 changes: recorded claims beside those of float32."""

from collections.abc import Sequence

from sinkjax.experiments.harness.effects import Effect
from sinkjax.experiments.harness.protocol import Judged
from sitegen import markdown as md
from sitegen.claim_pages import beside, named, said
from sitegen.recorded import Run

INTRODUCTION = """\
# What bfloat16 changes

`--dtype=bfloat16` holds weights and activations in bfloat16; norms, softmax and
metrics are computed in float32. It halves the memory, and on an accelerator the
time. Below are the recorded experiments that were run in both, on the same
texts: what a claim says in each, and by how much its effect moves, in units of
the half width of its interval in float32. A move of less than 1 is less than
what other texts would change.
"""


def page(runs: Sequence[Run], half: Sequence[Run]) -> str:
  """docs/bfloat16.md.

  Args:
    runs: in float32.
    half: in bfloat16.
  """
  pairs = beside(runs, half)
  other = [pair for pair in pairs if pair[1].verdict != pair[2].verdict]
  text = f"{INTRODUCTION}\n{len(other)} of {len(pairs)} verdicts differ"
  text += (
    f": {', '.join(_name(*pair) for pair in other)}.\n" if other else ".\n"
  )
  rows = [
    [named(run.name, after.id), said(before), said(after), moved(before, after)]
    for run, before, after in pairs
  ]
  header = ["experiment, id", "float32", "bfloat16", "moved"]
  subjects = dict.fromkeys(run.measured_on for run in half)
  return f"{text}\nOn {', '.join(subjects)}:\n\n{md.table(header, rows)}"


def _name(run: Run, before: Judged, after: Judged) -> str:
  return f"{run.name} `{after.id}` ({before.verdict}, then {after.verdict})"


def moved(before: Judged, after: Judged) -> str:
  """The change of an effect over the half width of its first interval."""
  if not (
    isinstance(before.effect, Effect) and isinstance(after.effect, Effect)
  ):
    return ""
  value, low, high = before.effect.mean[:3]
  if not high > low:
    return ""
  return f"{abs(after.effect.mean[0] - value) / ((high - low) / 2):.2f}"
