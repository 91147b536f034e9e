"""Caches: against the plain forward pass, and a slow walk token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kv_walk import FAMILIES, LENGTH, NAMES, close, family, feed, plain, slow
from quick import quick

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.models.cache import advance, init_cache, split_layers
from sinkjax.weights import huggingface

TURNING = [
  name
  for name in NAMES
  if huggingface.load_config(FAMILIES / name).positions != "learned"
]


@pytest.mark.slow
@pytest.mark.parametrize("name", quick(NAMES, "gpt2", "gemma3"))
def test_full_is_the_plain_forward(name, text):
  params, cfg = family(name)
  want = plain(cfg, params, text)
  policy = kv_policy.full(LENGTH, chunk=5)
  found, cache = feed(cfg, policy, params, text, [5, 5, 1, 1, 1, 1])
  close(found, want)
  assert cache.length.tolist() == [LENGTH, LENGTH]


@pytest.mark.slow
@pytest.mark.parametrize("name", quick(TURNING, "gemma3"))
def test_a_cache_as_long_as_the_text_is_full(name, text):
  params, cfg = family(name)
  want = plain(cfg, params, text)
  policies = [kv_policy.sinks(3, LENGTH, chunk=5)]
  if name in ("gemma3", "llama3"):
    policies += [
      kv_policy.sinks(3, LENGTH - 3, chunk=5),
      kv_policy.heavy_hitters(LENGTH, chunk=5),
    ]
  for policy in policies:
    found, _ = feed(cfg, policy, params, text, [5, 5, 1, 1, 1, 1])
    close(found, want)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("gemma3", 2),
    ("llama3", 2),
    ("gemma3", 0),
    ("smollm2", 0),
    *(
      pytest.param(name, 2, marks=pytest.mark.slow)
      for name in TURNING
      if name not in ("gemma3", "llama3")
    ),
  ],
)
def test_sinks_and_window_are_the_slow_walk(name, count, text):
  """Past the window, in every chunking; all scalings, local layers too."""
  params, cfg = family(name)
  policy = kv_policy.sinks(count, 6 - count, chunk=5)
  want, _ = slow(cfg, params, text[1], 6, lambda kept, got: count)
  for pieces in ([1] * LENGTH, [5, 4, 5]):
    close(feed(cfg, policy, params, text, pieces)[0][1], want)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  quick(
    ["llama3", "gemma3", "gpt_neox_sequential", "bloom"], "gpt_neox_sequential"
  ),
)
def test_heavy_hitters_are_the_slow_walk(name, text):
  params, cfg = family(name)

  def goes(kept, got):
    return int(np.argmin(got[kept[:-3]]))

  want, kept = slow(cfg, params, text[1], 6, goes)
  heads = {tuple(mine) for layer in kept for mine in layer}
  assert heads != {tuple(range(8, LENGTH))}, "a window: the test sees nothing"
  policy = kv_policy.heavy_hitters(6, 3, chunk=5)
  for pieces in ([1] * LENGTH, [5, 4, 5]):
    found, cache = feed(cfg, policy, params, text, pieces)
    close(found[1], want)
    for layer in cache.layers:
      ranks = np.sort(np.asarray(layer.rank), axis=-1)
      assert (ranks == np.arange(6)).all()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_no_cache_beyond_what_was_trained_on(kind):
  """Where longer texts turn all positions at other rates."""
  four = (1.0,) * 4
  more = {"factors": four, "short_factors": four} if kind == "longrope" else {}
  scaling = sinkjax.RopeScaling(kind, 2.0, original_max_len=9, **more)
  cfg = sinkjax.TINY.replace(rope_scaling=scaling)
  for policy in (kv_policy.full, kv_policy.window, kv_policy.heavy_hitters):
    policy(9).check(cfg)
    with pytest.raises(ValueError, match=f"'{kind}'.*more than 9 tokens"):
      policy(10).check(cfg)


OPTIONS = {
  "fused": {"attention": "fused"},
  "softmax1": {"normalizer": "softmax1"},
  "clipped": {"normalizer": "clipped_softmax"},
  "sigmoid": {"normalizer": "sigmoid"},
  "softpick": {"normalizer": "softpick"},
  "sink_logit": {"sink_logit": True},
  "k": {"attn_bias": "k"},
  "kv": {"attn_bias": "kv"},
  "v": {"attn_bias": "v", "gate": "head"},
  "element": {"gate": "element"},
  "value": {"gate": "value", "remat": "full", "scan_layers": False},
  "nope": {"positions": "none"},
  "alibi": {
    "positions": "alibi",
    "alibi_scale": 0.7,
    "window": 3,
    "local_layers": (True, False, True),
  },
  "experts": {"n_experts": 4, "experts_per_token": 2, "shared_d_ff": 12},
  "rate": {"mixing": "rate", "attn_bias": "k"},
  "mixing": {"mixing": "gate"},
  "halting": {"depth": "halting"},
  "roles": {"control_heads": 2, "normalizer": "softpick"},
  "roles alibi": {"control_heads": 2, "positions": "alibi"},
  "values": {"v_dim": 5, "attn_bias": "kv", "gate": "element"},
  "bases": {"rope_bases": (50.0, 1e4, 9.0), "rope_layers": (True, True, False)},
}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("option", quick(OPTIONS, "kv"))
def test_options(option, text):
  """Those that no family has: full is plain, the others the slow walk."""
  cfg = sinkjax.TINY.replace(**OPTIONS[option])
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = split_layers(jax.tree.map(lambda x: x * 1.5 + 0.1, params))
  full = kv_policy.full(LENGTH, chunk=5)
  pieces = [5, 4, 5]
  close(feed(cfg, full, params, text, pieces)[0], plain(cfg, params, text))
  want, _ = slow(cfg, params, text[0], 6, lambda kept, got: 2)
  sinks = kv_policy.sinks(2, 4, chunk=5)
  close(feed(cfg, sinks, params, text, pieces)[0][0], want)


@pytest.mark.thorough
def test_one_layer_is_dense_over_what_is_kept(text):
  """The forward pass over tokens 0, 1 and the last four, as if a text."""
  cfg = sinkjax.TINY.replace(n_layers=1)
  params = sinkjax.init_params(cfg, jax.random.key(0))
  policy = kv_policy.sinks(2, 4, chunk=3)
  pieces = [3, 3, 3, 3, 2]
  found, _ = feed(cfg, policy, split_layers(params), text, pieces)
  f = sinkjax.forward(cfg)
  for t in range(6, LENGTH):
    kept = np.concatenate([text[:, :2], text[:, t - 3 : t + 1]], axis=1)
    close(found[:, t], f(params, jnp.asarray(kept)).logits[:, -1])


@pytest.mark.slow
def test_recent_as_long_as_the_cache_is_a_window(tiny, text):
  params, cfg = tiny
  want, _ = feed(cfg, kv_policy.window(5, chunk=7), params, text, [7, 7])
  for policy in (
    kv_policy.heavy_hitters(5, 5, chunk=7),
    kv_policy.random_eviction(5, 5, chunk=7),
  ):
    close(feed(cfg, policy, params, text, [7, 7])[0], want)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "sinks", "heavy", "random"])
def test_rows_of_other_lengths_and_padding(name, tiny, text):
  """Each row is what it is by itself; padding leaves no trace."""
  params, cfg = tiny
  policy = kv_policy.make(
    name, sink_count=2, size=20 if name == "full" else 5, chunk=4
  )
  step = jax.jit(advance(cfg, policy))
  cache = init_cache(cfg, policy, 2)
  counts, at, found = [(4, 1), (0, 4), (2, 3), (4, 1)], [0, 0], [[], []]
  for count in counts:
    part = np.full((2, 4), 63)
    for row, n in enumerate(count):
      part[row, :n] = text[row, at[row] : at[row] + n]
      at[row] += n
    logits, cache = step(
      params, jnp.asarray(part), cache, count=jnp.array(count)
    )
    for row, n in enumerate(count):
      found[row].append(np.asarray(logits)[row, :n])
  assert cache.length.tolist() == at == [10, 9]
  for row in range(2):
    if name == "random" and row:  # another row draws other lots
      continue
    tokens = text[row : row + 1, : at[row]]
    alone, _ = feed(cfg, policy, params, tokens, [1] * at[row])
    close(np.concatenate(found[row]), alone[0])


@pytest.mark.slow
def test_last_and_no_logits(tiny, text):
  params, cfg = tiny
  policy = kv_policy.sinks(1, 4, chunk=4)
  count, part = jnp.array([2, 4]), jnp.asarray(text[:, :4])
  every, _ = advance(cfg, policy)(
    params, part, init_cache(cfg, policy, 2), count=count
  )
  last, _ = advance(cfg, policy, logits="last")(
    params, part, init_cache(cfg, policy, 2), count=count
  )
  close(last[:, 0], np.stack([every[0, 1], every[1, 3]]))
  none, _ = advance(cfg, policy, logits="none")(
    params, part, init_cache(cfg, policy, 2)
  )
  assert none.shape == (2, 0, 64)
