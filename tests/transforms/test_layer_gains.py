"""Gains against their formulas in numpy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.blocks import Block
from sinkjax.models.layerwise import InMemory
from sinkjax.taps import Tapper, Taps
from sinkjax.transforms.layer_gains import layer_gains, top_singular

CFG = sinkjax.ModelConfig(
  vocab_size=32,
  d_model=10,
  n_layers=2,
  n_heads=4,
  n_kv_heads=2,
  head_dim=6,
  d_ff=14,
  max_len=32,
  dtype="float64",
  norm_offset=1.0,
)
IDS = jnp.array([3, 1, 4, 1, 5])


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def random_params(cfg, seed=0):
  leaves, tree = jax.tree.flatten(sinkjax.param_shapes(cfg))
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    tree,
    [
      jnp.asarray(rng.normal(size=leaf.shape) * leaf.shape[-1] ** -0.5)
      for leaf in leaves
    ],
  )


def by_hand(cfg, params, fn):
  """Every gain of a pre-norm RoPE model, from weights and activations."""
  sites = ("resid_pre", "resid_mid", "pattern", "q", "k", "v", "z")
  watch = {site: (site, lambda x: x) for site in sites}
  trace = sinkjax.capture(fn, watch)(params, IDS[None]).trace
  trace = {site: np.asarray(value)[:, 0] for site, value in trace.items()}
  group = cfg.n_heads // cfg.n_kv_heads
  found = {name: [] for name in ("copy", "mlp", "key", "query")}
  for layer in range(cfg.n_layers):
    block = jax.tree.map(lambda p: np.asarray(p[layer]), params["blocks"])  # noqa: B023
    q, k, v, z = (trace[site][layer] for site in "qkvz")
    pattern, x = trace["pattern"][layer], trace["resid_pre"][layer]
    scale = 1 + block["attn_norm"]["scale"]
    norm = [_norm_derivative(cfg, row, scale) for row in x]
    turned = [_turns(cfg, block, at) for at in range(len(IDS))]
    copy = np.zeros((cfg.n_heads, len(IDS)))
    key, add = np.zeros(pattern.shape), np.zeros((len(IDS), 10, 10))
    for h in range(cfg.n_heads):
      n, write = h // group, block["attn"]["o"]["kernel"][h].T
      for s in range(len(IDS)):
        d_v = block["attn"]["v"]["kernel"][:, n].T @ norm[s]
        copy[h, s] = np.linalg.norm(write @ d_v, 2)
        d_k = turned[s][1][n] @ norm[s]
        for t in range(s, len(IDS)):
          away = v[s, n] - z[t, h]
          d_score = q[t, h] @ d_k * cfg.score_scale
          key[h, t, s] = np.linalg.norm(write @ away) * np.linalg.norm(d_score)
          d_query = k[s, n] @ turned[t][0][h] @ norm[t] * cfg.score_scale
          add[t] += pattern[h, t, s] * np.outer(write @ away, d_query)
    tail = [
      _mlp_derivative(cfg, block, mid) for mid in trace["resid_mid"][layer]
    ]
    gain = np.array([np.linalg.norm(one, 2) for one in tail])
    query = [
      np.linalg.norm(one @ more, 2) for one, more in zip(tail, add, strict=True)
    ]
    for name, value in (
      ("copy", copy),
      ("mlp", gain),
      ("key", key),
      ("query", np.array(query) / gain),
    ):
      found[name].append(value)
  return {name: np.stack(value) for name, value in found.items()}, trace


def _norm_derivative(cfg, x, scale):
  size = np.sqrt(np.mean(x * x) + cfg.norm_eps)
  return np.diag(scale / size) @ (
    np.eye(len(x)) - np.outer(x, x) / (len(x) * size**2)
  )


def _turns(cfg, block, position):
  """Rotated projections: [H, K, D] of queries, [N, K, D] of keys."""
  half = cfg.head_dim // 2
  angle = position * cfg.rope_base ** -(np.arange(half) / half)
  cos, sin = np.diag(np.cos(angle)), np.diag(np.sin(angle))
  turn = np.block([[cos, -sin], [sin, cos]])
  return [
    np.einsum("jk,dhk->hjd", turn, block["attn"][which]["kernel"])
    for which in "qk"
  ]


def _mlp_derivative(cfg, block, mid):
  def run(x):
    tap = Tapper(Taps({}), 0)
    x = x[None, None]
    args = {"params": jax.tree.map(jnp.asarray, block)}, x, x, tap
    return Block(cfg).apply(*args, method=Block.transform)[0, 0]

  return np.asarray(jax.jacfwd(run)(jnp.asarray(mid)))


@pytest.mark.thorough
def test_gains_are_their_formulas():
  params, f = random_params(CFG), sinkjax.forward(CFG)
  want, trace = by_hand(CFG, params, f)
  got = layer_gains(f, params, IDS)
  close = {"rtol": 1e-9, "atol": 1e-12}
  np.testing.assert_allclose(got.pattern, trace["pattern"], **close)
  np.testing.assert_allclose(got.copy_gain, want["copy"], **close)
  np.testing.assert_allclose(got.mlp_gain, want["mlp"], **close)
  np.testing.assert_allclose(got.query_gain, want["query"], **close)
  seen = np.tri(len(IDS), dtype=bool)
  key = np.asarray(got.key_gain)
  wanted = (want["key"] * trace["pattern"])[..., seen]
  np.testing.assert_allclose(key[..., seen], wanted, **close)
  assert np.all(key[..., ~seen] == 0)


@pytest.mark.slow
@pytest.mark.thorough
def test_edits_are_in_the_gains():
  """Scores scaled, values scaled, a key hidden: as if weights were so."""
  params, f = random_params(CFG), sinkjax.forward(CFG)
  edits = {"scores": sinkjax.scale(0.5), "v": sinkjax.scale(3.0)}
  got = layer_gains(sinkjax.intervene(f, edits), params, IDS)
  attn = params["blocks"]["attn"]
  other = {
    **attn,
    "q": {"kernel": attn["q"]["kernel"] * 0.5},
    "v": {"kernel": attn["v"]["kernel"] * 3},
  }
  blocks = {**params["blocks"], "attn": other}
  want = layer_gains(f, {**params, "blocks": blocks}, IDS)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
  hidden = layer_gains(
    sinkjax.intervene(f, {"scores": sinkjax.knockout(0)}), params, IDS
  )
  assert np.all(np.asarray(hidden.pattern)[..., 1:, 0] == 0)
  assert np.all(np.asarray(hidden.key_gain)[..., 1:, 0] == 0)
  held = layer_gains(
    sinkjax.intervene(f, {"pattern": sinkjax.hold()}), params, IDS
  )
  assert np.all(np.asarray(held.key_gain) == 0)
  np.testing.assert_allclose(held.query_gain, 0, atol=1e-12)
  np.testing.assert_allclose(held.copy_gain, layer_gains(f, params, IDS)[1])


def test_top_singular():
  rng = np.random.default_rng(0)
  for shape in ((3, 2, 7, 4), (5, 4, 7)):
    matrices = rng.normal(size=shape) * 1e-30
    want = np.linalg.norm(matrices, 2, axis=(-2, -1))
    np.testing.assert_allclose(top_singular(jnp.asarray(matrices)), want)
  assert float(top_singular(jnp.zeros((2, 3)))) == 0


@pytest.mark.thorough
def test_weights_layer_by_layer():
  params, f = random_params(CFG), sinkjax.forward(CFG)
  got = layer_gains(f, InMemory(CFG, params), IDS)
  for a, b in zip(got, layer_gains(f, params, IDS), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
def test_an_edit_that_mixes_elsewhere_is_refused():
  params, f = random_params(CFG), sinkjax.forward(CFG)
  mixed = sinkjax.intervene(f, {"mlp_out": lambda x, layer: jnp.cumsum(x, 1)})
  with pytest.raises(ValueError, match="layer 0 has no gains: an edit lets"):
    layer_gains(mixed, params, IDS)
  with pytest.raises(ValueError, match="float32 or float64"):
    half = CFG.replace(dtype="bfloat16")
    layer_gains(sinkjax.forward(half), params, IDS)
