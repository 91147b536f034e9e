"""The claims about attacks on the sink, each compared with the second token."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.applications.attack.config import NORMS, Way
from sinkjax.experiments.harness.api import Claim, Result, direction
from sinkjax.experiments.harness.stats import Mean, format_ratio
from sinkjax.experiments.shared.attack_sites import SITES

PAPER, CRITICS = "2504.02732", "2501.15269; 2510.17021"
VULNERABLE = "the sink is a vulnerability; numbers not comparable"


def claims(result: Result) -> list[Claim]:
  """Three about whole tokens, then one for each site and norm."""
  contrasts = result.numbers["sink_over_others"]
  count = len(result.numbers["candidates"])
  swaps = [
    _claim(
      result,
      "swap",
      "Swapping the first token for random tokens changes the output less than "
      "swapping the second token.",
      (PAPER, "the sink makes models more robust; no number"),
      contrasts[f"{Way.SWAPPED}, mean"],
      less=True,
    ),
    _claim(
      result,
      "swap_worst",
      f"The most harmful of {count} swaps of the first token changes the "
      "output less than the most harmful swap of the second token.",
      (PAPER, "no number"),
      contrasts[f"{Way.SWAPPED}, worst"],
      less=True,
    ),
    _claim(
      result,
      "insertion_worst",
      f"The most harmful of {count} tokens inserted before the sink changes "
      "the output more than the most harmful one inserted after it.",
      (CRITICS, VULNERABLE),
      contrasts[f"{Way.INSERTED}, worst"],
    ),
  ]
  return swaps + [
    _attack(result, site, norm) for site in SITES for norm in NORMS
  ]


def _attack(result: Result, site: str, norm: str) -> Claim:
  """The sink attacked at one site, by the loss's gradient."""
  norms = result.arrays["norms"]  # [P, S, C]
  at = list(SITES).index(site)
  ratio = norms[:, at, 0].mean() / norms[:, at, 1].mean()
  made = _claim(
    result,
    f"attack_{site}_{norm}",
    f"At equal {norm} norm, an attack on the sink's {SITES[site]} changes the "
    "output more than one on the second token's.",
    (CRITICS, VULNERABLE),
    result.numbers["sink_over_others"][f"{site}, {norm}"],
  )
  why = f"{made.why}; the sink's norm is {ratio:.2g} times the second token's"
  if site in ("k", "v"):
    why += "; the attacked token itself attends to what is changed as well"
  return dataclasses.replace(made, why=why)


def _claim(
  result: Result,
  id: str,
  claim: str,
  source: tuple[str, str],
  contrast: Mapping[str, Mapping[str, Any]],
  *,
  less: bool = False,
) -> Claim:
  """A claim on the KL divergence from the sink over that from other tokens.

  Args:
    result: what was measured.
    id: of the claim.
    claim: its sentence.
    source: where it comes from, and what is reported there.
    contrast: the mean difference of log KL, sink less other, by position.
    less: whether the sink's is claimed to be smaller, not larger.
  """
  one = {name: Mean.read(mean) for name, mean in contrast.items()}
  # The second token decides: it is as far from the measured tokens, and like
  # the sink it has hardly anything before it.
  near = one["next"].scaled(-1 if less else 1)
  low, high = sorted((near.low, near.high))
  return Claim(
    id,
    claim,
    *source,
    f"changing the sink causes {format_ratio(one['next'])} the KL divergence "
    f"that changing the second token does, {format_ratio(one['middle'])} that "
    f"of the middle token and {format_ratio(one['last'])} that of the last "
    "attacked token",
    direction(low, high),
    f"95 % interval over {result.numbers['texts']} texts for the ratio to the "
    "second token, which is as far from the measured tokens as the sink; "
    f"sign-flip test p = {near.p:.2g}",
  )
