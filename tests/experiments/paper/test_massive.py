"""Massive activations: found in arrays made by hand, and changed in a model."""

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.harness.stats import mean_of
from sinkjax.experiments.paper.massive import EXPERIMENT
from sinkjax.experiments.paper.massive import experiment as module
from sinkjax.experiments.paper.massive.experiment import (
  Config,
  SetFirst,
  find,
  measure,
)


def stream(layers=6, texts=3, tokens=5, width=8):
  """A residual stream of size about one."""
  return np.random.default_rng(0).normal(size=(layers, texts, tokens, width))


def test_find_what_was_put_there():
  x = stream()
  x[2:5, :, 0, [1, 6]] = -3000.0
  x[2:5, 0, 0, 3] = 3000.0  # in one text of three
  x[:, :, 0, 5] = 90.0  # large, not massive
  found = find(x)
  assert found.dimensions == [1, 6]
  assert (found.made, found.gone) == (2, 5)
  assert np.all(found.largest[2:5] == 3000) and np.all(found.largest[5] == 90)
  assert found.elsewhere.max() < 10
  x[5, :, 0, 1] = 5000.0
  assert find(x).gone == 6


def test_large_against_a_large_median_is_not_massive():
  x = stream() * 100
  x[2:5, :, 0, 1] = 3000.0
  assert find(x).made is None


def test_set_first_is_one_token_in_one_layer():
  chosen = jnp.arange(8) == 3
  edit = SetFirst(chosen, jnp.full(8, 7.0), jnp.asarray(2))
  x = jnp.asarray(stream()[0])
  np.testing.assert_array_equal(edit(x, 1), x)
  want = np.array(x)
  want[:, 0, 3] = 7
  np.testing.assert_array_equal(edit(x, 2), want)


@pytest.mark.slow
def test_run_on_a_model_with_massive_activations(subject, text, monkeypatch):
  """Dimension 3 of position 0 gets 50000 in layer 1."""
  plain = module.forward

  def forward(cfg):
    def grow(value, layer):
      at = value[:, :1].at[..., 3].add(50000.0)
      new = jnp.concatenate([at, value[:, 1:]], axis=1)
      return jnp.where(layer == 1, new, value)

    return sinkjax.intervene(plain(cfg), {"mlp_out": grow})

  monkeypatch.setattr(module, "forward", forward)
  config = Config(texts=text, tokens=14, eps=0.15)
  found = measure(subject, config).as_stored(config, "tiny")
  assert found.numbers["dimensions"] == [3]
  assert found.numbers["made"] == 1 and found.numbers["gone"] == 3
  assert found.arrays["by_mlp"][1, 0] == pytest.approx(50000, rel=0.01)
  assert found.arrays["by_attention"].max() < 100
  edits = found.numbers["conditions"]
  assert edits["as it is"]["loss_change"]["value"] == 0
  small = abs(edits["set to their mean"]["loss_change"]["value"])
  large = abs(edits["set to zero"]["loss_change"]["value"])
  assert small < 0.1 * large
  first, broken, *_, sinks = judge(EXPERIMENT.claims(found))
  assert first.verdict == Verdict.SUPPORTED
  assert (first.effect.broken, first.effect.cases) == (0, 2)
  assert "dimensions 3, after" in first.ours
  assert broken.verdict == Verdict.INCONCLUSIVE and "2 texts" in broken.why
  rates = found.arrays["sink_rate_by_text"]
  assert rates.mean(axis=1) == pytest.approx(
    [one["sink_rate"]["value"] for one in edits.values()], rel=1e-6
  )
  (control,) = sinks.provided
  assert control.mean.value == pytest.approx((rates[1] - rates[3]).mean())
  drawn = EXPERIMENT.draw(found)
  assert set(drawn) == {"layers.png", "sinks.png"}
  assert "2 texts of 14" in EXPERIMENT.sections(found, drawn)[0].body
  # the loss of the edited model, for itself
  made = found.numbers["made"]
  monkeypatch.undo()
  edit = SetFirst(
    jnp.arange(subject.cfg.d_model) == 3,
    jnp.zeros(subject.cfg.d_model),
    jnp.asarray(made),
  )
  ids = module.texts_of(subject, text, 14)
  g = sinkjax.intervene(forward(subject.cfg), {"resid_post": edit})
  logits = np.asarray(g(subject.params, ids).logits, np.float64)[:, :-1]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -np.take_along_axis(logs, ids[:, 1:, None], -1).mean()
  assert edits["set to zero"]["loss"]["value"] == pytest.approx(nll, rel=1e-4)


@pytest.mark.thorough
def test_a_model_without_them_says_so(subject, text):
  config = Config(texts=text, tokens=14)
  found = measure(subject, config).as_stored(config, "tiny")
  assert found.numbers["made"] is None
  first, *others = judge(EXPERIMENT.claims(found))
  assert first.verdict == Verdict.CONTRADICTED
  assert first.effect.broken == first.effect.cases == 2
  assert {claim.verdict for claim in others} == {Verdict.NOT_TESTABLE}
  assert EXPERIMENT.draw(found)
  for one in found.numbers["conditions"].values():
    assert one["loss_change"]["value"] == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def measured(subject, text):
  return measure(subject, Config(texts=text, tokens=14))


@pytest.mark.parametrize(
  ("zero", "fixed", "other", "verdicts"),
  [
    (3.0, 0.0, 0.1, (Verdict.SUPPORTED, Verdict.SUPPORTED)),
    # Other dimensions that break the model as well are no control.
    (3.0, 0.1, 3.0, (Verdict.INCONCLUSIVE, Verdict.CONTRADICTED)),
    (0.2, -0.1, 0.1, (Verdict.NO_EFFECT, Verdict.CONTRADICTED)),
  ],
)
def test_verdicts_on_the_loss(measured, text, zero, fixed, other, verdicts):
  config, found = Config(texts=text, tokens=14), copy.deepcopy(measured)
  noise = 0.01 * np.random.default_rng(0).normal(size=(3, 10))
  names = ("set to zero", "set to their mean", "next largest set to zero")
  for name, value, spread in zip(
    names, (zero, fixed, other), noise, strict=True
  ):
    one = found.numbers["conditions"][name]
    one["loss_change"] = mean_of(value + spread - spread.mean())
  numbers = found.numbers | {"made": 1, "gone": 3, "dimensions": [3]}
  planted = dataclasses.replace(found, numbers=numbers).as_stored(config)
  _, broken, kept, _ = judge(EXPERIMENT.claims(planted))
  assert (broken.verdict, kept.verdict) == verdicts


@pytest.mark.parametrize(
  ("zero", "other", "verdict"),
  [
    (0.1, 0.7, Verdict.SUPPORTED),
    (0.1, 0.1, Verdict.INCONCLUSIVE),
    (0.6, 0.7, Verdict.CONTRADICTED),
  ],
)
def test_verdicts_on_the_sink(measured, text, zero, other, verdict):
  config, found = Config(texts=text, tokens=14), copy.deepcopy(measured)
  noise = 0.01 * np.random.default_rng(0).normal(size=(4, 10))
  rates = np.array([0.8, zero, 0.8, other])[:, None] + noise
  one = found.numbers["conditions"]["set to zero"]
  one["sink_rate_over_half"] = mean_of(rates[1] - rates[0] / 2)
  planted = dataclasses.replace(
    found,
    numbers=found.numbers | {"made": 1, "gone": 3, "dimensions": [3]},
    arrays=found.arrays | {"sink_rate_by_text": rates},
  ).as_stored(config)
  assert judge(EXPERIMENT.claims(planted))[-1].verdict == verdict
