"""Caches of two kinds of heads: against the forward pass with heads closed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kv_walk import LENGTH, close, family, feed, plain, stacked
from variants import scaled

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate
from sinkjax.models.cache import advance, init_cache, split_layers
from sinkjax.transforms.streaming_edits import MixStreaming

GATES = np.array([[1.0, 0.0], [0.2, 0.5], [0.9, 0.6]])
"""Of three layers: one head full, none and both."""

OPEN = (GATES > 0.5).astype(float)
ENDS = {"sinks": 2, "window": 4}


@pytest.fixture(scope="module")
def three():
  """(params, cfg) of three layers, two KV heads of two query heads each."""
  cfg = sinkjax.TINY.replace(n_layers=3)
  params = scaled(sinkjax.init_params(cfg, jax.random.key(0)), 1.5)
  return split_layers(params), cfg


def closed(cfg, params, text, gates=OPEN, sinks=2, window=4):
  """Logits of the forward pass with heads of gate 0 closed."""
  mix = MixStreaming(gates, sinks, window)
  f = sinkjax.intervene(sinkjax.forward(cfg), {"pattern": mix})
  return np.asarray(jax.jit(f)(stacked(params), jnp.asarray(text)).logits)


def drawn(cfg):
  """Gates of 0 and 1 for a model, some of each in most of its layers."""
  shape = cfg.n_layers, cfg.n_kv_heads
  return np.random.default_rng(3).integers(2, size=shape).astype(float)


def test_attention_by_hand():
  """The softmax over what each head keeps, in float64; the first head full."""
  cfg = sinkjax.TINY.replace(n_layers=1, positions="none")
  policy = kv_policy.by_head(GATES[:1], **ENDS, capacity=9, chunk=9)
  rng, (n, heads) = np.random.default_rng(0), (9, cfg.n_kv_heads)
  q = rng.normal(size=(1, n, cfg.n_heads, cfg.head_dim))
  k, v = rng.normal(size=(2, 1, n, heads, cfg.head_dim))

  def attend(*qkv):
    length, real = jnp.zeros(1, int), jnp.ones((1, n), bool)
    shared, kept = policy.prepare(cfg, length, real), policy.init(cfg, 1, 0)
    return policy.attend(None, cfg, qkv, 0, kept, shared)[0]

  z = jax.jit(attend)(*(np.asarray(x, np.float32) for x in (q, k, v)))
  t, s = np.indices((n, n))
  for head in range(cfg.n_heads):
    own = head // cfg.group_size
    seen = (s <= t) & ((own == 0) | (s < 2) | (t - s < 4))
    scores = q[0, :, head] @ k[0, :, own].T * cfg.head_dim**-0.5
    weights = np.where(seen, np.exp(scores), 0)
    want = weights / weights.sum(1, keepdims=True) @ v[0, :, own]
    np.testing.assert_allclose(z[0, :, head], want, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("pieces", [[5, 5, 1, 1, 1, 1], [1] * LENGTH, [3, 5]])
def test_it_is_the_forward_pass_with_heads_closed(pieces, three, text):
  params, cfg = three
  text = text[:, : sum(pieces)]
  want = closed(cfg, params, text)
  assert np.abs(want - plain(cfg, params, text)).max() > 0.1
  policy = kv_policy.by_head(GATES, **ENDS, capacity=LENGTH, chunk=5)
  found, cache = feed(cfg, policy, params, text, pieces)
  close(found, want)
  assert cache.length.tolist() == [sum(pieces)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["gemma3", "gpt2", "llama3", "deepseek_v3", "olmo2"]
)
def test_families(name, text):
  """Local layers, learned positions, scaled rotation, latent keys, norms."""
  params, cfg = family(name)
  gates = drawn(cfg)
  want = closed(cfg, params, text, gates)
  policy = kv_policy.by_head(gates, **ENDS, capacity=LENGTH, chunk=5)
  close(feed(cfg, policy, params, text, [5, 4, 5])[0], want)


OPTIONS = {
  "softmax1": {"normalizer": "softmax1"},
  "clipped": {"normalizer": "clipped_softmax"},
  "softpick": {"normalizer": "softpick"},
  "element": {"gate": "element"},
  "value": {"gate": "value", "v_dim": 5},
  "experts": {"n_experts": 4, "experts_per_token": 2, "shared_d_ff": 12},
  "rate": {"mixing": "rate"},
  "mixing": {"mixing": "gate"},
  "bases": {"rope_bases": (50.0, 1e4, 9.0), "rope_layers": (True, True, False)},
  "norm": {"qk_norm": True, "attn_softcap": 5.0, "qkv_bias": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_a_window_over_the_whole_text_is_the_model(option, text):
  """However heads are sorted, and whatever they have of their own."""
  cfg = sinkjax.TINY.replace(n_layers=3, **OPTIONS[option])
  params = sinkjax.init_params(cfg, jax.random.key(0))
  params = split_layers(jax.tree.map(lambda x: x * 1.5 + 0.1, params))
  wide = {"sinks": 2, "window": LENGTH}
  policy = kv_policy.by_head(GATES, **wide, capacity=LENGTH, chunk=5)
  want = plain(cfg, params, text)
  close(feed(cfg, policy, params, text, [5, 4, 5])[0], want)


@pytest.mark.slow
def test_all_of_one_kind(three, text):
  """All full is `full`; all others `sinks`, where positions do not matter."""
  params, cfg = three
  pieces, none = [5, 4, 5], np.zeros_like(GATES)
  policy = kv_policy.by_head(none + 1, **ENDS, capacity=LENGTH, chunk=5)
  full = kv_policy.full(LENGTH, chunk=5)
  want, _ = feed(cfg, full, params, text, pieces)
  found, cache = feed(cfg, policy, params, text, pieces)
  np.testing.assert_array_equal(found, want)
  assert all(layer[1] is None for layer in cache.layers)
  nowhere = cfg.replace(positions="none")
  policy = kv_policy.by_head(none, **ENDS, capacity=LENGTH, chunk=5)
  want, _ = feed(nowhere, kv_policy.sinks(2, 4, chunk=5), params, text, pieces)
  close(feed(nowhere, policy, params, text, pieces)[0], want)


@pytest.mark.thorough
def test_rows_of_other_lengths_and_padding(three, text):
  """Each row is what it is by itself; padding leaves no trace."""
  params, cfg = three
  policy = kv_policy.by_head(GATES, **ENDS, capacity=LENGTH, chunk=4)
  step = jax.jit(advance(cfg, policy))
  cache, at, found = init_cache(cfg, policy, 2), [0, 0], [[], []]
  for count in [(4, 1), (0, 4), (2, 3), (4, 4), (3, 0)]:
    part = np.full((2, 4), 63)
    for row, n in enumerate(count):
      part[row, :n] = text[row, at[row] : at[row] + n]
      at[row] += n
    logits, cache = step(
      params, jnp.asarray(part), cache, count=jnp.array(count)
    )
    for row, n in enumerate(count):
      found[row].append(np.asarray(logits)[row, :n])
  assert cache.length.tolist() == at == [13, 12]
  want = closed(cfg, params, text)
  for row in range(2):
    close(np.concatenate(found[row]), want[row, : at[row]])


@pytest.mark.thorough
def test_text_is_that_of_the_model_with_heads_closed(three, text):
  """A prompt in chunks, then token by token, each the likeliest."""
  params, cfg = three
  prompt = text[0, :7].tolist()
  policy = kv_policy.by_head(GATES, **ENDS, capacity=LENGTH, chunk=3)
  new = list(generate(cfg, params, prompt, policy=policy, max_tokens=6))
  whole = np.array([prompt + new])
  likeliest = closed(cfg, params, whole).argmax(-1)[0, 6:-1]
  assert new == likeliest.tolist()
  with pytest.raises(ValueError, match="do not fit a full cache of 14"):
    generate(cfg, params, prompt, policy=policy, max_tokens=8)


@pytest.mark.parametrize("chunk", [1, 8])
def test_memory(chunk):
  """Slots of full heads and of the others, and no more."""
  cfg = sinkjax.TINY.replace(n_layers=3, v_dim=5, dtype="bfloat16")
  policy = kv_policy.by_head(GATES, **ENDS, capacity=40, chunk=chunk)
  cache = jax.eval_shape(lambda: init_cache(cfg, policy, 2))
  found = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache.layers))
  slots = 3 * 40 + 3 * (2 + 4 + chunk - 1)
  assert found == 2 * slots * (cfg.head_dim + 5) * 2


REFUSED = {
  "sink_logit": {"sink_logit": True},
  "attn_bias": {"attn_bias": "kv"},
  "control_heads": {"control_heads": 2},
  "alibi": {"positions": "alibi"},
}


@pytest.mark.parametrize("option", REFUSED)
def test_heads_with_parameters_of_their_own_are_refused(option):
  cfg = sinkjax.TINY.replace(n_layers=3, **REFUSED[option])
  policy = kv_policy.by_head(GATES, **ENDS, capacity=8)
  with pytest.raises(ValueError, match=f"this one has .*{option}"):
    policy.check(cfg)


def test_mistakes():
  cfg = sinkjax.TINY.replace(n_layers=3)
  policy = kv_policy.by_head(GATES[:2], **ENDS, capacity=8)
  with pytest.raises(ValueError, match="3 layers of 2 KV heads .* 2 layers of"):
    policy.check(cfg)
  ragged = kv_policy.by_head([[1, 0], [1], [0, 0]], **ENDS, capacity=8)
  with pytest.raises(ValueError, match=r"got 3 layers of \[1, 2\] heads"):
    ragged.check(cfg)
  with pytest.raises(ValueError, match="window must be an integer from 1"):
    kv_policy.by_head(GATES, sinks=2, window=0, capacity=8)
  learned = cfg.replace(positions="learned")
  with pytest.raises(ValueError, match="for 64 tokens, the cache has 65"):
    kv_policy.by_head(GATES, **ENDS, capacity=65).check(learned)
  edited = sinkjax.edited(cfg, "graded key=0 by=2")
  with pytest.raises(ValueError, match="others in each head"):
    advance(edited, kv_policy.by_head(GATES, **ENDS, capacity=8))
