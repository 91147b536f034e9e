"""Biases and gates: one layer in float64 by hand, its slopes, and the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.metrics import rows
from sinkjax.models.blocks import Block
from sinkjax.models.context import make_context
from sinkjax.taps import Tapper, Taps
from sinkjax.transforms.layer_gains import layer_gains
from sinkjax.transforms.streaming import stream_statistics

BASE = sinkjax.TINY.replace(positions="none", n_layers=1)
OPTIONS = {
  "plain": {},
  "sink_logit": {"sink_logit": True},
  "k": {"attn_bias": "k"},
  "kv": {"attn_bias": "kv"},
  "v": {"attn_bias": "v"},
  "v_sigmoid": {"attn_bias": "v", "normalizer": "sigmoid"},
  "head": {"gate": "head"},
  "element": {"gate": "element"},
  "value": {"gate": "value"},
  "rate": {"mixing": "rate"},
  "mixing": {"mixing": "gate", "gate": "element"},
  "roles": {"control_heads": 2, "normalizer": "sigmoid"},
  "roles_softmax": {"control_heads": 4, "mixing": "rate"},
  "qk_norm": {"qk_norm": True, "qkv_clip": 0.8},
  "all": {"attn_bias": "kv", "gate": "element", "qk_norm": True},
}


def logistic(x):
  return 1 / (1 + np.exp(-x))


def normed(x, scale, eps):
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def by_hand(cfg, params, x):
  """What the attention adds to the residual [T, D], token by token."""
  attn, eps = params["attn"], cfg.norm_eps
  read = normed(x, params["attn_norm"]["scale"], eps)
  q, k, v = (
    np.einsum("td,dhk->thk", read, attn[name]["kernel"]) for name in "qkv"
  )
  gate = None
  if cfg.gate != "none":
    gate = logistic(np.einsum("td,dhk->thk", read, attn["gate"]["kernel"]))
  if cfg.gate == "value":
    v = v * gate
  if cfg.qk_norm:
    q = normed(q, attn["q_norm"]["scale"], eps)
    k = normed(k, attn["k_norm"]["scale"], eps)
  if cfg.qkv_clip is not None:
    limit = cfg.qkv_clip
    q, k, v = (np.minimum(np.maximum(x, -limit), limit) for x in (q, k, v))
  out = np.zeros_like(q)
  for t in range(len(x)):
    for h in range(cfg.n_heads):
      n = h // cfg.group_size
      keys, values = list(k[: t + 1, n]), list(v[: t + 1, n])
      if cfg.attn_bias in ("k", "kv"):
        keys.append(attn["k_bias"][n])
        has = cfg.attn_bias == "kv"
        values.append(attn["v_bias"][n] if has else 0 * values[0])
      scores = np.array(keys) @ q[t, h] / np.sqrt(cfg.head_dim)
      control = h < cfg.control_heads
      if control:
        null = attn["null_key"][n] @ q[t, h] / np.sqrt(cfg.head_dim)
        scores = np.append(scores, null)
        values.append(0 * values[0])
      if cfg.sink_logit:
        scores = np.append(scores, attn["sinks"][h])
        values.append(0 * values[0])
      if cfg.normalizer == "sigmoid" and not control:
        weights = logistic(scores)
      else:
        weights = np.exp(scores - scores.max())
        weights = weights / weights.sum()
      out[t, h] = weights @ np.array(values)
      if cfg.attn_bias == "v":
        out[t, h] += attn["v_bias"][n]
      if cfg.mixing != "none":
        logit = attn["mix_rate"]
        if cfg.mixing == "gate":
          logit = logit["bias"] + read[t] @ logit["kernel"]
        rate = logistic(logit[h])
        out[t, h] = (1 - rate) * v[t, n] + rate * out[t, h]
  if cfg.gate in ("head", "element"):
    out = out * gate
  return np.einsum("thk,hkd->td", out, attn["o"]["kernel"])


def attention(cfg):
  def run(params, x):
    params = jax.tree.map(jnp.asarray, params)
    positions = jnp.arange(x.shape[0])[None]
    ctx, tap = make_context(cfg, positions, None), Tapper(Taps({}), 0)
    block = Block(cfg)

    def apply(method, *args):
      return block.apply({"params": params}, *args, method=method)

    pre = x[None].astype(cfg.dtype)
    q, k, v = apply(Block.qkv, pre, jnp.asarray(0), ctx, tap)
    z = apply(Block.mix, q, k, v, ctx.mask, tap)
    z = apply(Block.heads, pre, z, v, tap)
    return apply(Block.project_out, pre, z, tap)[0]

  return run


def some_params(cfg, seed=0):
  """Every parameter random, scores of 10 and more."""
  params = sinkjax.init_params(cfg, jax.random.key(seed))
  block = jax.tree.map(lambda x: np.asarray(x[0]), params["blocks"])
  rng = np.random.default_rng(seed)
  block = jax.tree.map(
    lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32), block
  )
  block["attn"]["q"]["kernel"] *= 2
  x = rng.normal(size=(7, cfg.d_model)).astype(np.float32)
  return block, x


def wide(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_one_layer(name):
  cfg = BASE.replace(**OPTIONS[name])
  params, x = some_params(cfg)
  want = by_hand(cfg, wide(params), wide(x))
  got = attention(cfg)(params, jnp.asarray(x))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

  # In bfloat16, as far from the answer as rounding the inputs alone takes it.
  half = cfg.replace(dtype="bfloat16")
  got = np.asarray(attention(half)(params, jnp.asarray(x)), np.float64)
  assert np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_slope(name):
  """Of each parameter and of the input, by differences of `by_hand`."""
  cfg = BASE.replace(**OPTIONS[name])
  params, x = some_params(cfg, seed=1)
  rng = np.random.default_rng(2)
  weights = rng.normal(size=x.shape)

  def total(params, x):
    return jnp.sum(attention(cfg)(params, x) * weights)

  slopes = jax.grad(total, argnums=(0, 1))(params, jnp.asarray(x))
  leaves, tree = jax.tree.flatten((params, x))
  named = jax.tree_util.tree_flatten_with_path((params, x))[0]
  step = 1e-6
  for i, slope in enumerate(jax.tree.leaves(slopes)):
    d, ends = rng.normal(size=leaves[i].shape), []
    for h in (step, -step):
      moved = [np.asarray(leaf, np.float64) for leaf in leaves]
      moved[i] = moved[i] + h * d
      ends.append(
        np.sum(by_hand(cfg, *jax.tree.unflatten(tree, moved)) * weights)
      )
    want = (ends[0] - ends[1]) / (2 * step)
    path = jax.tree_util.keystr(named[i][0])
    used = "mlp" not in path
    assert bool(np.any(slope)) == used, path
    got = np.sum(np.asarray(slope, np.float64) * d)
    size = np.linalg.norm(slope) * np.linalg.norm(d)
    assert abs(got - want) <= 1e-4 * size + 1e-5, path


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_ten_thousand(name, dtype):
  cfg = BASE.replace(dtype=dtype, **OPTIONS[name])
  params, x = some_params(cfg)
  params["attn"]["q"]["kernel"] *= 1e3
  fn = attention(cfg)

  def total(params, x):
    return jnp.sum(jnp.asarray(fn(params, x), jnp.float32))

  found = jax.value_and_grad(total, argnums=(0, 1))(params, jnp.asarray(x))
  for leaf in jax.tree.leaves(found):
    assert np.isfinite(np.asarray(leaf, np.float64)).all()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(OPTIONS, "head"))
def test_in_the_model(name, tokens):
  """Causal; streamed as it is dense; the engine's Jacobian is jacfwd's."""
  cfg = sinkjax.TINY.replace(n_layers=2, dtype="float64", **OPTIONS[name])
  with jax.enable_x64(True):
    params = sinkjax.init_params(cfg, jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype("float64") * 2, params)
    f = sinkjax.forward(cfg)
    whole = f(params, tokens).logits
    np.testing.assert_allclose(
      f(params, tokens[:, :7]).logits, whole[:, :7], rtol=1e-9, atol=1e-12
    )
    seen = sinkjax.capture(f, {"p": ("pattern", lambda p: p)})
    pattern = seen(params, tokens).trace["p"]
    streamed = stream_statistics(f, {"sink": rows.sink_score()}, block=4)
    np.testing.assert_allclose(
      streamed(params, tokens).trace["sink"],
      pattern[..., 0].mean(-1),
      rtol=1e-9,
    )
    norms = [
      sinkjax.jacobian_norms(f, params, tokens[0, :6], method=method)
      for method in ("exact", "reference")
    ]
    np.testing.assert_allclose(*norms, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", quick(["k", "kv", "head", "element", "value", "mixing"], "kv", "head")
)
def test_the_engine_needs_no_detour(name, tokens):
  """Folding a layer is exact with each of them: no layer is pushed as it is."""
  from sinkjax.transforms import layer_jacobian
  from sinkjax.transforms.residual import context_of

  cfg = sinkjax.TINY.replace(**OPTIONS[name])
  params = sinkjax.init_params(cfg, jax.random.key(0))
  block = jax.tree.map(lambda x: 2 * x[1], params["blocks"])
  ctx, _ = context_of(cfg, tokens[:1])
  x = jax.random.normal(jax.random.key(1), (1, tokens.shape[1], cfg.d_model))
  fold = layer_jacobian.fold_layer(cfg, block, x, jnp.asarray(1), ctx, {})
  assert fold.error < 1e-4


@pytest.mark.thorough
def test_a_key_takes_weight_and_gives_its_value(tokens):
  """Rows of "k" and "kv" sum to less than one; a huge key takes it all."""
  cfg = sinkjax.TINY.replace(attn_bias="kv", n_layers=1, positions="none")
  params = sinkjax.init_params(cfg, jax.random.key(0))
  seen = sinkjax.capture(sinkjax.forward(cfg), {"p": ("pattern", lambda p: p)})
  trace = seen(params, tokens).trace
  assert (np.asarray(trace["p"]).sum(-1) < 1).all()
  params["blocks"]["attn"]["q"]["kernel"] *= 0
  params["blocks"]["attn"]["k_bias"] += 1e3
  uniform = seen(params, tokens).trace["p"][0, 0, 0, -1]
  np.testing.assert_allclose(uniform, 1 / (tokens.shape[1] + 1), rtol=1e-5)


def test_what_does_not_go_together():
  for more in ({"sink_logit": True}, {"normalizer": "softmax1"}):
    with pytest.raises(ValueError, match="takes the place of sink_logit"):
      sinkjax.TINY.replace(attn_bias="k", **more)
  with pytest.raises(ValueError, match="attention='fused' has no attn_bias"):
    sinkjax.TINY.replace(attn_bias="v", attention="fused")
  with pytest.raises(ValueError, match="gate must be one of"):
    sinkjax.TINY.replace(gate="both")
  cfg = sinkjax.TINY.replace(gate="head")
  params = sinkjax.init_params(cfg, jax.random.key(0))
  with pytest.raises(ValueError, match="no gate on what heads mix"):
    layer_gains(sinkjax.forward(cfg), params, jnp.array([1, 2]))
