"""Tests of sinkjax.train.optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.transformer import param_shapes
from sinkjax.train.optimizer import (
  OptimizerConfig,
  decayed,
  learning_rate,
  make_optimizer,
)


@pytest.mark.parametrize(
  ("schedule", "at", "share"),
  [
    ("constant", [0, 10, 20, 99, 100], [0, 0.5, 1, 1, 1]),
    ("cosine", [0, 20, 60, 100], [0, 1, 0.1 + 0.9 / 2, 0.1]),
    ("wsd", [10, 20, 70, 85, 100], [0.5, 1, 1, 0.55, 0.1]),
  ],
)
def test_schedules(schedule, at, share):
  config = OptimizerConfig(peak=2.0, schedule=schedule, warmup=20, decay=30)
  rate = learning_rate(config, 100)
  np.testing.assert_allclose(
    [float(rate(i)) for i in at], 2.0 * np.array(share), atol=1e-6
  )


@pytest.mark.thorough
def test_only_what_multiplies_decays():
  cfg = sinkjax.TINY.replace(
    norm="layer",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    qk_norm=True,
    positions="learned",
  )
  params = jax.tree.map(lambda x: jnp.ones(x.shape), param_shapes(cfg))
  config = OptimizerConfig(peak=0.5, schedule="constant", warmup=0)
  optimizer = make_optimizer(config, 10)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zero, optimizer.init(params), params)
  for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
    name = jax.tree_util.keystr(path)
    shrinks = "kernel" in name or "embed" in name
    np.testing.assert_allclose(update, -0.05 if shrinks else 0.0, atol=1e-7)
  assert not decayed(params, embeddings=False)["embed"]


def test_clipping():
  params = {"embed": jnp.ones((3,))}
  for clip, wanted in ((1.0, 1.0), (None, 30.0)):
    config = OptimizerConfig(
      peak=1.0,
      schedule="constant",
      warmup=0,
      clip=clip,
      weight_decay=0.0,
      b1=0.0,
      b2=0.0,
      eps=1e6,
    )
    optimizer = make_optimizer(config, 10)
    grads = {"embed": jnp.array([30.0, 0.0, 0.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # With a huge eps Adam's update is the gradient over eps.
    np.testing.assert_allclose(-1e6 * updates["embed"][0], wanted, rtol=1e-3)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"schedule": "linear"}, "must be one of"),
    ({"peak": 0.0}, "must be positive"),
    ({"warmup": -1}, "must not be negative"),
  ],
)
def test_what_is_wrong_is_said(changes, words):
  with pytest.raises(ValueError, match=words):
    OptimizerConfig(**changes)
  with pytest.raises(ValueError, match="no room for a warm-up of 100"):
    learning_rate(OptimizerConfig(), 100)
