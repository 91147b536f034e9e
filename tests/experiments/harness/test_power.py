"""Plans: spreads from claims, sizes from spreads."""

import math

import numpy as np
import pytest

from sinkjax.experiments.harness import costs, power, protocol
from sinkjax.experiments.harness.api import Claim
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  NATS,
  Count,
  Expect,
  effect,
)
from sinkjax.experiments.harness.protocol import judge

VALUES = np.array([0.1, 0.4, 0.2, 0.6, 0.3, 0.35, 0.15, 0.5])


def claim(id, evidence):
  text = ("One sentence that stands alone.", "here", "no number", "said")
  return Claim(id, *text, evidence)


def of(id, values, unit=NATS):
  return claim(id, effect(values, "x", unit, Expect.MORE))


def test_the_spread_is_the_standard_deviation_between_units():
  few, wide = judge([of("one", VALUES)]), judge([of("one", 3 * VALUES)])
  (found,) = power.spreads({"a": [few]})["a"].values()
  # Kept with three digits.
  assert found["spread"] == pytest.approx(VALUES.std(ddof=1), rel=5e-3)
  assert (found["n"], found["per"], found["unit"]) == (8, "text", "nats")
  # Of two runs the larger spread is planned with, in either order.
  for runs in ([few, wide], [wide, few]):
    (found,) = power.spreads({"a": runs})["a"].values()
    assert found["spread"] == pytest.approx(3 * VALUES.std(ddof=1), rel=5e-3)


def test_laws_and_constants_have_no_spread():
  law, same = claim("law", Count("pairs", 0, 9)), of("same", np.ones(6))
  assert power.spreads({"a": [judge([law, same])]}) == {}


def test_a_plan_shows_each_claim_at_each_number_of_units(monkeypatch):
  known = power.spreads(
    {"a": [judge([of("one", VALUES), of("two", VALUES, LOG_RATIO)])]}
  )
  monkeypatch.setattr(power, "_recorded", lambda: known)
  lines = power.plan("a", 10)
  header, one, two, this = lines[1:]
  assert [f"n={n}" for n in (5, 8, 10, 12, 16, 24, 48)] == header.split()
  at_ten = header.split().index("n=10") + 1
  least = protocol.smallest_effect(known["a"]["one"]["spread"], 10, 2)
  assert float(one.split()[at_ten]) == pytest.approx(least, rel=5e-3)
  assert float(two.split()[at_ten]) == pytest.approx(math.exp(least), rel=5e-3)
  assert two.endswith("times, per text") and this == "this run: n=10"
  assert power.plan("unknown") == []


def test_what_cannot_be_found_has_a_dash(monkeypatch):
  known = {"a": {f"c{i}": {"spread": 1.0, "unit": "nats", "per": "text", "n": 9}
                 for i in range(7)}}  # fmt: skip
  monkeypatch.setattr(power, "_recorded", lambda: known)
  _, header, first, *_ = power.plan("a")
  # Seven claims are too many for the sign-flip test of eight units.
  assert first.split()[header.split().index("n=8") + 1] == "-"


def test_recorded_times_are_those_of_the_scale(monkeypatch):
  times = {"cpu scale": 7200, "demo scale": 90, "a model": 119}
  known = {k: {"seconds": x, "device": "CPU"} for k, x in times.items()}
  monkeypatch.setattr(costs, "_recorded", lambda: {"one": known})
  assert costs.plan("one", "cpu") == [
    "time: took 2.0 h on cpu scale (CPU) when it was recorded"
  ]
  assert [line.split(" on ")[0] for line in costs.plan("one")] == [
    "time: took 2.0 h",
    "time: took 90 s",
    "time: took 119 s",
  ]
  assert costs.plan("one", "gpu") == costs.plan("another") == []
