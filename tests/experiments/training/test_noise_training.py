"""Tests of the experiment `noise_training` and its robustness score."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.training import sink_regulariser
from sinkjax.experiments.training.noise_training import EXPERIMENT
from sinkjax.experiments.training.noise_training.claims import claims
from sinkjax.experiments.training.noise_training.experiment import (
  OWN,
  REGULARISED,
  SCALES,
  Config,
  rows_of,
  variants,
)
from sinkjax.experiments.training.noise_training.robustness_score import (
  KINDS,
  Force,
  robustness_score,
)
from sinkjax.report import html

FORCE = Force(share=0.5, draws=2, steps=2, seed=0)
SMALL = {
  "seeds": (0,),
  "layers": 2,
  "d_model": 32,
  "head_dim": 16,
  "vocab_size": 300,
  "length": 32,
  "batch": 4,
  "steps": 2,
  "warmup": 1,
  "every": 1,
  "texts": 16,
}


@pytest.mark.slow
def test_models_are_trained_and_measured(corpus, tmp_path):
  """Two tiny models trained here; a third that another experiment shares."""
  config = Config(
    **SMALL,
    corpus=corpus,
    noises=(),
    adversarial=(0.5,),
    draws=1,
    gradients=1,
    tests=3,
    tokens=16,
  )
  seen = []
  alone = EXPERIMENT.measure(
    config, folder=tmp_path / OWN, progress=lambda *at: seen.append(at)
  )
  assert (4, 4) in seen and seen[-1] == (2, 2)  # steps, then models
  assert not EXPERIMENT.claims(alone.as_stored(config))
  assert [r["variant"] for r in alone.numbers["sturdiness"]] == [
    "plain",
    "adversarial_0.5",
  ]
  other = sink_regulariser.Config(**SMALL, corpus=corpus, targets=())
  sink_regulariser.EXPERIMENT.measure(other, folder=tmp_path / REGULARISED)
  result = EXPERIMENT.measure(config, folder=tmp_path / OWN)
  plain, noisy, free = result.numbers["sturdiness"]
  assert (free["experiment"], free["variant"]) == (REGULARISED, "free")
  numbers = [key for key in plain if key.endswith(("_kl", "_loss", "_spread"))]
  assert len(numbers) == 12
  for key in (*numbers, "first_mass", "loss"):
    assert free[key] == plain[key] != noisy[key]
  header, table = result.tables["sturdiness.csv"]
  assert len(table) == 3 and {len(row) for row in table} == {len(header)}
  stored = result.as_stored(config)
  drawn = EXPERIMENT.draw(stored)
  sections = EXPERIMENT.sections(stored, drawn)
  assert {section.figure for section in sections} == set(drawn.values())
  assert all(png.startswith(html.PNG_SIGNATURE) for png in drawn.values())


@pytest.fixture(scope="module")
def model():
  cfg = sinkjax.TINY
  params = sinkjax.init_params(cfg, jax.random.key(0))
  return cfg, scaled(params, 1.5)


ROWS = np.arange(64).reshape(4, 16) * 7 % 60


@pytest.mark.slow
@pytest.mark.thorough
def test_what_the_numbers_are(model):
  """The swap by hand; attacks raise the loss; noise is the same by seed."""
  cfg, params = model
  force = FORCE._replace(draws=1)
  found = robustness_score(cfg, params, ROWS, force)
  assert set(found) == {"first_mass", "loss"} | {
    f"{kind}_{what}" for kind in KINDS for what in ("kl", "loss", "spread")
  }
  assert found == robustness_score(cfg, params, ROWS, force)
  assert found != robustness_score(cfg, params, ROWS, force._replace(seed=1))
  assert found["attack_loss"] > 0 and found["attack_first_loss"] > 0
  rng = np.random.default_rng(0)
  rng.normal(size=(4, 16, cfg.d_model))  # the noise is drawn first
  other = ROWS.copy()
  other[:, 4] = rng.integers(cfg.vocab_size, size=4)

  def logs(rows):
    logits = sinkjax.forward(cfg)(params, jnp.asarray(rows)).logits
    return np.asarray(jax.nn.log_softmax(logits[:, 8:-1]), np.float64)

  p, q = logs(ROWS), logs(other)
  kl = (np.exp(p) * (p - q)).sum(-1).mean(axis=1)
  want = np.exp(np.log(kl).mean())
  assert found["swap_kl"] == pytest.approx(want, rel=1e-2)
  taken = np.take_along_axis(p, ROWS[:, 9:, None], 2).mean()
  assert found["loss"] == pytest.approx(-taken, rel=1e-5)


@pytest.mark.slow
def test_tokens_that_do_not_mix_are_not_changed(model):
  cfg, params = model
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if "'o'" in jax.tree_util.keystr(path) else x, params
  )
  found = robustness_score(cfg, params, ROWS, FORCE)
  for kind in KINDS:
    assert found[f"{kind}_kl"] <= 1e-6 and found[f"{kind}_spread"] == 0


@pytest.mark.slow
def test_no_noise_is_no_change(model):
  found = robustness_score(*model, ROWS, FORCE._replace(share=0.0))
  for kind in ("noise", "attack", "attack_first"):
    assert found[f"{kind}_kl"] <= 1e-6 and found[f"{kind}_spread"] == 0
  assert found["swap_kl"] > 1e-4


@pytest.mark.parametrize("scale", list(SCALES))
def test_every_scale_can_be_trained(scale):
  config = Config(**SCALES[scale])
  runs = variants(config)
  assert (
    runs["plain"]
    == sink_regulariser.variants(
      sink_regulariser.Config(**sink_regulariser.SCALES[scale])
    )["free"]
  )
  assert len({str(run.to_dict()) for run in runs.values()}) == len(runs) > 1
  assert len({run.steps * run.batch for run in runs.values()}) == 1
  assert len(runs) * len(config.seeds) <= 9
  assert REGULARISED in EXPERIMENT.plan(config)[-1]


def test_a_share_that_cannot_be():
  with pytest.raises(ValueError, match="must be above 0"):
    variants(Config(noises=(0.0,)))


SEEDS = 10
"""The sign-flip test with Holm's correction over 13 claims needs ten."""


