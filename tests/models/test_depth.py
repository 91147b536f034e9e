"""Tokens that do not take every layer: plain NumPy, laws, and who refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.inference import kv_policy
from sinkjax.inference.generate import generate
from sinkjax.metrics import rows
from sinkjax.metrics.sinks import sink_score
from sinkjax.models.cache import advance, init_cache
from sinkjax.train.depth_loss import stopping
from sinkjax.transforms import streaming
from sinkjax.transforms.layer_gains import layer_gains
from sinkjax.transforms.layer_jacobian import fold_layer
from sinkjax.transforms.residual import context_of
from sinkjax.weights import huggingface, orbax_io

KINDS = ("halting", "routed")
BASE = sinkjax.TINY.replace(
  vocab_size=24,
  d_model=12,
  head_dim=4,
  d_ff=10,
  n_layers=4,
  positions="none",
  max_len=32,
  dtype="float64",
)
LENGTH = 9
TOKENS = np.random.default_rng(0).integers(24, size=(2, LENGTH))
SITES = {
  "halting": ("depth_open", "halt_share"),
  "routed": ("depth_open", "depth_router", "depth_predictor"),
}


@functools.cache
def model(kind):
  """(params, cfg): random numbers with which some tokens take each layer."""
  cfg, rng = BASE.replace(depth=kind), np.random.default_rng(4)

  def one(shape):
    fan_in = shape.shape[-2] if len(shape.shape) > 1 else 1
    return 1.3 * rng.normal(size=shape.shape) / np.sqrt(fan_in)

  return jax.tree.map(
    one, sinkjax.param_shapes(cfg.replace(dtype="float32"))
  ), cfg


@functools.cache
def watched(kind):
  """(logits, trace) of `TOKENS`, in float64."""
  params, cfg = model(kind)
  sites = (*SITES[kind], "resid_pre", "resid_post", "attn_out", "mlp_out")
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, params)
    see = {site: (site, lambda x: x) for site in sites}
    run = jax.jit(sinkjax.capture(sinkjax.forward(cfg), see))
    out = jax.tree.map(np.asarray, run(params, jnp.asarray(TOKENS)))
  return out.logits, out.trace


def normed(x):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + BASE.norm_eps)


def logistic(x):
  return 1 / (1 + np.exp(-x))


def by_hand(kind, params, tokens):
  """(logits, which tokens took each layer) of one text, token by token."""
  cfg, blocks = model(kind)[1], params["blocks"]
  x = params["embed"][tokens].copy()
  if kind == "halting":
    x[:, -1] = 0
  took = []
  for layer in range(cfg.n_layers):
    p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], blocks)
    depth = {k: v["kernel"][:, 0] for k, v in p["depth"].items()}
    weight = np.ones(len(x))
    if kind == "halting":
      goes = x[:, -1] < 0.5
    elif layer % 2:
      goes = (
        normed(x) @ depth["predictor"] + p["depth"]["predictor"]["bias"] > 0
      )
      weight = logistic(normed(x) @ depth["router"])
    else:
      goes = np.ones(len(x), bool)
    took.append(goes)
    read = normed(x) * p["attn_norm"]["scale"]
    q, k, v = (
      np.einsum("td,dhk->thk", read, p["attn"][name]["kernel"])
      for name in "qkv"
    )
    new = x.copy()
    for t in np.flatnonzero(goes):
      keys = [s for s in range(t + 1) if goes[s] or kind == "halting"]
      out = np.zeros(len(x[0]))
      for h in range(cfg.n_heads):
        group = h // cfg.group_size
        scores = np.array([q[t, h] @ k[s, group] for s in keys]) / 2
        weights = np.exp(scores - scores.max())
        z = weights @ v[keys, group] / weights.sum()
        out += z @ p["attn"]["o"]["kernel"][h]
      mid = x[t] + weight[t] * out
      if kind == "halting":
        mid[-1] = x[t, -1]
      inner = normed(mid) * p["mlp_norm"]["scale"]
      gate = inner @ p["mlp"]["gate"]["kernel"]
      act = gate * logistic(gate) * (inner @ p["mlp"]["up"]["kernel"])
      new[t] = mid + weight[t] * (act @ p["mlp"]["down"]["kernel"])
      if kind == "halting":
        halt = normed(np.append(new[t, :-1], x[t, -1])) @ depth["halt"]
        share = logistic(halt + p["depth"]["halt"]["bias"][0])
        new[t, -1] = x[t, -1] + (1 - x[t, -1]) * share
    x = new
  x = normed(x) * params["final_norm"]["scale"]
  return x @ params["unembed"], np.array(took)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_plain_numpy(kind):
  """Every number of the forward pass, in loops over tokens and heads."""
  params, _ = model(kind)
  logits, trace = watched(kind)
  for row, tokens in enumerate(TOKENS):
    want, took = by_hand(kind, params, tokens)
    np.testing.assert_array_equal(trace["depth_open"][:, row], took)
    np.testing.assert_allclose(logits[row], want, rtol=1e-10, atol=1e-10)
  # Otherwise this compares nothing but a plain model, or an empty one.
  some = trace["depth_open"].mean(axis=(1, 2))
  assert (some == 1).any() and ((some > 0) & (some < 1)).any()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_who_does_not_take_a_layer_leaves_as_it_came(kind):
  _, trace = watched(kind)
  closed = trace["depth_open"] == 0
  assert closed.any() and not closed.all()
  moved = trace["resid_post"] - trace["resid_pre"]
  assert not moved[closed].any() and np.abs(moved[~closed]).max(-1).all()
  for site in ("attn_out", "mlp_out"):
    assert not trace[site][closed].any() and trace[site][~closed].any()
  if kind == "routed":
    assert not closed[::2].any()
    return
  share = trace["resid_post"][..., -1]
  # Who has stopped stays so; the share never falls, and is below one.
  assert (np.diff(closed.astype(int), axis=0) >= 0).all()
  assert (np.diff(share, axis=0) >= 0).all() and (share < 1).all()
  # The share is the distribution function of the layer at which one stops, as
  # long as one goes on.
  p = np.asarray(stopping(jnp.asarray(trace["halt_share"])))
  np.testing.assert_allclose(p.sum(0), 1, rtol=1e-6)
  reached = np.cumsum(p, axis=0)[:-1]
  goes = trace["depth_open"][:-1] == 1
  np.testing.assert_allclose(share[:-1][goes], reached[goes], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_jacobian_is_that_of_jacfwd(kind):
  """Between all tokens, without a detour around what is folded."""
  params, cfg = model(kind)
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, params)
    tokens = jnp.asarray(TOKENS[0])
    f = sinkjax.forward(cfg)
    taken = sinkjax.capture(f, {"last": ("resid_post", lambda x: x)})

    @jax.jit
    @jax.jacfwd
    def dense(shift):
      run = sinkjax.intervene(taken, {"embed": sinkjax.add(shift)})
      return run(params, tokens).trace["last"][-1, 0]

    shape = (1, LENGTH, cfg.d_model)
    want = np.sqrt((dense(jnp.zeros(shape)) ** 2).sum(axis=(1, 2, 4)))
    got = np.asarray(sinkjax.jacobian_norms(f, params, tokens, source="embed"))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    assert np.count_nonzero(want) > LENGTH
    ctx, _ = context_of(cfg, tokens[None])
    x = jnp.asarray(params["embed"][TOKENS[:1]])
    x = x.at[..., -1].set(0.2) if kind == "halting" else x
    block = jax.tree.map(lambda leaf: leaf[1], params["blocks"])
    fold = fold_layer(cfg, block, x, jnp.asarray(1), ctx, {})
    assert fold.error < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_streams_and_edits_and_the_past(kind):
  params, cfg = model(kind)
  logits, trace = watched(kind)
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, params)
    tokens, f = jnp.asarray(TOKENS), sinkjax.forward(cfg)
    # No token changes what came before it.
    short = jax.jit(f)(params, tokens[:, :5]).logits
    np.testing.assert_allclose(short, logits[:, :5], rtol=1e-10, atol=1e-12)

    # Opened everywhere, or nowhere.
    @jax.jit
    def run(params, factor, shift):
      edit = sinkjax.chain(sinkjax.scale(factor), sinkjax.add(shift))
      return sinkjax.intervene(f, {"depth_open": edit})(params, tokens)

    closed = run(params, 0.0, 0.0).logits
    plain = model(kind)[0]
    alone = plain["embed"][TOKENS].copy()
    if kind == "halting":
      alone[..., -1] = 0
    want = normed(alone) * plain["final_norm"]["scale"] @ plain["unembed"]
    np.testing.assert_allclose(closed, want, rtol=1e-9, atol=1e-11)
    assert np.abs(run(params, 0.0, 1.0).logits - logits).max() > 0.01
    # Rows by blocks see the keys that the whole pass sees.
    alpha = sinkjax.capture(f, {"p": ("pattern", lambda p: sink_score(p))})
    want = jax.jit(alpha)(params, tokens).trace["p"]
    statistics = {"alpha": rows.sink_score()}
    got = streaming.stream_statistics(f, statistics, block=4)(params, tokens)
    np.testing.assert_allclose(got.trace["alpha"], want, rtol=1e-6, atol=1e-9)


@functools.cache
def stepwise(kind, policy):
  return jax.jit(advance(model(kind)[1], policy))


def fed(kind, policy, params, tokens):
  """[T, V] logits of one text, one token at a time."""
  cache, found = init_cache(model(kind)[1], policy), []
  for token in tokens:
    given = jnp.asarray([[token]])
    logits, cache = stepwise(kind, policy)(params, given, cache)
    found.append(np.asarray(logits)[0, 0])
  return np.array(found)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_gives_the_same_and_really_skips(kind):
  """What a skipped layer would need is made NaN, and nothing notices."""
  params, cfg = model(kind)
  policy = kv_policy.full(LENGTH, chunk=1)
  with jax.enable_x64(True):
    for row in range(2):
      got = fed(kind, policy, params, TOKENS[row])
      np.testing.assert_allclose(
        got, watched(kind)[0][row], rtol=1e-9, atol=1e-11
      )
    # All of a text's tokens leave layer 1 out.
    blocks = jax.tree.map(np.copy, params["blocks"])
    if kind == "halting":
      blocks["depth"]["halt"]["bias"][0] = 30.0
    else:
      blocks["depth"]["predictor"]["bias"][1] = -90.0
    closed = {**params, "blocks": blocks}
    want = fed(kind, policy, closed, TOKENS[0])
    for matrix in (
      blocks["attn"]["o"],
      blocks["attn"]["q"],
      blocks["mlp"]["up"],
    ):
      matrix["kernel"][1] = np.nan
    got = fed(kind, policy, closed, TOKENS[0])
    np.testing.assert_array_equal(got, want)
    # A whole text computes the layer, and multiplies it by 0.
    whole = jax.jit(sinkjax.forward(cfg))(closed, jnp.asarray(TOKENS[:1]))
    assert np.isnan(whole.logits).all()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_same_without_a_cache(kind):
  params, cfg = model(kind)
  prompt, count = [3, 1, 4], 12
  with jax.enable_x64(True):
    policy = kv_policy.full(len(prompt) + count, chunk=4)
    got = list(generate(cfg, params, prompt, policy=policy, max_tokens=count))
    run, ids = jax.jit(sinkjax.forward(cfg)), list(prompt)
    for _ in range(count):
      padded = jnp.asarray([ids + [0] * (len(prompt) + count - len(ids))])
      ids.append(int(run(params, padded).logits[0, len(ids) - 1].argmax()))
  assert got == ids[len(prompt) :] and len(set(got)) > 2


@pytest.mark.thorough
def test_a_window_drops_what_took_the_layer_too():
  """Slots are used again: their flags must be those of the new tokens."""
  params, cfg = model("routed")
  one = cfg.replace(n_layers=2)
  params = {
    **params,
    "blocks": jax.tree.map(lambda leaf: leaf[:2], params["blocks"]),
  }
  policy = kv_policy.window(4, chunk=1)
  with jax.enable_x64(True):
    step, cache = jax.jit(advance(one, policy)), init_cache(one, policy)
    found = []
    for token in TOKENS[0]:
      logits, cache = step(params, jnp.asarray([[token]]), cache)
      found.append(logits[0, 0])
    # A window in every layer is the model with local layers.
    local = one.replace(window=4, local_layers=(True, True))
    run = jax.jit(sinkjax.forward(local))
    want = run(params, jnp.asarray(TOKENS[:1])).logits[0]
    np.testing.assert_allclose(np.array(found), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_and_the_folder_keep_it(kind, tmp_path):
  params, cfg = model(kind)
  cfg = cfg.replace(dtype="float32")
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  assert cfg.to_dict()["depth"] == kind and "depth" not in BASE.to_dict()
  assert sinkjax.ModelConfig.from_dict(cfg.to_dict()) == cfg
  orbax_io.save(tmp_path / "model", params, cfg)
  found = sinkjax.load(tmp_path / "model")
  assert found.cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, found.params, params)
  with pytest.raises(ValueError, match="depth"):
    huggingface.save(tmp_path / "hf", params, cfg.replace(positions="rope"))


def test_who_refuses_it():
  for wrong, words in (
    ({"depth": "deep"}, "depth must be one of"),
    ({"depth_share": 0.25}, "depth_share needs depth='routed'"),
    ({"depth": "routed", "depth_share": 0.0}, r"depth_share must be in \(0, 1"),
    ({"depth": "routed", "n_layers": 1}, "needs n_layers of 2 or more, got 1"),
    (
      {"depth": "halting", "stream_norms": True, "pre_norms": False},
      "depth='halting' leaves the residual stream",
    ),
  ):
    with pytest.raises(ValueError, match=words):
      BASE.replace(**wrong)
  plain = sinkjax.forward(BASE)
  with pytest.raises(ValueError, match="no.* one of a model with depth='none'"):
    sinkjax.capture(plain, {"g": ("depth_open", lambda x: x)})
  tokens = jnp.array([1, 2])
  for kind in KINDS:
    cfg = model(kind)[1].replace(dtype="float32")
    f = sinkjax.forward(cfg)
    with pytest.raises(ValueError, match=f"bounds know no tok.*depth='{kind}'"):
      layer_gains(f, {}, tokens)
    with pytest.raises(ValueError, match=f"carriers know no.*depth='{kind}'"):
      sinkjax.carriers(f, {}, tokens)
    other = next(k for k in KINDS if k != kind)
    with pytest.raises(ValueError, match=f"with depth='{kind}'"):
      sinkjax.capture(f, {"g": (SITES[other][-1], lambda x: x)})
    kv_policy.heavy_hitters(4, 4).check(model("halting")[1])
  with pytest.raises(ValueError, match="depth='routed' hides some of them"):
    kv_policy.heavy_hitters(4, 4).check(model("routed")[1])
  assert sinkjax.edited(model("routed")[1], "scale site=depth_open by=0")
