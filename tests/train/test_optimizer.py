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
    ({"name": "sgd"}, "optimizer.name must be one of"),
    ({"peak": 0.0}, "must be positive"),
    ({"warmup": -1}, "must not be negative"),
  ],
)
def test_what_is_wrong_is_said(changes, words):
  with pytest.raises(ValueError, match=words):
    OptimizerConfig(**changes)
  with pytest.raises(ValueError, match="no room for a warm-up of 100"):
    learning_rate(OptimizerConfig(), 100)


def by_muon(gradient, rows):
  """The first update of a matrix of `rows` rows, over the rate.

  Five steps of Newton and Schulz take singular values near 1.
  """
  g = np.asarray(gradient, np.float64).reshape(rows, -1)
  tall = g.shape[0] > g.shape[1]
  x = (g.T if tall else g) / np.linalg.norm(g)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
  x = 0.2 * np.sqrt(max(g.shape)) * (x.T if tall else x)
  return x.reshape(gradient.shape)


@pytest.mark.thorough
def test_muon_by_hand():
  """Matrices of each layer and expert; AdamW's first step for the rest."""
  cfg = sinkjax.TINY.replace(
    n_layers=2, n_experts=2, experts_per_token=1, mixing="gate"
  )
  rng = np.random.default_rng(0)
  params, grads = (
    jax.tree.map(
      lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
      param_shapes(cfg),
    )
    for _ in range(2)
  )
  config = OptimizerConfig(
    name="muon", peak=0.5, schedule="constant", warmup=0, clip=None
  )
  optimizer = make_optimizer(config, 10)

  @jax.jit
  def first(grads, params):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  updates = first(grads, params)
  rows = {"q": 32, "k": 32, "v": 32, "o": 32, "mix_rate": 32, "router": 32}
  rows |= {"expert_gate": 32, "expert_up": 32, "expert_down": 48}
  seen = set()
  for path, update in jax.tree_util.tree_flatten_with_path(updates)[0]:
    names = [key.key for key in path]
    g, p = (np.asarray(_at(x, names), np.float64) for x in (grads, params))
    decay = 0.1 * p if names[-1] == "kernel" or names[0] == "embed" else 0.0
    decay = 0.1 * p if names[0] == "unembed" else decay
    if names[-1] == "kernel":
      seen.add(names[-2])
      split = 2 if names[-2].startswith("expert_") else 1
      flat = g.reshape(-1, *g.shape[split:])
      want = np.stack([by_muon(one, rows[names[-2]]) for one in flat])
      want = want.reshape(g.shape)
    else:
      want = np.sign(g)
    np.testing.assert_allclose(
      update, -0.5 * (want + decay), rtol=2e-3, atol=2e-3, err_msg=str(names)
    )
  assert seen == set(rows)


def _at(tree, names):
  for name in names:
    tree = tree[name]
  return tree
