"""Verdicts: tests against SciPy, Holm's against its definition, every branch,
error rates and power by simulation."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from sinkjax.experiments.harness import protocol
from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  SHARE,
  Count,
  Expect,
  effect,
)
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import Mean, mean_of

NOISE = np.array([-1.2, 0.3, 0.9, -0.4, 1.1, -0.7, 0.2, -0.2, 0.6, -0.6])
"""Ten units of mean 0."""


def claim(values, expect=Expect.MORE, *, id="one", provided=(), **more):
  made = effect(
    values, "the loss, changed less unchanged", NATS, expect, **more
  )
  return Claim(
    id, "A sentence that is long enough.", "here", "no number", "said", made,
    provided=tuple(provided),
  )  # fmt: skip


def verdict(values, expect=Expect.MORE, **more):
  (found,) = judge([claim(values, expect, **more)])
  return found.verdict


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.3, 2.0])
def test_p_values_are_scipys(shift):
  values, margin = NOISE + shift, 0.4
  made = effect(values, "x", NATS, Expect.MORE, margin=margin)

  def one_sided(bound, side):
    return scipy_stats.ttest_1samp(values, bound, alternative=side).pvalue

  near = {"rel": 1e-9}  # the same formulas in float64
  assert made.p_differs() == pytest.approx(
    scipy_stats.ttest_1samp(values, 0).pvalue, **near
  )
  assert made.p_within() == pytest.approx(
    max(one_sided(-margin, "greater"), one_sided(margin, "less")), **near
  )
  beyond = dataclasses.replace(made, expect=Expect.SAME)
  assert (
    beyond.p_fails()
    == pytest.approx(
      2 * min(one_sided(margin, "greater"), one_sided(-margin, "less")), **near
    )
    or beyond.p_fails() == 1.0
  )
  no_more = dataclasses.replace(made, expect=Expect.NOT_MORE)
  assert no_more.p_holds() == pytest.approx(one_sided(margin, "less"), **near)
  assert no_more.p_fails() == pytest.approx(
    one_sided(margin, "greater"), **near
  )


def test_a_stored_mean_is_judged_as_its_values_are():
  values = NOISE + 0.7
  stored = Mean.read(mean_of(values)._asdict())
  assert claim(stored).effect.p_differs() == claim(values).effect.p_differs()
  (a,), (b,) = judge([claim(stored)]), judge([claim(values)])
  assert a == b


@pytest.mark.parametrize("seed", range(20))
def test_holms_correction_by_its_definition(seed):
  p = np.random.default_rng(seed).uniform(size=1 + seed % 6) ** 3
  adjusted = protocol.holm(p)
  for alpha in (0.01, 0.05, 0.2):
    # The procedure itself: reject in order of p while p_(k) <= alpha/(m-k+1).
    order, rejected = np.argsort(p), np.zeros(len(p), bool)
    for k, i in enumerate(order):
      if p[i] > alpha / (len(p) - k):
        break
      rejected[i] = True
    np.testing.assert_array_equal(adjusted <= alpha, rejected)


def test_every_branch_of_an_effect_with_a_sign():
  wide = NOISE  # its standard error is far above the margin of 0.02 nats
  assert verdict(wide + 3) == Verdict.SUPPORTED
  assert verdict(wide - 3) == Verdict.CONTRADICTED
  assert verdict(wide - 3, Expect.LESS) == Verdict.SUPPORTED
  assert verdict(wide + 3, Expect.LESS) == Verdict.CONTRADICTED
  assert verdict(wide + 0.1) == Verdict.INCONCLUSIVE
  assert verdict(0.001 * wide) == Verdict.NO_EFFECT
  # Shown to be above zero, and to be too small to matter.
  assert verdict(0.001 * wide + 0.01) == Verdict.NO_EFFECT
  assert verdict((wide + 3)[:4]) == Verdict.INCONCLUSIVE
  # Without any spread the mean is known.
  assert verdict(np.full(6, 0.5)) == Verdict.SUPPORTED
  assert verdict(np.zeros(6)) == Verdict.NO_EFFECT


def test_every_branch_of_equivalence():
  for narrow in (0.001 * NOISE, 0.001 * NOISE + 0.005):
    for expect in (Expect.SAME, Expect.NOT_MORE, Expect.NOT_LESS):
      assert verdict(narrow, expect) == Verdict.SUPPORTED
  high, low = 0.001 * NOISE + 0.1, 0.001 * NOISE - 0.1
  for values, expect, wanted in (
    (high, Expect.SAME, Verdict.CONTRADICTED),
    (low, Expect.SAME, Verdict.CONTRADICTED),
    (high, Expect.NOT_MORE, Verdict.CONTRADICTED),
    (low, Expect.NOT_MORE, Verdict.SUPPORTED),
    (low, Expect.NOT_LESS, Verdict.CONTRADICTED),
    (high, Expect.NOT_LESS, Verdict.SUPPORTED),
  ):
    assert verdict(values, expect) == wanted
    # A difference that was not found is no equivalence.
    assert verdict(NOISE, expect) == Verdict.INCONCLUSIVE


def test_the_sign_flip_test_must_agree_from_eight_units():
  # The t test, whose variance one large unit inflates, is still far below 0.05.
  values = np.array([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0])
  assert verdict(values) == Verdict.SUPPORTED
  eight = np.append(values, 1.0)
  family = [claim(eight, id=f"c{i}") for i in range(7)]
  # 2^-7 times 7 is 0.055: seven claims are too many for eight units.
  assert {c.verdict for c in judge(family)} == {Verdict.INCONCLUSIVE}
  assert {c.verdict for c in judge(family[:6])} == {Verdict.SUPPORTED}


def test_the_correction_is_over_the_claims_that_were_tested():
  one = claim(NOISE + 0.8)
  (alone,) = judge([one])
  assert alone.verdict == Verdict.SUPPORTED and alone.family == 1
  others = [claim(NOISE, id=f"c{i}") for i in range(9)]
  crowded = judge([one, *others])[0]
  assert crowded.verdict == Verdict.INCONCLUSIVE and crowded.family == 10
  assert crowded.adjusted == pytest.approx(10 * crowded.p)
  nothing = dataclasses.replace(one, id="no", effect=None, untested="no BOS")
  law = dataclasses.replace(one, id="law", effect=Count("pairs", 0, 9))
  few = claim(NOISE[:4], id="few")
  assert judge([one, nothing, law, few])[0].family == 1


def test_conditions_qualify_support_and_nothing_else():
  worse = effect(NOISE + 3, "its loss", NATS, Expect.NOT_MORE)
  sound = effect(0.001 * NOISE, "its loss", NATS, Expect.NOT_MORE)
  assert verdict(NOISE + 3, provided=[sound]) == Verdict.SUPPORTED
  assert verdict(NOISE + 3, provided=[worse]) == Verdict.INCONCLUSIVE
  assert verdict(NOISE + 3, provided=[sound, worse]) == Verdict.INCONCLUSIVE
  assert verdict(NOISE - 3, provided=[worse]) == Verdict.CONTRADICTED
  assert verdict(0.001 * NOISE, provided=[worse]) == Verdict.NO_EFFECT
  few = effect((NOISE + 3)[:4], "control", NATS, Expect.MORE)
  assert verdict(NOISE + 3, provided=[few]) == Verdict.INCONCLUSIVE


def test_laws_and_what_cannot_be_tested():
  base = claim(NOISE)

  def of(evidence, untested=""):
    made = dataclasses.replace(base, effect=evidence, untested=untested)
    return judge([made])[0]

  assert of(Count("pairs exceed it", 0, 9)).verdict == Verdict.SUPPORTED
  assert of(Count("pairs exceed it", 1, 9)).verdict == Verdict.CONTRADICTED
  assert of(Count("pairs exceed it", 0, 0)).verdict == Verdict.NOT_TESTABLE
  missing = of(None, "its texts have no BOS")
  assert missing.verdict == Verdict.NOT_TESTABLE
  assert missing.why == "its texts have no BOS"
  for wrong in ({"untested": "why"}, {"effect": None}):
    with pytest.raises(ValueError, match="either an effect or the reason"):
      dataclasses.replace(base, **wrong)


def test_what_is_shown():
  made = effect(np.log([2.0, 2.2, 1.9, 2.1, 2.3]), "x", LOG_RATIO, Expect.MORE)
  # The geometric mean of the five factors is 2.096.
  assert made.text().startswith("2.1 (1.")
  assert made.text().endswith(" times")
  assert protocol.margin_text(made) == "1.1 times"
  share = effect([0.1, 0.2, 0.1, 0.2, 0.15], "x", SHARE, Expect.MORE)
  assert share.text() == "+15.0 (+8.8 to +21.2) percentage points"
  assert Count("pairs", 0, 168).text() == "0 of 168 pairs"


def test_records_hold_what_decided():
  (found,) = judge([claim(NOISE + 3)])
  record = found.record()
  assert record["verdict"] == "supported" and record["effect"]["n"] == 10
  assert record["effect"]["value"] == pytest.approx(3)
  assert (record["p"], record["family"]) == (found.p, 1)
  assert "provided" not in record and "how" not in record
  (law,) = judge(
    [dataclasses.replace(claim(NOISE), effect=Count("pairs", 0, 9))]
  )
  found = law.record()
  assert found["effect"] == {"what": "pairs", "broken": 0, "cases": 9}
  assert "p" not in found, "no test was made"


@pytest.mark.thorough
def test_wrong_decisions_are_rare():
  """No wrong verdict in more than 5 % of families of five, truths mixed."""
  rng = np.random.default_rng(0)
  families, wrong = 400, 0
  for _ in range(families):
    # Null effects that are far from equivalence, and effects at the margin.
    found = judge(
      [claim(rng.normal(size=9), id=f"n{i}") for i in range(3)]
      + [
        claim(0.02 + 0.02 * rng.normal(size=9), id=f"m{i}", expect=Expect.SAME)
        for i in range(2)
      ]
    )
    wrong += any(c.verdict in ("supported", "contradicted") for c in found)
  # Five standard errors of a rate of 5 % over 400 families are 5.4 %.
  assert wrong / families < 0.05 + 0.054


@pytest.mark.parametrize(("n", "family"), [(6, 1), (12, 1), (12, 5)])
def test_the_smallest_effect_is_found_with_its_power(n, family):
  spread, rng = 0.7, np.random.default_rng(1)
  least = protocol.smallest_effect(spread, n, family)
  draws = least + spread * rng.normal(size=(4000, n))
  p = scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue
  found = np.mean((p <= protocol.ALPHA / family) & (draws.mean(1) > 0))
  # Four standard errors of 80 % over 4,000 draws.
  assert abs(found - protocol.POWER) < 4 * math.sqrt(0.8 * 0.2 / 4000)


def test_too_few_units_find_nothing():
  assert protocol.smallest_effect(1.0, 4, 1) == math.inf
  assert protocol.smallest_effect(1.0, 8, 6) < math.inf
  assert protocol.smallest_effect(1.0, 8, 7) == math.inf
  sizes = [protocol.smallest_effect(1.0, n, 3) for n in (9, 12, 20, 50)]
  assert all(a > b for a, b in itertools.pairwise(sizes))
  with pytest.raises(ValueError, match="must be positive"):
    protocol.smallest_effect(0.0, 9, 1)
