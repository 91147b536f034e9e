"""Tests of the Bigram-Backcopy experiments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.data.synthetic import (
  backcopy_optimum,
  backcopy_task,
  sample_backcopy,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.protocol import Verdict, judge
from sinkjax.experiments.shared import backcopy
from sinkjax.experiments.shared.backcopy_training import (
  model_of,
  quantities,
  train,
)
from sinkjax.experiments.training import residual_peak
from sinkjax.experiments.training.bigram_backcopy import EXPERIMENT, Config
from sinkjax.models.transformer import forward, init_params

TEXT = "the cat sat on the mat; a dog ate the last of the oats. " * 4
SMALL = Config(
  normalizers=("softmax", "relu"),
  seeds=(0, 1),
  length=24,
  batch=16,
  steps=60,
  d_model=32,
  peak=5e-3,
  warmup=10,
  every=20,
  held_out=32,
)


@pytest.fixture(scope="module")
def task():
  return backcopy_task(TEXT, triggers=2)


@pytest.mark.slow
def test_excess_is_the_loss_above_the_entropy(task):
  """KL by position against cross-entropy minus entropy, by sampling."""
  cfg = model_of(SMALL, task, "softmax")
  params = init_params(cfg, jax.random.key(0))
  tokens = sample_backcopy(task, jax.random.key(1), 4096, SMALL.length)
  found = jax.jit(quantities(cfg, task, tokens))(params)
  logits = forward(cfg)(params, tokens).logits
  logp = jax.nn.log_softmax(logits[:, :-1])
  nats = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
  optimum = backcopy_optimum(task, SMALL.length)
  gap = np.asarray(nats.mean(axis=1)) - optimum.mean()
  error = gap.std() / np.sqrt(len(gap))
  assert abs(float(found["excess"]) - gap.mean()) < 4 * error
  assert error < 0.05 * float(found["excess"])


@pytest.mark.slow
def test_attention_is_counted_at_the_right_queries(task):
  """Without keys attention is even: 1 / (t + 1) at every query."""
  two = dataclasses.replace(SMALL, layers=2)
  cfg = model_of(two, task, "softmax")
  params = init_params(cfg, jax.random.key(0))
  k = params["blocks"]["attn"]["k"]
  params["blocks"]["attn"]["k"] = jax.tree.map(jnp.zeros_like, k)
  tokens = np.asarray(sample_backcopy(task, jax.random.key(1), 8, 24))
  found = quantities(cfg, task, tokens)(params)
  active = task.triggers[tokens]
  active[:, 0] = False
  dormant = ~active
  dormant[:, 0] = False
  even = np.broadcast_to(1 / (1 + np.arange(24)), tokens.shape)
  assert active.any() and dormant.any()
  for name, where in (
    ("dormant_first", dormant),
    ("active_first", active),
    ("active_previous", active),
  ):
    np.testing.assert_allclose(found[name], even[where].mean(), rtol=1e-5)
  np.testing.assert_allclose(found["sink_logit"], 0, atol=1e-6)


@pytest.mark.slow
def test_a_task_that_is_learned_and_kept(task, tmp_path, monkeypatch):
  """Runs are kept one by one; the claims follow from them."""
  monkeypatch.setattr(
    backcopy, "gather", lambda names: type("D", (), {"texts": [TEXT]})
  )
  seen = []
  config = SMALL.__class__(**{**SMALL.__dict__, "triggers": 2})
  result = EXPERIMENT.measure(
    config, folder=tmp_path, progress=lambda done, total: seen.append(done)
  )
  assert seen == sorted(seen) and seen[-1] == 4 * config.steps
  excess = result.arrays["excess"]  # [models, seeds, times]
  assert excess.shape == (2, 2, 4)
  assert (excess[..., -1] < 0.5 * excess[..., 0]).all()
  assert len(EXPERIMENT.claims(result.as_stored(config))) == 4
  before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*.json")}
  again = EXPERIMENT.measure(config, folder=tmp_path)
  assert before == {
    p.name: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*.json")
  }
  np.testing.assert_array_equal(again.arrays["excess"], excess)
  other = SMALL.__class__(**{**config.__dict__, "steps": 61})
  with pytest.raises(ValueError, match="another config"):
    EXPERIMENT.measure(other, folder=tmp_path)


def test_the_claims_of_a_peak():
  """It grows from 1.5 to 2.5 with softmax, not with ReLU; or shrinks."""
  config = residual_peak.Config(seeds=tuple(range(6)))
  jitter = 0.1 * np.array([0.0, 1.0, -1.0, 0.5, -0.4, -0.1])

  def verdicts(softmax, relu, worse=0.0):
    ends = np.array([softmax, relu])[:, None] + jitter
    start = np.full_like(ends, 1.5)
    arrays = {
      "residual_peak": np.stack([start, ends], axis=-1),
      "dormant_first": np.stack([0 * ends, 0.2 * ends], axis=-1),
      "value_ratio": np.stack([1 + 0 * ends, 0.1 * ends], axis=-1),
      "excess": np.stack(
        [3.0 + 0 * ends, [0.001 * jitter, worse + 0 * jitter]], axis=-1
      ),
    }
    numbers = {
      "models": list(config.normalizers),
      "layers": config.layers,
      "seeds": list(config.seeds),
      "uniform_first": 0.06,
    }
    stored = Result(numbers, {}, arrays).as_stored(config)
    found = residual_peak.EXPERIMENT.claims(stored)
    assert len({claim.id for claim in found}) == len(found)
    return [claim.verdict for claim in judge(found)]

  yes, no = Verdict.SUPPORTED, Verdict.CONTRADICTED
  assert verdicts(2.5, 1.0) == [yes] * 4
  assert verdicts(1.0, 2.5) == [no, yes, yes, no]
  assert verdicts(1.5, 1.5)[0] == Verdict.NO_EFFECT
  # A worse model may have a smaller residual for that reason alone.
  assert verdicts(2.5, 1.0, worse=0.1) == [yes] * 3 + [Verdict.INCONCLUSIVE]
  assert verdicts(1.0, 2.5, worse=0.1) == [no, yes, yes, no]


@pytest.mark.parametrize("lift", [0.1, -0.1])
def test_the_claims_of_one_layer(lift):
  """Each is decided by its own quantities, and by the right side of them."""
  config = Config(normalizers=("softmax", "relu"), seeds=tuple(range(6)))
  jitter = 0.005 * np.array([0.0, 1.0, -1.0, 0.5, -0.4, -0.1])
  last = {
    "dormant_first": (0.3 + lift, 0.3),
    "active_previous": (0.4 + lift, 0.0),
    "active_first": (0.4, 0.9),
    "value_ratio": (1 - 2 * lift, 1.0),
    "excess": (0.2, 0.1),
  }
  arrays = {
    name: np.stack([x + (i + 1) * jitter for i, x in enumerate(ends)])[
      ..., None
    ]
    for name, ends in last.items()
  }
  numbers = {
    "models": ["softmax", "relu"],
    "layers": 1,
    "seeds": list(config.seeds),
    "uniform_first": 0.3,
  }
  stored = Result(numbers, {}, arrays).as_stored(config)
  wanted = Verdict.SUPPORTED if lift > 0 else Verdict.CONTRADICTED
  found = judge(EXPERIMENT.claims(stored))
  assert [claim.verdict for claim in found] == [wanted] * 4


@pytest.mark.slow
def test_one_seed_one_history(task):
  short = SMALL.__class__(**{**SMALL.__dict__, "steps": 20})

  def last(seed):
    found = train(short, task, normalizer="softmax", seed=seed)
    return found["history"][-1]["excess"]

  assert last(0) == last(0) != last(1)