def made_up(truth):
  """Rows in which `truth(variant)` sets logarithms of numbers."""
  rng = np.random.default_rng(0)
  named = [(OWN, x) for x in ("plain", "noise_0.5", "adversarial_0.5")]
  named += [(REGULARISED, x) for x in ("free", "target_0", "target_0.6")]
  rows = []
  for experiment, variant in named:
    row = {"experiment": experiment, "variant": variant}
    row["seeds"] = list(range(SEEDS))
    values = {
      "first_mass": 0.1,
      "loss": 3.0,
      **{
        f"{kind}_{what}": 1.0
        for kind in KINDS
        for what in ("kl", "loss", "spread")
      },
    } | truth(variant)
    for key, value in values.items():
      row[key] = list(value + 0.001 * rng.normal(size=SEEDS))
    rows.append(row)
  return rows


@pytest.mark.parametrize(
  ("lift", "verdict"), [(1, Verdict.SUPPORTED), (-1, Verdict.CONTRADICTED)]
)
def test_verdicts_follow_the_numbers(lift, verdict):
  up = 1.5**lift

  def truth(name):
    if name in ("noise_0.5", "adversarial_0.5"):
      return {
        "first_mass": 0.1 + 0.05 * lift,
        "noise_kl": 1 / up,
        "attack_kl": 1 / up,
      }
    more = {f"{kind}_kl": up for kind in KINDS}
    more |= {"noise_spread": up, "swap_spread": up}
    if name == "target_0":
      return {"first_mass": 0.03, "attack_first_kl": up, **more}
    if name == "target_0.6":
      return {
        "first_mass": 0.8,
        "noise_spread": 1 / up**8,
        "swap_spread": 1 / up**8,
        "attack_first_kl": up**8,
      }
    return {}

  said = judge(claims(made_up(truth)))
  assert len({c.id for c in said}) == len(said) == 3 + 3 + 4 + 3
  assert {c.verdict for c in said} == {verdict}
  assert all("nan" not in c.ours.split() for c in said)


def test_a_worse_model_is_not_called_more_robust():
  less = {"noise_kl": 0.1, "attack_kl": 0.1}
  for extra, verdict in (
    ({}, Verdict.SUPPORTED),
    ({"loss": 3.1}, Verdict.INCONCLUSIVE),
  ):
    rows = made_up(lambda x, e=extra: less | e if x.startswith("noise") else {})
    said = judge(claims(rows))
    robust = (
      "more_robust_to_noise_noise_0_5",
      "more_robust_to_attack_noise_0_5",
    )
    found = [c.verdict for c in said if c.id in robust]
    assert found == [verdict] * 2


def test_slopes_of_models_that_have_not_learnt_decide_nothing():
  """Of the models with a sink that was set, the strongest is a worse one."""

  def truth(name):
    mass = {"free": 0.1, "target_0": 0.03, "target_0.6": 0.8}.get(name, 0.1)
    spread = {"target_0.6": 0.1}.get(name, 1.0)
    loss = {"target_0.6": 4.0}.get(name, 3.0)
    return {"first_mass": mass, "swap_spread": spread, "loss": loss}

  found = {c.id: c for c in judge(claims(made_up(truth)))}
  claim = found["stronger_sink_less_swap_spread"]
  assert claim.verdict == Verdict.NO_EFFECT
  assert claim.provided[0].mean.low > 0
  assert "without target_0.6, worse models" in claim.ours


def test_claims_need_two_seeds_and_know_what_is_there():
  rows = made_up(lambda name: {})
  assert len(claims([r for r in rows if r["experiment"] == OWN])) == 6
  for row in rows:
    row["seeds"] = [0]
  assert claims(rows) == []


def test_rows_are_by_variant_and_seed():
  found = [
    {
      "request": {"experiment": experiment, "variant": "x", "run": {"seed": s}},
      "final": {"loss": float(s)},
    }
    for s in (1, 0)
    for experiment in (REGULARISED, "other")
  ]
  own, beside = rows_of(found, "other")
  assert (own["experiment"], beside["experiment"]) == (OWN, REGULARISED)
  assert own["seeds"] == [0, 1] and own["loss"] == [0.0, 1.0]


def test_the_same_config_gives_the_same_variants():
  one = dataclasses.replace(Config(), noises=(0.1, 0.2), adversarial=(0.3,))
  runs = variants(one)
  assert list(runs) == ["plain", "noise_0.1", "noise_0.2", "adversarial_0.3"]
  assert runs["adversarial_0.3"].disturbance()[:2] == (0.3, True)
