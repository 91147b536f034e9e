"""Caches: which tokens stay, in how much memory, and mistakes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kv_walk import LENGTH, feed, plain

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.models.cache import advance, init_cache, split_layers


@pytest.mark.thorough
def test_order_of_eviction(tiny, text):
  """What the ring holds after n tokens is the first and the last ones."""
  params, cfg = tiny
  policy = kv_policy.sinks(2, 3, chunk=2)
  for n in range(1, 12):
    held = np.asarray(policy._held(jnp.array([n])))[0]
    want = set(range(min(n, 2))) | set(range(max(n - 4, 0), n))
    assert set(held[held >= 0]) == want
    slots = policy.prepare(cfg, jnp.array([n - 1]), jnp.ones((1, 1), bool))
    assert held[int(slots.write[0, 0])] == n - 1
    seen = held[np.asarray(slots.mask[0, 0, 0])]
    last = range(max(n - 3, 0), n)
    assert sorted(seen) == sorted(set(range(min(n, 2))) | set(last))


@pytest.mark.thorough
def test_heavy_hitters_by_hand():
  """Queries and keys that make every token look at token 1 alone."""
  cfg = sinkjax.TINY.replace(n_layers=1, positions="none")
  params = sinkjax.init_params(cfg, jax.random.key(0))
  attn, norm = params["blocks"]["attn"], params["blocks"]["attn_norm"]
  norm["scale"] = jnp.ones_like(norm["scale"])
  table = np.zeros((cfg.vocab_size, cfg.d_model), np.float32)
  table[:, 0], table[7, 1] = 1.0, 1.0  # 7 is the token that is looked at
  kernel = np.zeros(attn["q"]["kernel"].shape, np.float32)
  kernel[0, 0, :, 0] = 100.0
  looked = np.zeros(attn["k"]["kernel"].shape, np.float32)
  looked[0, 1, :, 0] = 100.0
  params["embed"] = jnp.asarray(table)
  attn["q"]["kernel"], attn["k"]["kernel"] = map(jnp.asarray, (kernel, looked))
  policy = kv_policy.heavy_hitters(4, 2, chunk=3)
  tokens = np.array([[3, 7, 4, 5, 6, 8, 9, 10, 11]])
  _, cache = feed(cfg, policy, split_layers(params), tokens, [3, 3, 3])
  kept = cache.layers[0]
  score = np.take_along_axis(kept.score, np.argsort(kept.rank), axis=-1)
  # Token 0 got the first query's weight, of two heads; token 1 that of all
  # eight since; what came later got none, and the first of it goes.
  want = [[2.0, 16.0, 0.0, 0.0]] * cfg.n_kv_heads
  np.testing.assert_allclose(score[0], want, atol=1e-5)


@pytest.mark.thorough
def test_random_eviction_is_a_uniform_sample(tiny):
  """Of 30 tokens 4 and the last 2 stay: each of the 28 with 4 / 28."""
  params, cfg = tiny
  cfg = cfg.replace(n_layers=1, d_model=8, d_ff=8)
  params = split_layers(sinkjax.init_params(cfg, jax.random.key(0)))
  rows = 600
  tokens = np.tile(np.arange(30), (rows, 1))
  policy = kv_policy.random_eviction(6, 2, seed=3, chunk=30)
  _, cache = feed(cfg, policy, params, tokens, [30], logits="none")
  # A key's own draw tells which token it is.
  drawn = np.stack(
    [policy._first_score(0, jnp.full(rows, t), (rows, 2, 1)) for t in range(30)]
  )[..., 0]
  kept = np.asarray(cache.layers[0].score)
  stays = (kept[None] == drawn[..., None]).any(axis=-1)
  assert (stays.sum(axis=0) == 6).all() and stays[28:].all()
  share, sd = 4 / 28, np.sqrt(4 / 28 * 24 / 28 / (2 * rows))
  assert np.abs(stays[:28].mean(axis=(1, 2)) - share).max() < 4 * sd
  again = kv_policy.random_eviction(6, 2, seed=4, chunk=30)
  other = again._first_score(0, jnp.zeros(rows, int), (rows, 2, 1))[..., 0]
  assert (np.asarray(other) != drawn[0]).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", kv_policy.POLICIES)
def test_one_trace_while_streaming_and_constant_memory(name, tiny):
  params, cfg = tiny
  size = 128 if name == "full" else 5
  policy = kv_policy.make(name, sink_count=2, size=size)
  chex.clear_trace_counter()
  step = advance(cfg, policy, logits="last")
  step = jax.jit(chex.assert_max_traces(step, n=1), donate_argnums=2)
  cache = init_cache(cfg, policy)
  size = sum(x.nbytes for x in jax.tree.leaves(cache))
  for t in range(100):  # TINY knows 64 positions
    logits, cache = step(params, jnp.array([[t % 64]]), cache)
  assert np.isfinite(logits).all()
  assert sum(x.nbytes for x in jax.tree.leaves(cache)) == size


@pytest.mark.slow
@pytest.mark.thorough
def test_bfloat16(tiny, text):
  params, cfg = tiny
  cfg = cfg.replace(dtype="bfloat16")
  for policy in (kv_policy.sinks(2, 12), kv_policy.heavy_hitters(14)):
    found, cache = feed(cfg, policy, params, text, [LENGTH])
    assert cache.layers[0][0].dtype == jnp.bfloat16
    want = plain(cfg, split_layers(params), text).astype(np.float32)
    assert np.abs(found - want).max() < 0.1 * want.std()


def test_mistakes(tiny):
  params, cfg = tiny
  learned = cfg.replace(positions="learned")
  for make in (kv_policy.window, kv_policy.heavy_hitters):
    with pytest.raises(ValueError, match="use the full cache"):
      init_cache(learned, make(4))
  with pytest.raises(ValueError, match="for 64 tokens, the cache has 65"):
    init_cache(learned, kv_policy.full(65))
  with pytest.raises(ValueError, match="window must be an integer from 1 on"):
    kv_policy.sinks(4, 0)
  with pytest.raises(ValueError, match="sinks must be .* got -1"):
    kv_policy.sinks(-1, 4)
  with pytest.raises(ValueError, match="recent must be at most"):
    kv_policy.heavy_hitters(4, 5)
  with pytest.raises(ValueError, match=r"one of \['full'"):
    kv_policy.make("streaming", sink_count=4, size=8)
  with pytest.raises(ValueError, match="one of .*'all'"):
    advance(cfg, kv_policy.window(4), logits="some")
  policy = kv_policy.window(4, chunk=2)
  with pytest.raises(ValueError, match="takes 2 tokens at a time, got 3"):
    advance(cfg, policy)(
      params, jnp.zeros((1, 3), int), init_cache(cfg, policy)
    )
