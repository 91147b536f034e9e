"""Noise and defences: verdicts, on made-up effects."""

import numpy as np
import pytest
from robustness_config import CONFIG

from sinkjax.experiments.applications.robustness import EXPERIMENT
from sinkjax.experiments.applications.robustness.config import (
  ALL,
  Condition,
  Defence,
)
from sinkjax.experiments.applications.robustness.results import (
  KL,
  LOSS,
  balance,
  result_of,
)
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared.perturb import NOISE, SWAP

pytestmark = pytest.mark.thorough

TEXTS = 12
PERTURBED = [(NOISE, x) for x in ("sink", "next", "middle", "last", ALL)]
PERTURBED += [(SWAP, "middle"), (SWAP, "last")]


def made(change=None, attacks=None, places=None, **about):
  """The claims with verdicts, by id.

  Args:
    change: factors on every effect of a condition, by its name.
    attacks: [P, S, D, 3, M] where some defence does something.
    places: factors on the effects of noise there with the sink, by name.
    about: more numbers.
  """
  rng = np.random.default_rng(0)
  effects = np.exp(0.01 * rng.normal(size=(TEXTS, 4, len(PERTURBED), 4)))
  for name, factor in (change or {}).items():
    effects[:, list(Condition).index(name)] *= factor
  for place, factor in (places or {}).items():
    effects[:, 0, PERTURBED.index((NOISE, place))] *= factor
  if attacks is None:
    attacks = np.ones((TEXTS, 3, 8, 3, 4))
  about = {"texts": TEXTS, "positions": {}, "front": 1} | about
  losses = np.ones((TEXTS, 4))
  result = result_of(CONFIG, about, PERTURBED, effects, losses, attacks)
  stored = result.as_stored(CONFIG)
  return stored, {x.id: x for x in judge(EXPERIMENT.claims(stored))}


WITHOUT = [
  f"without_sink_{x}"
  for x in ("noise_one", "noise_all", "swap", "noise_one_spread", "swap_spread")
]


@pytest.mark.parametrize(
  ("factor", "verdict", "opposite"),
  [
    (4.0, Verdict.SUPPORTED, Verdict.CONTRADICTED),
    (0.25, Verdict.CONTRADICTED, Verdict.SUPPORTED),
  ],
)
def test_verdicts_follow_the_numbers(factor, verdict, opposite):
  """Four times the KL when hidden, in every text, or a fourth of it."""
  result, found = made({Condition.HIDDEN: factor})
  assert {found[id].verdict for id in WITHOUT} == {verdict}
  assert found["hidden_more_than_empty"].verdict == verdict
  assert found["empty_sink_noise_one"].verdict == Verdict.NO_EFFECT
  assert found["noise_at_sink"].verdict == Verdict.NO_EFFECT
  ratio = result.numbers["ratios"]["noise on one token"]["kl"]["sink hidden"]
  assert np.exp(ratio["value"]) == pytest.approx(factor, rel=0.05)
  mean = found["without_sink_noise_one"].effect.mean
  assert mean.value == pytest.approx(ratio["value"], rel=1e-6)
  _, found = made({Condition.EMPTY: factor})
  assert found["empty_sink_noise_one"].verdict == verdict
  assert found["hidden_more_than_empty"].verdict == opposite


def test_more_than_with_the_sink_alone_decides_nothing():
  """Hiding another token does as much, so it is not the sink."""
  _, found = made({Condition.HIDDEN: 3.0, Condition.CONTROL: 3.0})
  assert {found[id].verdict for id in WITHOUT} == {Verdict.INCONCLUSIVE}
  _, found = made({Condition.HIDDEN: 3.0, Condition.CONTROL: 2.0})
  assert {found[id].verdict for id in WITHOUT} == {Verdict.SUPPORTED}
  _, found = made({Condition.HIDDEN: 0.8, Condition.CONTROL: 0.5})
  assert {found[id].verdict for id in WITHOUT} == {Verdict.CONTRADICTED}


def test_noise_on_the_sink_is_compared_with_the_second_token():
  more = {"sink": 4.0, "middle": 20.0, "last": 20.0}
  assert made(places=more)[1]["noise_at_sink"].verdict == Verdict.SUPPORTED
  less = {"next": 4.0, "middle": 0.1, "last": 0.1}
  assert made(places=less)[1]["noise_at_sink"].verdict == Verdict.CONTRADICTED


def test_defences_are_judged_by_the_loss_under_attack():
  attacks = np.random.default_rng(0).normal(0, 1e-3, (TEXTS, 3, 8, 3, 4))
  attacks[:, :, 0, 1, LOSS] += 1.0
  order = list(Defence)
  attacks[:, :, order.index(Defence.OWN), :, KL] = 1e-7
  attacks[:, :, order.index(Defence.CLIP_EMBED_MAX), 1, LOSS] += 1.0
  attacks[:, :, order.index(Defence.CLIP_RESID_MAX), 1, LOSS] += 1.5
  # A cost without an attack is no gain under it.
  attacks[:, :, order.index(Defence.FRONT), 0, LOSS] += 5.0
  _, found = made(attacks=attacks)
  assert {x: found[x].verdict for x in DEFENCES} == {
    "pinned_own": Verdict.SUPPORTED,
    "pinned_other": Verdict.SUPPORTED,
    "pinned_front": Verdict.SUPPORTED,
    "clip_embed_median": Verdict.SUPPORTED,
    "clip_embed_max": Verdict.NO_EFFECT,
    "clip_resid_median": Verdict.SUPPORTED,
    "clip_resid_max": Verdict.CONTRADICTED,
  }
  law = found["pinned_own"].effect
  assert (law.broken, law.cases) == (0, 3 * TEXTS)
  attacks[2, 1, order.index(Defence.OWN), 1, KL] = -2e-5
  _, found = made(attacks=attacks)
  assert found["pinned_own"].effect.broken == 1
  assert found["pinned_own"].verdict == Verdict.CONTRADICTED


DEFENCES = ["pinned_own", "pinned_other", "pinned_front"]
DEFENCES += [
  f"clip_{x}_{y}" for x in ("embed", "resid") for y in ("median", "max")
]


def test_pages_of_one_template_are_one_unit():
  origins = ["pydoc: ast", "pydoc: enum", "pydoc: csv", *"abcdefghi"]
  _, found = made(origins=origins)
  units = {one.effect.n for id, one in found.items() if id != "pinned_own"}
  assert units == {10}
  _, found = made(origins=origins, templates=[0, 0, *range(2, 12)])
  assert found[WITHOUT[2]].effect.n == 11


def test_gain_and_cost_by_hand():
  attacks = np.zeros((4, 3, 8, 3, 4))
  d = list(Defence).index(Defence.FRONT)
  attacks[:, :, 0, 1, LOSS] = 1.0
  attacks[:, :, d, 0, LOSS] = 0.2
  attacks[:, :, d, 1, LOSS] = 0.5
  found = balance(attacks)[Defence.FRONT]
  assert found["cost"].value == pytest.approx(0.2)
  assert found["gain"].value == pytest.approx(0.5)
  assert found["gain, k"].value == pytest.approx(0.5)
