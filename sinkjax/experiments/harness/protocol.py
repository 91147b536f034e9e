"""The one rule by which claims get their verdicts.

A claim is data, an effect with its margin is data, and `judge` alone decides:
no experiment has a rule of its own. docs/protocol.md has the reasons.

For the m claims of an experiment that have `LEAST` units or more, p is that of
the paired t test, the largest of the effect's and of its conditions' (all have
to hold: an intersection-union test), and Holm's step-down correction over the m
claims holds the chance of any wrong decision at `ALPHA`. From `SIGNS` units on
the exact sign-flip test must agree after the same correction. In this order:

  not testable   nothing was measured, for the reason given
  a count        supported without an exception, contradicted with one
  inconclusive   fewer than `LEAST` units
  no effect beyond the margin
                 two one-sided tests (TOST) place the mean within the margin
  supported      as expected, decided by the tests above
  contradicted   the opposite is decided
  inconclusive   anything else
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.effects import Count, Effect, plain

ALPHA = 0.05
"""Chance of any wrong decision among the claims of one experiment."""
LEAST = 5
"""Below this a t interval is as wide as its own spread times 1.6 and rests on
normality that nothing can check."""
SIGNS = 8
"""From here on the sign-flip test can reach 2^-7, below `ALPHA` after Holm's
correction over six claims."""
POWER = 0.8
"""Of the smallest effect that a plan names."""


class Verdict(enum.StrEnum):
  """What is known of a claim."""

  SUPPORTED = "supported"
  CONTRADICTED = "contradicted"
  NO_EFFECT = "no effect beyond the margin"
  INCONCLUSIVE = "inconclusive"
  NOT_TESTABLE = "not testable"


@dataclasses.dataclass(frozen=True)
class Judged(Claim):
  """A claim with its verdict.

  Attributes:
    verdict: of `judge`.
    p: before the correction; NaN where no test was made.
    adjusted: Holm's, over the experiment's claims.
    family: m, the number of claims that the correction is over.
    why: the tests that decided, in words.
    confirmatory: whether the claim, with its margin, was stated before any of
      the texts that it was measured on had been looked at.
  """

  verdict: Verdict = Verdict.INCONCLUSIVE
  p: float = float("nan")
  adjusted: float = float("nan")
  family: int = 0
  why: str = ""
  confirmatory: bool = False

  def record(self) -> dict[str, Any]:
    """What files keep: text and numbers, readable without this code."""
    own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    own |= {
      "verdict": str(self.verdict),
      "effect": None if self.effect is None else plain(self.effect),
      "provided": [plain(one) for one in self.provided],
    }
    # Folders that git keeps have little room: what is empty is left out.
    nothing = ("", [], 0)
    return {k: x for k, x in own.items() if x not in nothing and x == x}


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
  """[m] p values adjusted by Holm's step-down method.

  With p_(1) <= ... <= p_(m): adjusted_(k) = max over j <= k of
  min(1, (m - j + 1) p_(j)); rejecting those at most alpha makes any wrong
  rejection as rare as alpha, whatever the dependence (Holm 1979).

  >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
  [0.03, 0.06, 0.06]
  """
  p = np.asarray(p, float)
  order = np.argsort(p, kind="stable")
  steps = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
  adjusted = np.empty(len(p))
  adjusted[order] = np.maximum.accumulate(steps)
  return adjusted


def stated(claims: Sequence[Claim]) -> dict[str, dict[str, Any]]:
  """What the claims on texts say, by id: what a confirmation must not change.

  Claims on anything else, as on haystacks of needles, are not among them: only
  texts are known to be new.

  Args:
    claims: of one experiment.
  """
  return {
    claim.id: {
      "claim": claim.claim,
      "expect": claim.effect.expect,
      "margin": claim.effect.margin,
    }
    for claim in claims
    if isinstance(claim.effect, Effect) and claim.effect.per == "text"
  }


def judge(
  claims: Sequence[Claim], before: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Judged]:
  """The verdicts on all claims of one experiment, which are one family.

  Args:
    claims: of one experiment on one model or scale.
    before: `stated` of the code that measured new texts; `None` where the
      texts were known. A claim is confirmatory if it still says the same.
  """
  now, before = stated(claims), before or {}
  confirmatory = {
    name
    for name, said in before.items()
    if name in now
    # The wording may be improved; what is expected, and how much, may not.
    and said["expect"] == now[name]["expect"]
    # Seven digits are what files keep.
    and math.isclose(said["margin"], now[name]["margin"], rel_tol=1e-6)
  }
  tested = [i for i, claim in enumerate(claims) if _is_tested(claim)]
  holds = _by_claim(tested, [_p_holds(claims[i]) for i in tested])
  fails = _by_claim(tested, [claims[i].effect.p_fails() for i in tested])
  signs = _by_claim(tested, [claims[i].effect.mean.p for i in tested])
  found = []
  for i, claim in enumerate(claims):
    if i not in holds:
      verdict, why = _untested(claim)
      found.append(Judged(**vars(claim), verdict=verdict, why=why))
      continue
    p, adjusted = holds[i]
    verdict = _decided(claim.effect, adjusted, fails[i][1], signs[i][1])
    found.append(
      Judged(
        **vars(claim),
        verdict=verdict,
        p=p,
        adjusted=adjusted,
        family=len(tested),
        why=_why(claim, holds[i], fails[i], signs[i], len(tested)),
        confirmatory=claim.id in confirmatory,
      )
    )
  return found


def _is_tested(claim: Claim) -> bool:
  return isinstance(claim.effect, Effect) and _units(claim) >= LEAST


def _units(claim: Claim) -> int:
  """Of the effect or of a condition, whichever has fewer."""
  return min(one.n for one in (claim.effect, *claim.provided))


def _by_claim(
  at: Sequence[int], p: Sequence[float]
) -> dict[int, tuple[float, float]]:
  """{claim: (p, adjusted)}."""
  return dict(
    zip(at, zip(map(float, p), map(float, holm(p)), strict=True), strict=True)
  )


def _p_holds(claim: Claim) -> float:
  """Of the effect, and of its conditions where it is as expected.

  A condition qualifies the statement, not its opposite: a variant with a
  stronger sink contradicts "a weaker one" whether or not it is a worse model.
  """
  own = claim.effect.p_holds()
  if not claim.effect.as_expected():
    return own
  return max([own, *(_one_sided(one) for one in claim.provided)])


def _one_sided(condition: Effect) -> float:
  """p of a condition; 1 where it points the wrong way."""
  return condition.p_holds() if condition.as_expected() else 1.0


def _decided(
  effect: Effect, holds: float, fails: float, signs: float
) -> Verdict:
  if effect.sided() and fails <= ALPHA:
    return Verdict.NO_EFFECT
  agreed = effect.n < SIGNS or signs <= ALPHA or not effect.sided()
  if holds <= ALPHA and agreed:
    if effect.as_expected():
      return Verdict.SUPPORTED
    if effect.sided():
      return Verdict.CONTRADICTED
  if not effect.sided() and fails <= ALPHA:
    return Verdict.CONTRADICTED
  return Verdict.INCONCLUSIVE


def _untested(claim: Claim) -> tuple[Verdict, str]:
  evidence = claim.effect
  if evidence is None:
    return Verdict.NOT_TESTABLE, claim.untested
  if isinstance(evidence, Count):
    if not evidence.cases:
      return Verdict.NOT_TESTABLE, f"none of {evidence.what} was there to try"
    held = not evidence.broken
    return (
      Verdict.SUPPORTED if held else Verdict.CONTRADICTED,
      f"a law without noise: {evidence.text()}",
    )
  n = _units(claim)
  return (
    Verdict.INCONCLUSIVE,
    f"{n} {_plural(evidence.per, n)}; a verdict needs at least {LEAST}",
  )


def _why(
  claim: Claim,
  holds: tuple[float, float],
  fails: tuple[float, float],
  signs: tuple[float, float],
  family: int,
) -> str:
  effect = claim.effect
  parts = [
    f"{effect.n} {_plural(effect.per, effect.n)}",
    f"{'paired t test' if effect.sided() else 'one-sided t tests'} "
    f"p = {holds[0]:.2g}, {holds[1]:.2g} after Holm's correction over "
    f"{family} claims",
  ]
  if effect.sided():
    if effect.n >= SIGNS:
      parts.append(f"sign-flip test {signs[0]:.2g}, {signs[1]:.2g}")
    parts.append(f"within the margin p = {fails[0]:.2g}, {fails[1]:.2g}")
  else:
    parts.append(f"beyond the margin p = {fails[0]:.2g}, {fails[1]:.2g}")
  parts.append(f"margin {margin_text(effect)}")
  for one in claim.provided:
    parts.append(
      f"provided that {one.what} is {expectation(one)}: {one.text()}, "
      f"p = {_one_sided(one):.2g}"
    )
  return "; ".join(parts)


def expectation(effect: Effect) -> str:
  """What is expected of an effect, in words."""
  null = f"{effect.unit.null:g}"
  return {
    "more": f"above {null}",
    "less": f"below {null}",
    "same": f"within the margin of {margin_text(effect)}",
    "not more": f"above {null} by less than the margin, {margin_text(effect)}",
    "not less": f"below {null} by less than the margin, {margin_text(effect)}",
  }[effect.expect]


def margin_text(effect: Effect) -> str:
  """The margin as it is shown, as in '0.020 nats' or '1.10 times'."""
  shown = effect.unit.shown(effect.margin)
  form = effect.unit.form.lstrip("+")
  return f"{shown:{form}} {effect.unit.name}"


def _plural(noun: str, n: int) -> str:
  return noun if n == 1 else f"{noun}s"


def smallest_effect(spread: float, n: int, family: int) -> float:
  """The smallest mean that n units find with a power of `POWER`.

  Two-sided paired t test at ALPHA / m, the first step of Holm's correction:
  the mean whose noncentral t reaches the critical value with probability
  `POWER`. Infinite where there are fewer than `LEAST` units, or so many claims
  that the sign-flip test, which must agree from `SIGNS` units on, cannot reach
  ALPHA / m: n < log2(2 m / ALPHA).

  Args:
    spread: standard deviation of the effect between units.
    n: units.
    family: m, the experiment's claims.

  Raises:
    ValueError: for a spread or a family that is not positive.
  """
  from scipy import optimize, stats

  if not (spread > 0 and family > 0):
    raise ValueError(f"spread {spread} and family {family} must be positive")
  if n < LEAST or (n >= SIGNS and 2.0 ** (1 - n) > ALPHA / family):
    return float("inf")
  limit = stats.t.ppf(1 - ALPHA / family / 2, n - 1)

  def missing(shift: float) -> float:
    # The other tail counts for nothing: a decision with the wrong sign.
    return POWER - stats.nct.sf(limit, n - 1, shift)

  # A shift of twice the limit plus ten is found with certainty.
  shift = optimize.brentq(missing, 0.0, 2 * limit + 10)
  return float(spread * shift / np.sqrt(n))
