"""Tests of the experiment `trigger_mean`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.data.synthetic import sample_trigger_mean
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.training.trigger_mean import EXPERIMENT
from sinkjax.experiments.training.trigger_mean.claims import loss_of_nothing
from sinkjax.experiments.training.trigger_mean.experiment import (
  Config,
  answer,
  model_of,
  quantities,
  uniform_first,
)
from sinkjax.models.transformer import init_params
from sinkjax.report import html

SMALL = Config(
  models=("softmax", "relu"),
  seeds=(0, 1),
  length=8,
  width=16,
  batch=64,
  steps=60,
  warmup=5,
  every=20,
  held_out=64,
  peak=1e-2,
)


def by_hand(model: str):
  """Parameters that solve the task: a bias asks for the first token, the
  trigger's mark for all but it and the trigger itself."""
  cfg = model_of(SMALL, model)
  params = jax.tree.map(jnp.zeros_like, init_params(cfg, jax.random.key(0)))
  width, strong = SMALL.width, 40.0
  block = params["block_0"] if "block_0" in params else params["blocks"]
  block["attn_norm"]["scale"] = jnp.ones_like(block["attn_norm"]["scale"])
  attn = block["attn"]
  shape = attn["q"]["kernel"].shape

  def kernel(entries):
    found = np.zeros((width, width), np.float32)
    for (row, column), value in entries.items():
      found[row, column] = value
    return jnp.asarray(found.reshape(shape))

  root = np.sqrt(width)
  if model == "softmax":  # channel 0 asks for first, 1 against it and itself
    attn["q"]["bias"] = attn["q"]["bias"].at[..., 0].set(strong * root)
    attn["q"]["kernel"] = kernel({(1, 0): -2 * strong * root, (1, 1): strong})
    attn["k"]["kernel"] = kernel({(0, 0): 1 / root, (1, 1): -root})
  else:  # 1 / count at the trigger, on keys of bias 1
    attn["q"]["kernel"] = kernel({(2, 0): root})
    attn["k"]["kernel"] = kernel({(0, 0): -2 / root, (1, 0): -2})
    attn["k"]["bias"] = attn["k"]["bias"].at[..., 0].set(1.0)
  content = {(i, i): 1.0 for i in range(3, width)}
  attn["v"]["kernel"] = kernel(content)
  flat = np.diag([0.0] * 3 + [1.0] * (width - 3)).astype(np.float32)
  attn["o"]["kernel"] = jnp.asarray(flat.reshape(attn["o"]["kernel"].shape))
  return cfg, params


@pytest.mark.slow
@pytest.mark.parametrize("model", ["softmax", "relu"])
def test_what_solves_the_task_has_no_loss(model):
  """A softmax with all on the first token, ReLU with nothing anywhere."""
  cfg, params = by_hand(model)
  held = sample_trigger_mean(jax.random.key(1), 50, SMALL.length, SMALL.width)
  found = jax.device_get(quantities(cfg, held)(params))
  assert found["loss"] < 1e-6
  sink = 1.0 if model == "softmax" else 0.0
  assert abs(found["rest_first"] - sink) < 1e-6
  assert abs(found["rest_sum"] - sink) < 1e-6
  assert found["trigger_first"] < 1e-6 and found["value_ratio"] == 0


@pytest.mark.thorough
def test_losses_are_of_trigger_and_rest():
  """An answer of nothing loses the target at the trigger, and no more."""
  cfg = model_of(SMALL, "softmax")
  params = jax.tree.map(jnp.zeros_like, init_params(cfg, jax.random.key(0)))
  held = sample_trigger_mean(jax.random.key(1), 50, SMALL.length, SMALL.width)
  found = jax.device_get(quantities(cfg, held)(params))
  square = np.sum(np.asarray(held.targets) ** 2) / 50
  np.testing.assert_allclose(found["loss_trigger"], square, rtol=1e-5)
  assert found["loss_rest"] == 0 and found["loss"] == found["loss_trigger"]
  assert not np.asarray(answer(cfg)(params, held.inputs)["answer"]).any()
  even = [1 / (1 + t) for t in range(SMALL.length)]
  rows = ~np.asarray(held.trigger)
  rows[:, 0] = False
  wanted = np.broadcast_to(even, rows.shape)[rows].mean()
  np.testing.assert_allclose(found["rest_first"], wanted, rtol=1e-5)


