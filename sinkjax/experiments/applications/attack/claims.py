"""What an attack on the sink does, beside the same on other tokens."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Claim, direction
from sinkjax.experiments.harness.stats import (
  Mean,
  format_ratio,
  logs,
  mean_over,
)
from sinkjax.experiments.shared.perturb import places

CRITICS = "2501.15269; 2510.17021"
NORMS = ("relative", "absolute")


def contrast(kl: np.ndarray) -> dict[str, Mean]:
  """The sink's log KL minus each other position's, from [P, C]."""
  log, texts = logs(kl), range(len(kl))
  names = list(places(12))
  return {
    name: mean_over(log[:, 0] - log[:, i], texts)
    for i, name in enumerate(names)
    if i
  }


def claims(
  sites: Mapping[str, str],
  attacks: Mapping[str, dict[str, Mean]],
  replaced: Mapping[str, dict[str, Mean]],
  norms: np.ndarray,
  *,
  candidates: int,
) -> list[Claim]:
  """What is said of the sink's attacks, each beside the next token's.

  Args:
    sites: where gradients attack, each in words.
    attacks: `contrast` by "SITE, NORM".
    replaced: by "WAY, mean" or "WAY, worst".
    norms: [P, S, C] of each position over its text's median.
    candidates: tokens that were swapped and put in.
  """
  texts = len(norms)

  def claim(text, source, paper, one, sign=1):
    near, rest = one["next"], (one["middle"], one["last"])
    low, high = sorted((sign * near.low, sign * near.high))
    return Claim(
      text,
      source,
      paper,
      f"KL on the sink {format_ratio(near)} that on the token next to it; "
      f"{format_ratio(rest[0])} the middle token's, "
      f"{format_ratio(rest[1])} the last "
      "attacked token's",
      direction(low, high),
      f"{texts} texts; the token next to the sink is as far from what is "
      f"measured; sign-flip p = {near.p:.2g}",
    )

  swap = "swapped, mean"
  found = [
    claim(
      "A swapped first token changes the output less than a swapped next "
      "token.",
      "2504.02732",
      "sturdier, no number",
      replaced[swap],
      -1,
    ),
    claim(
      f"So does the worst of {candidates} swaps, by the loss.",
      "2504.02732",
      "no number",
      replaced["swapped, worst"],
      -1,
    ),
    claim(
      f"The worst by the loss of {candidates} tokens put in front of "
      "the sink changes the output more than put in after it.",
      CRITICS,
      "soft spot; numbers not comparable",
      replaced["put in, worst"],
    ),
  ]
  for s, (site, words) in enumerate(sites.items()):
    for norm in NORMS:
      ratio = norms[:, s, 0].mean() / norms[:, s, 1].mean()
      made = claim(
        f"An attack at equal {norm} norm on the sink's {words} does more than "
        "on the next token's.",
        CRITICS,
        "soft spot; numbers not comparable",
        attacks[f"{site}, {norm}"],
      )
      why = f"{made.why}; the sink's norm is {ratio:.2g} times the next token's"
      if site in ("k", "v"):
        why += "; the token's own row reads what is changed, too"
      found.append(dataclasses.replace(made, why=why))
  return found
