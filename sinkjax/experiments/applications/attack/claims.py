"""The claims about attacks on the sink, each compared with the second token."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.attack.config import NORMS, Way
from sinkjax.experiments.applications.attack.results import contrasts_of
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import LOG_RATIO, Expect, effect
from sinkjax.experiments.harness.stats import Mean, format_ratio
from sinkjax.experiments.shared.attack_sites import SITES
from sinkjax.experiments.shared.text_batches import by_template

PAPER, CRITICS = "2504.02732", "2501.15269; 2510.17021"
VULNERABLE = "the sink is a vulnerability; numbers not comparable"


Contrasts = Mapping[str, Mapping[str, np.ndarray]]
"""[P] the sink's log KL less that of another position, by what is changed."""


def claims(result: Result) -> list[Claim]:
  """Three about whole tokens, then one for each site and norm."""
  found = contrasts_of(result.arrays["gradient"], result.arrays["swaps"])
  count = len(result.numbers["candidates"])
  swaps = [
    _claim(
      result,
      found,
      f"{Way.SWAPPED}, mean",
      "swap",
      "Swapping the first token for random tokens changes the output less than "
      "swapping the second token.",
      (PAPER, "the sink makes models more robust; no number"),
      Expect.LESS,
    ),
    _claim(
      result,
      found,
      f"{Way.SWAPPED}, worst",
      "swap_worst",
      f"The most harmful of {count} swaps of the first token changes the "
      "output less than the most harmful swap of the second token.",
      (PAPER, "no number"),
      Expect.LESS,
    ),
    _claim(
      result,
      found,
      f"{Way.INSERTED}, worst",
      "insertion_worst",
      f"The most harmful of {count} tokens inserted before the sink changes "
      "the output more than the most harmful one inserted after it.",
      (CRITICS, VULNERABLE),
      Expect.MORE,
    ),
  ]
  return swaps + [
    _attack(result, found, site, norm) for site in SITES for norm in NORMS
  ]


def _attack(result: Result, found: Contrasts, site: str, norm: str) -> Claim:
  """The sink attacked at one site, by the loss's gradient."""
  norms = result.arrays["norms"]  # [P, S, C]
  at = list(SITES).index(site)
  ratio = norms[:, at, 0].mean() / norms[:, at, 1].mean()
  how = f"the sink's norm is {ratio:.2g} times the second token's"
  if site in ("k", "v"):
    how += "; the attacked token itself attends to what is changed as well"
  return _claim(
    result,
    found,
    f"{site}, {norm}",
    f"attack_{site}_{norm}",
    f"At equal {norm} norm, an attack on the sink's {SITES[site]} changes the "
    "output more than one on the second token's.",
    (CRITICS, VULNERABLE),
    Expect.MORE,
    how=how,
  )


def _claim(
  result: Result,
  found: Contrasts,
  of: str,
  id: str,
  claim: str,
  source: tuple[str, str],
  expect: Expect,
  *,
  how: str = "",
) -> Claim:
  """A claim on the KL divergence from the sink over that from other tokens.

  Args:
    result: what was measured.
    found: every contrast, by text.
    of: the name of this one.
    id: of the claim.
    claim: its sentence.
    source: where it comes from, and what is reported there.
    expect: of the log ratio to the second token.
    how: the values were made.
  """
  stored: Mapping[str, Mapping[str, Any]] = result.numbers["sink_over_others"]
  one = {name: Mean.read(mean) for name, mean in stored[of].items()}
  # The second token decides: it is as far from the measured tokens, and like
  # the sink it has hardly anything before it.
  near = "the second token is as far from the measured tokens as the sink"
  return Claim(
    id,
    claim,
    *source,
    f"changing the sink causes {format_ratio(one['next'])} the KL divergence "
    f"that changing the second token does, {format_ratio(one['middle'])} that "
    f"of the middle token and {format_ratio(one['last'])} that of the last "
    "attacked token",
    effect(
      by_template(found[of]["next"], result.numbers),
      "the KL divergence from changing the sink over that from changing the "
      "second token",
      LOG_RATIO,
      expect,
    ),
    how=f"{near}; {how}" if how else near,
  )
