"""Latent attention: a layer in float64 by hand, and what refuses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from variants import build

import sinkjax
from sinkjax.inference.prune import remove_heads
from sinkjax.models.attention import Attention
from sinkjax.models.context import make_context
from sinkjax.models.projection import LATENT_EPS
from sinkjax.transforms.layer_gains import layer_gains

CFG = sinkjax.TINY.replace(
  d_model=12,
  n_layers=2,
  n_heads=3,
  n_kv_heads=3,
  head_dim=6,
  rope_dim=2,
  v_dim=5,
  kv_rank=7,
  qkv_bias=True,
  attn_scale=0.6,
  dtype="float64",
)
LENGTH = 5


def latent(w, x):
  """A normed latent vector of each token."""
  c = x @ w["down"]["kernel"] + w["down"]["bias"]
  size = np.sqrt(np.mean(c**2, axis=-1, keepdims=True) + LATENT_EPS)
  return c / size * w["scale"]


def turned(cfg, x):
  """[T, ..., 2] rotated by one angle a position, of a single frequency."""
  at = np.arange(len(x))
  a, b = x[..., 0], x[..., 1]
  return np.stack(
    [a * np.cos(at) - b * np.sin(at), b * np.cos(at) + a * np.sin(at)], -1
  )


def by_hand(cfg, w, x):
  """The attention's output [T, D], head by head."""
  of_q = latent(w["q_latent"], x) if cfg.q_rank else x
  c = latent(w["kv_latent"], x)
  shared = x @ w["k_rope"]["kernel"][:, 0] + w["k_rope"]["bias"][0]
  shared = turned(cfg, shared)
  out = np.zeros_like(x)
  for h in range(cfg.n_heads):
    q = of_q @ w["q"]["kernel"][:, h]
    q = np.concatenate([turned(cfg, q[:, :2]), q[:, 2:]], axis=1)
    k = np.concatenate([shared, c @ w["k"]["kernel"][:, h]], axis=1)
    scores = cfg.score_scale * q @ k.T
    scores[np.triu_indices(LENGTH, 1)] = -np.inf
    pattern = np.exp(scores)
    pattern /= pattern.sum(axis=1, keepdims=True)
    z = pattern @ (c @ w["v"]["kernel"][:, h])
    out += z @ w["o"]["kernel"][h]
  return out


def params_of(cfg):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + 0.5 * rng.normal(size=x.shape),
    sinkjax.init_params(cfg, jax.random.key(0)),
  )


@pytest.mark.thorough
@pytest.mark.parametrize("rank", quick([0, 8], 0))
def test_one_layer(rank):
  with jax.enable_x64(True):
    cfg = CFG.replace(q_rank=rank)
    w = jax.tree.map(lambda x: x[0], params_of(cfg)["blocks"]["attn"])
    own = jax.tree.map(np.asarray, w)
    x = np.random.default_rng(1).normal(size=(1, LENGTH, cfg.d_model))
    ctx = make_context(cfg, jnp.arange(LENGTH)[None], None)

    def run(attn, x):
      q, k, v = attn.project_qkv(x)
      q, k = attn.norm_and_rotate_qk(q, k, ctx, 0)
      tap = sinkjax.taps.Tapper(sinkjax.Taps(), 0)
      return attn.project_out(attn.attend(attn.score(q, k), v, ctx.mask, tap))

    got = Attention(cfg).apply({"params": w}, jnp.asarray(x), method=run)
    np.testing.assert_allclose(got[0], by_hand(cfg, own, x[0]), rtol=1e-11)


@pytest.mark.slow
@pytest.mark.thorough
def test_gains_bound_the_norms_of_blocks():
  """A product over one layer is a bound; it is another if widths mix up."""
  with jax.enable_x64(True):
    cfg = CFG.replace(n_layers=1)
    params, f = params_of(cfg), sinkjax.forward(cfg)
    tokens = jnp.arange(LENGTH)
    gains = layer_gains(f, params, tokens)
    norms = sinkjax.jacobian_norms(f, params, tokens, norm="spectral")
  copied = np.einsum("hts,hs->ts", gains.pattern[0], gains.copy_gain[0])
  moved = np.asarray(gains.key_gain[0]).sum(axis=0)
  bound = np.asarray(gains.mlp_gain[0])[:, None] * (copied + moved)
  below = np.tril_indices(LENGTH, -1)
  assert np.all(norms[below] <= bound[below] * (1 + 1e-9))
  assert np.all(norms[below] > 0.01 * bound[below])


@pytest.mark.thorough
def test_refusals():
  params, cfg = build("deepseek")
  removed = np.zeros((3, 4), bool)
  with pytest.raises(ValueError, match="use ablate_heads"):
    remove_heads(params, cfg, removed)
  for changes, message in [
    ({"q_rank": 4}, "q_rank needs kv_rank, got 0"),
    ({"kv_rank": 4}, "rope_dim below head_dim=8, got 'rope' and 8"),
    ({"kv_rank": 4, "positions": "none"}, "kv_rank needs positions='rope'"),
    ({"kv_rank": -1}, "kv_rank must be a positive integer"),
    ({"v_dim": 0}, "v_dim must be a positive integer"),
    ({"v_dim": 4, "attention": "fused"}, "no v_dim other than head_dim=8"),
  ]:
    with pytest.raises(ValueError, match=message):
      sinkjax.TINY.replace(**changes)
