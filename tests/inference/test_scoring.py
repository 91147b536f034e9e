"""Losses of a text: against a model written out in numpy, and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.inference.scoring import (
  dense_nats,
  nats_of,
  recompute_nats,
  stream_nats,
)

CFG = sinkjax.TINY


@pytest.fixture(scope="module")
def params():
  drawn = sinkjax.init_params(CFG, jax.random.key(0))
  return scaled(drawn, 2)


@pytest.fixture(scope="module")
def text():
  return np.random.default_rng(0).integers(0, 64, 41)


def norm(x, scale):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + CFG.norm_eps) * scale


def turned(x, position):
  """[..., K] rotated by hand: pair i is (i, i + K / 2)."""
  half = x.shape[-1] // 2
  angle = position * CFG.rope_base ** (-np.arange(half) / half)
  a, b = x[..., :half], x[..., half:]
  cos, sin = np.cos(angle), np.sin(angle)
  return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def by_hand(params, tokens, kept):
  """Logits [T, V] in float64, one token after the other.

  `kept(t)` lists the tokens that t sees, itself the last; they stand at
  0, 1, 2, ... Keys and values are those that the tokens had when they came.
  """
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  blocks, groups = p["blocks"], CFG.n_heads // CFG.n_kv_heads
  past = [([], []) for _ in range(CFG.n_layers)]
  rows = []
  for t, token in enumerate(tokens):
    x = p["embed"][token]
    for i, (keys, values) in enumerate(past):
      w = jax.tree.map(lambda y, i=i: y[i], blocks)
      read = norm(x, w["attn_norm"]["scale"])
      q, k, v = (
        np.einsum("d,dnk->nk", read, w["attn"][name]["kernel"])
        for name in "qkv"
      )
      keys.append(k)
      values.append(v)
      seen = kept(t)
      z = np.zeros((CFG.n_heads, CFG.head_dim))
      for h in range(CFG.n_heads):
        mine = turned(q[h], len(seen) - 1)
        scores = np.array(
          [mine @ turned(keys[s][h // groups], at) for at, s in enumerate(seen)]
        ) / np.sqrt(CFG.head_dim)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        z[h] = sum(
          a * values[s][h // groups] for a, s in zip(weights, seen, strict=True)
        )
      x = x + np.einsum("hk,hkd->d", z, w["attn"]["o"]["kernel"])
      read = norm(x, w["mlp_norm"]["scale"])
      gate, up = (read @ w["mlp"][name]["kernel"] for name in ("gate", "up"))
      x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp"]["down"]["kernel"]
    rows.append(norm(x, p["final_norm"]["scale"]) @ p["unembed"])
  return np.array(rows)


def losses(logits, ids):
  """[T - 1] of the tokens after the first."""
  logits = np.asarray(logits, np.float64)[:-1]
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -logs[np.arange(len(logs)), ids[1:]]


def plain(params, ids, max_len=CFG.max_len):
  f = jax.jit(sinkjax.forward(CFG.replace(max_len=max_len)))
  return losses(f(params, jnp.asarray(ids)).logits[0], ids)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("sinks", "window"),
  [
    pytest.param(0, 6, marks=pytest.mark.slow),
    pytest.param(1, 5, marks=pytest.mark.slow),
    (3, 7),
  ],
)
def test_a_stream_is_the_walk_by_hand(sinks, window, params, text):
  def kept(t):
    recent = range(max(t - window + 1, 0), t + 1)
    return sorted({*range(min(sinks, t + 1)), *recent})

  want = losses(by_hand(params, text, kept), text)
  whole = plain(params, text)
  np.testing.assert_allclose(
    want[: sinks + window], whole[: sinks + window], rtol=1e-4
  )
  assert np.abs(want - whole)[sinks + window :].mean() > 0.05
  for chunk in (1, 7, 10, 64):
    policy = kv_policy.sinks(sinks, window, chunk=chunk)
    got = stream_nats(CFG, params, text, policy=policy)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("size", [2, 8, 9, 16, 17, 40, 41])
def test_each_token_counts_once_whatever_the_chunk(size, params, text):
  want, ids = plain(params, text), text[:size]
  for chunk in (1, 8):
    fed = []
    policy = kv_policy.full(64, chunk=chunk)
    got = stream_nats(CFG, params, ids, policy=policy, progress=fed.append)
    assert got.shape == (size - 1,) and sum(fed) == size - 1
    np.testing.assert_allclose(got, want[: size - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dense_grows_past_the_context(params):
  ids = np.random.default_rng(1).integers(0, 64, 90)
  want = plain(params, ids, max_len=128)
  for room, chunk in ((32, 8), (48, 48)):
    fed = []
    got = dense_nats(
      CFG, params, ids, room=room, chunk=chunk, progress=fed.append
    )
    assert sum(fed) == 89
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", [[], [3, 5]])
def test_recompute_is_a_forward_pass_a_token(prefix, params, text):
  at, total, fed = np.array([40, 9, 12, 31, 33]), 9, []
  got = recompute_nats(
    CFG,
    params,
    text,
    at=at,
    total=total,
    prefix=prefix,
    batch=2,
    progress=fed.append,
  )
  f = jax.jit(sinkjax.forward(CFG))
  for t, nats in zip(at, got, strict=True):
    window = [*prefix, *text[t - (total - len(prefix)) : t]]
    assert len(window) == total
    logits = np.asarray(f(params, jnp.array(window)).logits[0, -1], np.float64)
    want = np.log(np.exp(logits).sum()) - logits[text[t]]
    assert nats == pytest.approx(want, rel=1e-4)
  assert sum(fed) == 5 * total


def test_nats_of_large_logits():
  logits = jnp.array([[1000.0, 1001.0], [-3.0, 4.0]])
  got = nats_of(logits, jnp.array([0, 1]))
  np.testing.assert_allclose(
    got, [1 + np.log1p(np.exp(-1)), np.log1p(np.exp(-7))], rtol=1e-4
  )


def test_mistakes(params, text):
  policy = kv_policy.full(8, chunk=4)
  with pytest.raises(ValueError, match="40 tokens do not fit a full cache of"):
    stream_nats(CFG, params, text, policy=policy)
  with pytest.raises(ValueError, match="2 tokens at least"):
    stream_nats(CFG, params, text[:1], policy=policy)
  with pytest.raises(ValueError, match="token id 64 is outside"):
    stream_nats(CFG, params, [3, 64, 5], policy=policy)
  with pytest.raises(ValueError, match="multiple of the chunk 4, got 6"):
    dense_nats(CFG, params, text, room=6, chunk=4)
  for at, total in (([8], 9), ([41], 9), ([], 9), ([12], 2)):
    with pytest.raises(ValueError, match="must be positions in"):
      recompute_nats(
        CFG,
        params,
        text,
        at=at,
        total=total,
        prefix=[1, 2] if total == 2 else (),
      )