def test_even_attention_by_the_triggers_places():
  places = np.arange(2, SMALL.length)
  rows = np.ones((len(places), SMALL.length), bool)
  rows[:, 0] = False
  rows[np.arange(len(places)), places] = False
  even = np.broadcast_to(1 / (1 + np.arange(SMALL.length)), rows.shape)
  np.testing.assert_allclose(uniform_first(SMALL), even[rows].mean(), rtol=1e-9)


@pytest.mark.slow
def test_a_sweep_by_one_call(tmp_path):
  result = EXPERIMENT.measure(SMALL, folder=tmp_path)
  assert result.arrays["loss"].shape == (2, 2, 4)
  assert (result.arrays["loss"][..., -1] < result.arrays["loss"][..., 0]).all()
  stored = result.as_stored(SMALL)
  assert len(EXPERIMENT.claims(stored)) == 3
  drawn = EXPERIMENT.draw(stored)
  sections = EXPERIMENT.sections(stored, drawn)
  assert {section.figure for section in sections} == set(drawn.values())
  assert all(png.startswith(html.PNG_SIGNATURE) for png in drawn.values())
  header, rows = result.tables["history.csv"]
  assert len(rows) == 16 and {len(row) for row in rows} == {len(header)}


@pytest.mark.thorough
def test_the_loss_of_no_answer():
  held = sample_trigger_mean(
    jax.random.key(1), 20_000, SMALL.length, SMALL.width
  )
  squares = np.sum(np.asarray(held.targets) ** 2, axis=(1, 2))
  error = squares.std() / np.sqrt(len(squares))
  # Four standard errors are passed by chance once in 16,000 keys.
  assert abs(loss_of_nothing(SMALL) - squares.mean()) < 4 * error


@pytest.mark.parametrize(
  ("lift", "more", "wanted"),
  [
    (0.2, 0.0, ["supported"] * 3),
    (-0.2, 0.0, ["contradicted"] * 3),
    # ReLU that leaves 5 % of what there is to learn needs no sink.
    (0.2, 0.05, ["supported"] * 2 + ["inconclusive"]),
    (-0.2, 0.05, ["contradicted"] * 3),
  ],
)
def test_verdicts_follow_the_numbers(lift, more, wanted):
  models = ("softmax", "relu")
  config = dataclasses.replace(SMALL, models=models, seeds=tuple(range(8)))
  noise = 0.001 * np.array([1, -2, 1, 3, -1, -3, 2, -1])[:, None]
  sink = {"softmax": 0.9 + lift, "relu": 0.5 - lift}
  arrays = {
    name: np.stack([0.1 + noise, 0.1 - noise])
    for name in ("loss", "loss_rest", "rest_sum")
  }
  arrays["loss"][1] += more * loss_of_nothing(config)
  arrays["rest_first"] = np.stack([sink[m] + noise for m in models])
  arrays["value_ratio"] = np.stack([1 - lift + noise] * 2)
  numbers = {
    "models": list(models),
    "seeds": list(config.seeds),
    "uniform_first": 0.1,
  }
  stored = Result(numbers, {}, arrays).as_stored(config)
  claims = judge(EXPERIMENT.claims(stored))
  assert len({claim.id for claim in claims}) == len(claims)
  assert [claim.verdict for claim in claims] == list(map(Verdict, wanted))


def test_a_model_that_there_is_not():
  with pytest.raises(ValueError, match="no model 'hardmax'; it has softmax"):
    Config(models=("hardmax",))
