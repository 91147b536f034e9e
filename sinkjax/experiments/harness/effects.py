"""Effects: one number a unit of replication, paired, with what is expected.

A unit is what is independent of the others: a text (texts that share a template
are one), a haystack, a training seed, a round of timing. An effect has one
value a unit, mostly a difference of two conditions within it; its interval and
tests are over units.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.harness.stats import Mean, mean_of


class Expect(enum.StrEnum):
  """What a claim expects of an effect with true mean mu and margin m."""

  MORE = "more"
  """mu > 0."""
  LESS = "less"
  """mu < 0."""
  SAME = "same"
  """|mu| < m."""
  NOT_MORE = "not more"
  """mu < m: no worse, where more is worse."""
  NOT_LESS = "not less"
  """mu > -m: no worse, where less is worse."""


class Unit(NamedTuple):
  """What an effect is measured in, and how it is shown.

  Attributes:
    name: behind the number that is shown.
    scale: of the values themselves, as files keep them.
    margin: half-width of the band of effects that do not matter in practice.
    form: format of one number, with its sign where it is a difference.
    shown: from a value to the number that is shown.
    null: the shown number of no effect, where axes and cells have their line.
  """

  name: str
  scale: str
  margin: float
  form: str
  shown: Callable[[float], float] = float
  null: float = 0.0


# The margins were fixed before any verdict was made by these rules, each as the
# smallest effect that would change what one does with a model.
NATS = Unit("nats", "nats", 0.02, "+.3f")
"""Of loss: 0.02 nats are 2 % of perplexity, about what two training seeds of
one small model differ by."""
LOG_RATIO = Unit(
  "times", "natural logarithm of a ratio", math.log(1.1), ".3g", math.exp, 1.0
)
"""Values are log ratios, shown as factors: a tenth more or less."""
SHARE = Unit("percentage points", "share", 0.02, "+.1f", lambda x: 100 * x)
"""Of heads, answers, rows or attention: 2 percentage points, five heads of
270."""
RELATIVE = Unit("%", "relative change", 0.01, "+.2f", lambda x: 100 * x)
"""Of a loss or a count, relative to its own size: one per cent, the limit that
the literature on pruning calls equal."""
COSINE = Unit("of a cosine", "cosine", 0.02, "+.3f")
"""Also for normalised entropy and effective rank, which run from 0 to 1 too."""
AUROC = Unit("of the AUROC", "area under the ROC curve", 0.05, "+.3f")
"""Less 0.5, or of two scores: what ranks one pair in twenty better than a coin
tells nothing."""
RANKS = Unit("of a rank correlation", "rank correlation", 0.1, "+.3f")
"""A correlation of 0.1 explains one per cent of the variance."""
DECADES = Unit("decades", "decimal logarithm of a ratio", math.log10(2), "+.2f")
"""Of a norm or a bound: a factor of 2. Bounds lie tens of decades above the
norms, and a smaller change is invisible there."""
TOKENS = Unit("tokens", "tokens", 0.5, "+.2f")
"""Of distance: half a token, below the grain of a position."""


@dataclasses.dataclass(frozen=True)
class Effect:
  """A mean over units, what is expected of it, and what would not matter.

  Attributes:
    what: the quantity and the pair that is compared, in words.
    unit: what it is measured in.
    per: the unit of replication, a singular noun: "text", "training seed".
    expect: of the true mean.
    margin: of equivalence, in the values' own unit.
    mean: with its 95 % interval by Student's t over units; its p is that of
      the sign-flip test.
  """

  what: str
  unit: Unit
  per: str
  expect: Expect
  margin: float
  mean: Mean

  def __post_init__(self):
    if not self.margin > 0:
      raise ValueError(f"a margin must be positive, got {self.margin}")

  @property
  def n(self) -> int:
    """Units of replication."""
    return self.mean.groups

  def text(self) -> str:
    """The effect with its interval, as in '1.60 (1.49 to 1.71) times'."""
    value, low, high = (
      f"{self.unit.shown(x):{self.unit.form}}" for x in self.mean[:3]
    )
    return f"{value} ({low} to {high}) {self.unit.name}"

  def p_differs(self) -> float:
    """Two-sided paired t test of mean zero."""
    return min(1.0, 2 * min(self._above(0.0), self._below(0.0)))

  def p_within(self) -> float:
    """Two one-sided t tests: the mean lies within the margin."""
    return max(self._above(-self.margin), self._below(self.margin))

  def p_holds(self) -> float:
    """One test of what is expected; for MORE and LESS both sides count.

    A small value decides for the expectation where the mean agrees with it,
    and, for MORE and LESS, against it where it does not.
    """
    match self.expect:
      case Expect.SAME:
        return self.p_within()
      case Expect.NOT_MORE:
        return self._below(self.margin)
      case Expect.NOT_LESS:
        return self._above(-self.margin)
    return self.p_differs()

  def p_fails(self) -> float:
    """One test of the alternative that is not a plain opposite.

    For MORE and LESS, that there is no effect beyond the margin; for the
    others, that there is one, on the side that they exclude.
    """
    match self.expect:
      case Expect.SAME:
        beyond = min(self._above(self.margin), self._below(-self.margin))
        return min(1.0, 2 * beyond)
      case Expect.NOT_MORE:
        return self._above(self.margin)
      case Expect.NOT_LESS:
        return self._below(-self.margin)
    return self.p_within()

  def as_expected(self) -> bool:
    """Whether the mean itself lies where it is expected."""
    value = self.mean.value
    return {
      Expect.MORE: value > 0,
      Expect.LESS: value < 0,
      Expect.SAME: abs(value) < self.margin,
      Expect.NOT_MORE: value < self.margin,
      Expect.NOT_LESS: value > -self.margin,
    }[self.expect]

  def sided(self) -> bool:
    """Whether it is expected to have a sign."""
    return self.expect in (Expect.MORE, Expect.LESS)

  def _above(self, bound: float) -> float:
    """One-sided p of the mean being above a bound."""
    return _tail(self.mean, self.mean.value - bound)

  def _below(self, bound: float) -> float:
    """One-sided p of the mean being below a bound."""
    return _tail(self.mean, bound - self.mean.value)


def _tail(mean: Mean, off: float) -> float:
  """P(T > off / standard error), Student's t of n - 1."""
  from scipy import stats

  error = mean.error
  if not error > 0:
    # Units that are all equal have no spread: the mean is taken as known.
    return 0.0 if off > 0 else 1.0
  return float(stats.t.sf(off / error, mean.groups - 1))


