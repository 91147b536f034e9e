"""Caches: against the plain forward pass, and a slow walk token by token."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.models.attention import make_context
from sinkjax.models.blocks import Block
from sinkjax.models.cache import advance, init_cache, split_layers
from sinkjax.models.layerwise import (
  apply_block,
  apply_final_norm,
  embed,
  final_norm_of,
)
from sinkjax.models.layerwise import as_layers as layers_of
from sinkjax.models.transformer import logits_of
from sinkjax.taps import NO_TAPS, Tapper, Taps
from sinkjax.weights import huggingface

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
NAMES = sorted(path.name for path in FAMILIES.iterdir())
TURNING = [
  name
  for name in NAMES
  if huggingface.load_config(FAMILIES / name).positions != "learned"
]
LENGTH = 14


@functools.cache
def family(name):
  params, cfg = huggingface.load(FAMILIES / name)
  return split_layers(params), cfg


@pytest.fixture(scope="module")
def text():
  return np.random.default_rng(0).integers(3, 64, (2, LENGTH))


def feed(cfg, policy, params, tokens, pieces, **kwargs):
  """Logits of all tokens, fed in pieces of these lengths, and the cache."""
  step = jax.jit(advance(cfg, policy, **kwargs), donate_argnums=2)
  cache, found, at = init_cache(cfg, policy, len(tokens)), [], 0
  for size in pieces:
    part = jnp.asarray(tokens[:, at : at + size])
    logits, cache = step(params, part, cache)
    found.append(logits)
    at += size
  assert at == tokens.shape[1]
  return np.concatenate(found, axis=1), cache


def stacked(params):
  blocks = jax.tree.map(lambda *x: jnp.stack(x), *params["blocks"])
  return {**params, "blocks": blocks}


def plain(cfg, params, tokens):
  f = jax.jit(sinkjax.forward(cfg))
  return np.asarray(f(stacked(params), jnp.asarray(tokens)).logits)


def close(a, b, atol=1e-5):
  np.testing.assert_allclose(a, b, atol=atol * max(1.0, np.abs(b).max()))


def slow(cfg, params, tokens, limit, goes):
  """The policy token by token: logits [T, V] and what each head keeps.

  At every step and for every head the whole block runs densely over the
  residuals of the tokens that are kept, at positions 0, 1, 2, ..., and the
  last row is taken. `goes(kept, got)` says which entry of `kept` leaves.
  """
  dense = jax.jit(functools.partial(apply_block, cfg))
  rest = jax.jit(functools.partial(_rest_of, cfg))
  ctx = make_context(cfg, jnp.arange(limit)[None], None)
  taps = Taps(observers={"z": ("z", _id), "pattern": ("pattern", _id)})
  layers, heads, group = cfg.n_layers, cfg.n_kv_heads, cfg.group_size
  pres = [np.zeros((0, cfg.d_model), np.float32) for _ in range(layers)]
  kept = [[[] for _ in range(heads)] for _ in range(layers)]
  got = np.zeros((layers, heads, len(tokens)))
  rows = []
  for t, token in enumerate(tokens):
    at = jnp.array([[t]])
    x = embed(layers_of(cfg, params), jnp.array([[token]]), at)
    for i, block in enumerate(params["blocks"]):
      pres[i] = np.concatenate([pres[i], x[0]])
      z = []
      for n in range(heads):
        mine = kept[i][n]
        mine.append(t)
        if len(mine) > limit:
          mine.pop(goes(mine, got[i, n]))
        seen = np.zeros((1, limit, cfg.d_model), np.float32)
        seen[0, : len(mine)] = pres[i][mine]
        _, trace = dense(block, seen, i, ctx, taps)
        own, last = slice(n * group, (n + 1) * group), len(mine) - 1
        z.append(np.asarray(trace["z"])[0, last, own])
        pattern = np.asarray(trace["pattern"])[0, own, last, : len(mine)]
        got[i, n, mine] += pattern.sum(axis=0)
      x = rest(block, x, np.concatenate(z)[None, None])
    rows.append(x[0, 0])
  norm = final_norm_of(params)  # OLMo 1 has no parameters in it
  x = apply_final_norm(cfg, norm, jnp.stack(rows)[None])
  return np.asarray(logits_of(cfg, x, params)[0]), kept


def _id(x):
  return x


def _rest_of(cfg, block, pre, z):
  def apply(method, *args):
    return Block(cfg).apply({"params": block}, *args, method=method)

  tap = Tapper(NO_TAPS, 0)
  return apply(
    Block.transform, pre, apply(Block.add_attention, pre, z, tap), tap
  )


@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(NAMES, "gpt2", "gemma3"))
def test_full_is_the_plain_forward(name, text):
  params, cfg = family(name)
  want = plain(cfg, params, text)
  policy = kv_policy.full(LENGTH, chunk=5)
  found, cache = feed(cfg, policy, params, text, [5, 5, 1, 1, 1, 1])
  close(found, want)
  assert cache.length.tolist() == [LENGTH, LENGTH]


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
  "bases": {"rope_bases": (50.0, 1e4, 9.0), "rope_layers": (True, True, False)},
}


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
def test_recent_as_long_as_the_cache_is_a_window(tiny, text):
  params, cfg = tiny
  want, _ = feed(cfg, kv_policy.window(5, chunk=7), params, text, [7, 7])
  for policy in (
    kv_policy.heavy_hitters(5, 5, chunk=7),
    kv_policy.random_eviction(5, 5, chunk=7),
  ):
    close(feed(cfg, policy, params, text, [7, 7])[0], want)


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


@pytest.mark.thorough
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
