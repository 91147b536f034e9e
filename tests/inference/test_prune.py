"""Smaller models are the whole one with heads ablated; skipping by query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.inference import prune

TOKENS = jnp.asarray(np.random.default_rng(0).integers(64, size=(2, 17)))
PLAIN = {"n_layers": 3, "n_heads": 6, "n_kv_heads": 2}
VARIANTS = {
  "plain": {},
  "biases": {"qkv_bias": True, "out_bias": True, "qk_norm": True},
  "post norms": {"post_norms": True, "norm_offset": 1.0},
  "sink logit": {"sink_logit": True},
  "kv bias": {"attn_bias": "kv"},
  "v bias": {"attn_bias": "v"},
  "head gate": {"gate": "head"},
  "value gate": {"gate": "value"},
  "rate": {"mixing": "rate"},
  "mixing": {"mixing": "gate"},
  "local": {
    "window": 4,
    "local_layers": (True, False, True),
    "rope_local_base": 50.0,
  },
  "bases": {"rope_bases": (50.0, 1e4, 9.0)},
  "tied": {
    "tie_embeddings": True,
    "logit_softcap": 5.0,
    "parallel_residual": True,
  },
}


def model(seed=0, **changes):
  cfg = sinkjax.TINY.replace(**{**PLAIN, **changes})
  params = sinkjax.init_params(cfg, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  leaves = [
    2 * x + 0.3 * jax.random.normal(key, x.shape)
    for x, key in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, leaves), cfg


def ablated(params, cfg, removed, mean=None):
  edit = sinkjax.ablate_heads(removed, mean=mean)
  f = jax.jit(sinkjax.intervene(sinkjax.forward(cfg), {"z": edit}))
  return np.asarray(f(params, TOKENS).logits)


def close(got, want):
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", quick(VARIANTS, "post norms"))
def test_smaller_models_equal_the_whole_one_ablated(name):
  params, cfg = model(**VARIANTS[name])
  rng = np.random.default_rng(1)
  removed = rng.random((3, 6)) < 0.5
  removed[1] = True  # a layer without heads
  removed[0, :3] = True  # and one without a KV group
  want = ablated(params, cfg, removed)
  assert np.abs(want - ablated(params, cfg, removed & False)).max() > 0.1
  small, its = prune.remove_heads(params, cfg, removed)
  close(sinkjax.forward(its)(small, TOKENS).logits, want)
  parts, cfgs = prune.remove_by_layer(params, cfg, removed)
  close(prune.ragged_forward(cfg, cfgs)(parts, TOKENS), want)
  assert cfgs[1].n_heads == cfgs[0].n_kv_heads == 1


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
  "name", quick(["plain", "biases", "post norms"], "biases")
)
def test_the_mean_becomes_a_bias(name):
  params, cfg = model(**VARIANTS[name])
  removed = np.random.default_rng(2).random((3, 6)) < 0.5
  mean = jnp.asarray(np.random.default_rng(3).normal(size=(3, 6, 8)))
  want = ablated(params, cfg, removed, mean)
  assert np.abs(want - ablated(params, cfg, removed)).max() > 0.1
  small, its = prune.remove_heads(params, cfg, removed, mean=mean)
  close(sinkjax.forward(its)(small, TOKENS).logits, want)
  parts, cfgs = prune.remove_by_layer(params, cfg, removed, mean=mean)
  close(prune.ragged_forward(cfg, cfgs)(parts, TOKENS), want)


@pytest.mark.thorough
@pytest.mark.parametrize(("groups", "each"), [(1, 3), (2, 2), (2, 1), (1, 1)])
def test_structured_removal_is_a_smaller_model(groups, each):
  params, cfg = model()
  scores = np.random.default_rng(4).random((3, 6))
  removed = prune.structured(cfg, scores, groups, each)
  assert np.all((~removed).sum(axis=1) == groups * each)
  small, its = prune.remove_heads(params, cfg, removed)
  assert (its.n_kv_heads, its.n_heads) == (groups, groups * each)
  close(
    sinkjax.forward(its)(small, TOKENS).logits, ablated(params, cfg, removed)
  )
  assert jax.tree.leaves(small)[0].dtype == jnp.float32
  size = sum(x.size for x in jax.tree.leaves(small["blocks"]["attn"]))
  whole = sum(x.size for x in jax.tree.leaves(params["blocks"]["attn"]))
  assert size == whole * (groups + groups * each) / 8


def test_structured_keeps_the_best():
  cfg = sinkjax.TINY.replace(**{**PLAIN, "n_layers": 1})
  scores = np.array([[9.0, 1.0, 8.0, 5.0, 6.0, 7.0]])
  kept = ~prune.structured(cfg, scores, 1, 2)
  assert np.flatnonzero(kept).tolist() == [0, 2]
  kept = ~prune.structured(cfg, scores, 2, 1)
  assert np.flatnonzero(kept).tolist() == [0, 5]


@pytest.mark.thorough
def test_bad_masks_are_named():
  params, cfg = model()
  with pytest.raises(ValueError, match=r"\[L, H\] = \(3, 6\), got"):
    prune.remove_heads(params, cfg, np.zeros((3, 5), bool))
  with pytest.raises(ValueError, match="int64"):
    prune.remove_heads(params, cfg, np.zeros((3, 6), int))
  with pytest.raises(ValueError, match="1 to 2 and each 1 to 3, got 3 and 1"):
    prune.structured(cfg, np.zeros((3, 6)), 3, 1)
  with pytest.raises(ValueError, match="count must be in"):
    prune.lowest(np.zeros((3, 6)), 19)
  # Refused by the config: parameters are not looked at.
  cfg = cfg.replace(positions="alibi")
  with pytest.raises(ValueError, match="ALiBi's slopes"):
    prune.remove_heads(params, cfg, np.zeros((3, 6), bool))
  cfg = cfg.replace(positions="rope", gate="element")
  with pytest.raises(ValueError, match="no bias"):
    prune.remove_heads(
      params, cfg, np.zeros((3, 6), bool), mean=jnp.zeros((3, 6, 8))
    )
