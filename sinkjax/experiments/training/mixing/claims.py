"""What the experiment `mixing` says of sinks and what theory ties to them."""

from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import AGREES, DISAGREES, UNDECIDED, Claim
from sinkjax.experiments.harness.stats import decided, mean, slopes

WORSE = 0.25
"""Nats above the least loss in its experiment from which a model is a worse
one, which may mix little for want of learning."""

SET = "sink_regulariser"
"""The experiment in which nothing but the sink was set: what a model loses by
it is its doing."""

CLAIMS = (
  ("mixing_rest", -1, "mix more", "share of the squared Jacobian"),
  ("bound_paper", -1, "have a greater bound", "decades of the paper's bound"),
  ("spread", -1, "let a change spread further", "relative change"),
  ("rank", 1, "are nearer to rank collapse", "of the greatest effective rank"),
)
"""(number, sign of its slope over the sink, words, unit)."""


def as_trained(rows) -> list[dict[str, Any]]:
  """Of the rows of one model the one that reads it as it was trained."""
  kept = {}
  for row in rows:
    kept.setdefault((row["experiment"], row["variant"]), row)
  return list(kept.values())


def _decided(rows, name: str, sign: int) -> tuple[str, str, str]:
  """The verdict over rows of one experiment, what worse models do, and why."""
  losses = [float(np.mean(row["loss"])) for row in rows]
  verdict = decided(sign * slopes(rows, name))
  if rows[0]["experiment"] == SET:
    cost = f"{max(losses) - min(losses):.2f}"
    return verdict, "", f"the sink is what was set; it costs up to {cost} nats"
  sound = [
    row
    for row, loss in zip(rows, losses, strict=True)
    if loss <= min(losses) + WORSE
  ]
  why = "variants differ in more than the sink"
  if len(sound) == len(rows):
    return verdict, "", why
  names = ", ".join(row["variant"] for row in rows if row not in sound)
  values = slopes(sound, name)
  if len(values) < 2:
    return UNDECIDED, f"; too few without {names}, worse models", why
  if decided(sign * values) != verdict:
    verdict = UNDECIDED
  return verdict, f"; {mean(values, '+.3f')} without {names}, worse models", why


def claims(rows) -> list[Claim]:
  """Over the models of each experiment, as they were trained.

  A slope that needs models of more than `WORSE` nats decides nothing, unless
  the sink is what was set.
  """
  found = []
  rows = as_trained(rows)
  for experiment in dict.fromkeys(row["experiment"] for row in rows):
    some = [row for row in rows if row["experiment"] == experiment]
    for name, sign, words, unit in CLAIMS:
      values = slopes(some, name)
      if len(values) < 2:
        continue
      known = [row for row in some if None not in row[name]]
      masses = [float(np.mean(row["first_mass"])) for row in known]
      verdict, sound, why = _decided(known, name, sign)
      found.append(
        Claim(
          f"Models with less of a sink {words} ({experiment}).",
          "theorem 3.2, section 3",
          "no number; the argument of the paper",
          f"{mean(values, '+.3f')} {unit} for each unit of attention on the "
          f"first token, over {len(known)} variants with {min(masses):.3f} to "
          f"{max(masses):.3f}{sound}",
          verdict,
          f"95 % interval over {len(values)} seeds; {why}",
        )
      )
  covered = [row for row in rows if None not in row["violated"]]
  over = sum(sum(row["violated"]) for row in covered)
  if covered:
    loose = np.mean([row["loose"] for row in covered])
    found.append(
      Claim(
        "The full bound holds in every model that it covers.",
        "theorem 3.2",
        "a theorem",
        f"{over:.0f} pairs of tokens exceed it, in {len(covered)} of "
        f"{len(rows)} variants; {loose:.1f} decades above the truth in the "
        "mean",
        DISAGREES if over else AGREES,
        "one text, every pair and seed",
      )
    )
  return found