def effect(
  values: Sequence[float] | np.ndarray | Mean,
  what: str,
  unit: Unit,
  expect: Expect,
  *,
  per: str = "text",
  margin: float | None = None,
) -> Effect:
  """An effect of its values.

  Args:
    values: [n] one paired value a unit, in the order of the units; or the
      `Mean` over them that a file kept.
    what: the quantity, in words.
    unit: what it is measured in.
    expect: of the mean.
    per: the unit of replication.
    margin: of equivalence; that of the unit if `None`.

  Raises:
    ValueError: for fewer than two units, or a margin that is not positive.
  """
  mean = values if isinstance(values, Mean) else mean_of(values)
  if mean.groups < 2:
    raise ValueError(f"an effect needs two units, {what} has {mean.groups}")
  own = unit.margin if margin is None else margin
  return Effect(what, unit, per, expect, own, mean)


@dataclasses.dataclass(frozen=True)
class Count:
  """A law without noise: how often it was broken.

  Attributes:
    what: a case, and what would break the law, in words.
    broken: cases that break it.
    cases: that were tried.
  """

  what: str
  broken: int
  cases: int

  def text(self) -> str:
    """As in '0 of 168 pairs'."""
    return f"{self.broken} of {self.cases} {self.what}"


def plain(evidence: "Effect | Count") -> dict[str, Any]:
  """Evidence as files keep it, for the JSON beside a table of claims."""
  if isinstance(evidence, Count):
    return dataclasses.asdict(evidence)
  return {
    "what": evidence.what,
    "unit": evidence.unit.scale,
    "per": evidence.per,
    "expect": str(evidence.expect),
    "margin": evidence.margin,
    "n": evidence.n,
    "value": evidence.mean.value,
    "low": evidence.mean.low,
    "high": evidence.mean.high,
    "p_sign_flip": evidence.mean.p,
  }
