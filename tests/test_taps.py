"""The laws of taps: the contract between analysis and model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax import taps as taps_module
from sinkjax.models import blocks, transformer

STACKED = [site for site, spec in sinkjax.SITES.items() if spec.stacked]


def observe(*sites):
  return {site: (site, lambda x: x) for site in sites}


def scaled(cfg, scan):
  return sinkjax.forward(cfg.replace(scan_layers=scan))


@pytest.fixture(params=[True, False], ids=["scan", "unroll"], scope="module")
def model(request, tiny):
  params, cfg = tiny
  # Compiled as a whole: op by op, each call would compile its loop again.
  return params, cfg, jax.jit(scaled(cfg, request.param))


def test_no_taps_no_operations(tiny, tokens, monkeypatch):
  params, cfg = tiny

  def jaxpr():
    f = sinkjax.forward(cfg)
    return str(jax.make_jaxpr(lambda p, t: f(p, t).logits)(params, tokens))

  with_taps = jaxpr()

  class Untapped(taps_module.Tapper):
    def __init__(self, taps, layer):
      del taps, layer

    def __call__(self, site, value):
      return value

    def trace(self):
      return {}

  monkeypatch.setattr(blocks, "Tapper", Untapped)
  monkeypatch.setattr(transformer, "Tapper", Untapped)
  assert jaxpr() == with_taps


def test_unasked_trace_is_empty(model, tokens):
  params, _, f = model
  assert f(params, tokens).trace == {}


IDENTITY = sinkjax.chain(sinkjax.scale(1.0), sinkjax.add(0.0))


@pytest.fixture(scope="module")
def jitted(tiny):
  return jax.jit(sinkjax.forward(tiny[1]))


@pytest.mark.parametrize("site", sinkjax.SITES)
def test_identity_edits(tiny, jitted, tokens, site):
  plain = jitted(tiny[0], tokens).logits
  taps = sinkjax.Taps({site: IDENTITY})
  np.testing.assert_array_equal(
    jitted(tiny[0], tokens, taps=taps).logits, plain
  )


def test_identity_edits_everywhere(model, tokens):
  params, _, f = model
  taps = sinkjax.Taps(dict.fromkeys(sinkjax.SITES, IDENTITY))
  plain = f(params, tokens).logits
  np.testing.assert_array_equal(f(params, tokens, taps=taps).logits, plain)


@pytest.mark.parametrize("site", sinkjax.SITES)
def test_every_edit_is_felt(tiny, jitted, tokens, site):
  params, _ = tiny
  # One compiled program: which of the factors is not 1 is an array's value.
  factors = dict.fromkeys(sinkjax.SITES, 1.0) | {site: 1.5}
  edits = {name: sinkjax.scale(factor) for name, factor in factors.items()}
  edited = jitted(params, tokens, taps=sinkjax.Taps(edits))
  plain = jitted(params, tokens).logits
  assert float(jnp.abs(edited.logits - plain).max()) > 1e-3


def test_observers_see_the_edited_values(model, tokens):
  """Of each site its own number, which it cannot have from the site before."""
  params, _, f = model
  values = {site: 0.25 + i / 64 for i, site in enumerate(sinkjax.SITES)}
  edits = {site: sinkjax.replace(value) for site, value in values.items()}
  h = sinkjax.capture(sinkjax.intervene(f, edits), observe(*sinkjax.SITES))
  trace = h(params, tokens).trace
  for site, value in values.items():
    assert np.all(np.asarray(trace[site]) == value), site


@pytest.mark.parametrize(
  "site", quick(STACKED, "resid_pre", "pattern", "v", "mlp_act")
)
def test_patching_a_clean_run_into_a_corrupt_one(model, tokens, site):
  """The clean activations at every layer of one site and the clean rest."""
  params, _, f = model
  clean = sinkjax.capture(f, observe(site))(params, tokens)
  g = sinkjax.intervene(f, {site: sinkjax.patch(clean.trace[site])})
  np.testing.assert_array_equal(g(params, tokens).logits, clean.logits)


def test_patching_residuals_restores_clean_logits(model, tokens):
  params, _, f = model
  clean = sinkjax.capture(f, observe("resid_post"))(params, tokens)
  corrupt = tokens.at[:, 3].add(1) % 64
  assert float(jnp.abs(f(params, corrupt).logits - clean.logits).max()) > 1e-3
  g = sinkjax.intervene(
    f, {"resid_post": sinkjax.patch(clean.trace["resid_post"])}
  )
  np.testing.assert_array_equal(g(params, corrupt).logits, clean.logits)


def test_patch_of_positions_leaves_earlier_tokens(model, tokens):
  params, _, f = model
  other = sinkjax.capture(f, observe("resid_pre"))(params, (tokens + 7) % 64)
  edit = sinkjax.patch(other.trace["resid_pre"], positions=[5], layers=1)
  out = sinkjax.intervene(f, {"resid_pre": edit})(params, tokens).logits
  diff = np.abs(np.asarray(out - f(params, tokens).logits)).max(axis=(0, 2))
  assert np.all(diff[:5] == 0)
  assert np.all(diff[5:] > 0)


def test_scan_and_unrolled_agree(tiny, tokens):
  params, cfg = tiny
  edits = {"scores": sinkjax.knockout(0, from_layer=1)}
  outs = [
    sinkjax.capture(
      sinkjax.intervene(jax.jit(scaled(cfg, scan)), edits),
      observe(*sinkjax.SITES),
    )(params, tokens)
    for scan in (True, False)
  ]
  assert set(outs[0].trace) == set(sinkjax.SITES)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *outs)


def test_sites_are_what_they_say(model, tokens):
  """Residual arithmetic, scores from q and k, z from pattern and v."""
  params, cfg, f = model
  t = sinkjax.capture(f, observe(*sinkjax.SITES))(params, tokens).trace

  def close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5)

  close(t["resid_mid"], t["resid_pre"] + t["attn_out"])
  close(t["resid_post"], t["resid_mid"] + t["mlp_out"])
  close(t["resid_pre"][1:], t["resid_post"][:-1])
  close(t["resid_pre"][0], t["embed"])
  k, v = (jnp.repeat(t[n], cfg.group_size, axis=3) for n in "kv")
  scores = jnp.einsum("lbthk,lbshk->lbhts", t["q"], k) * cfg.score_scale
  close(t["scores"], scores)
  mask = jnp.tril(jnp.ones((12, 12), bool))
  close(t["pattern"], jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1))
  close(t["z"], jnp.einsum("lbhts,lbshk->lbthk", t["pattern"], v))
  blocks = params["blocks"]
  for norm, read, name in (
    ("attn_norm", "resid_pre", "attn_in"),
    ("mlp_norm", "resid_mid", "mlp_in"),
  ):
    root = jnp.sqrt(jnp.mean(t[read] ** 2, -1, keepdims=True) + cfg.norm_eps)
    close(t[name], t[read] / root * blocks[norm]["scale"][:, None, None])
  values = jnp.einsum(
    "lbtd,ldnk->lbtnk", t["attn_in"], blocks["attn"]["v"]["kernel"]
  )
  close(t["v"], values)
  gate, up = (
    jnp.einsum("lbtd,ldf->lbtf", t["mlp_in"], blocks["mlp"][name]["kernel"])
    for name in ("gate", "up")
  )
  close(t["mlp_act"], jax.nn.silu(gate) * up)
  down = blocks["mlp"]["down"]["kernel"]
  close(t["mlp_out"], jnp.einsum("lbtf,lfd->lbtd", t["mlp_act"], down))
  for site, value in t.items():
    axes = sinkjax.SITES[site].axes.split()
    assert value.ndim == len(axes) + sinkjax.SITES[site].stacked


def test_layer_is_traced_and_right(model, tokens):
  params, cfg, f = model
  g = sinkjax.intervene(f, {"mlp_out": lambda x, layer: x * 0 + layer})
  seen = sinkjax.capture(g, observe("mlp_out"))(params, tokens)
  for layer in range(cfg.n_layers):
    assert np.all(np.asarray(seen.trace["mlp_out"][layer]) == layer)


def test_new_arrays_do_not_retrace(tiny, tokens):
  params, cfg = tiny
  f, traces = sinkjax.forward(cfg), []

  @jax.jit
  def run(edit):
    traces.append(1)
    return sinkjax.intervene(f, {"scores": edit})(params, tokens).logits

  first = run(sinkjax.knockout(0, from_layer=0))
  second = run(sinkjax.knockout(3, from_layer=2))
  assert len(traces) == 1
  assert float(jnp.abs(first - second).max()) > 1e-4


@pytest.mark.thorough
def test_vmap_over_an_edits_leaf(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)

  @jax.jit
  def run(key):
    edit = sinkjax.knockout(key, from_layer=1)
    return sinkjax.intervene(f, {"scores": edit})(params, tokens).logits

  swept = jax.vmap(run)(jnp.arange(4))
  for key in range(4):
    np.testing.assert_allclose(swept[key], run(key), rtol=1e-4, atol=1e-4)
    if key:
      assert float(jnp.abs(swept[key] - swept[0]).max()) > 1e-2


def test_gradient_with_respect_to_an_edit(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)

  @jax.jit
  def loss(factor):
    edit = sinkjax.scale(factor, layers=1)
    logits = sinkjax.intervene(f, {"attn_out": edit})(params, tokens).logits
    return jnp.mean(logits**2)

  step = 1e-2
  numeric = (loss(1.0 + step) - loss(1.0 - step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(loss)(1.0), numeric, rtol=2e-3)


@pytest.mark.thorough
def test_jacfwd_through_an_edit_is_causal(tiny):
  params, cfg = tiny
  tokens = jnp.arange(6)[None]
  f = sinkjax.forward(cfg)
  width = (1, 6, cfg.d_model)

  def run(shift):
    edits = {"embed": sinkjax.add(shift), "scores": sinkjax.knockout(1)}
    g = sinkjax.capture(sinkjax.intervene(f, edits), observe("resid_post"))
    return g(params, tokens).trace["resid_post"][-1]

  jac = np.asarray(jax.jit(jax.jacfwd(run))(jnp.zeros(width)))[0, :, :, 0]
  norms = np.sqrt((jac**2).sum(axis=(1, 3)))
  assert np.all(norms[np.triu_indices(6, 1)] == 0)
  assert np.all(np.diag(norms) > 0)
  assert np.all(norms[2:, 1] == 0)  # the hidden key reaches nobody
  assert np.all(norms[3:, 0] > 0)


def test_observer_of_two_sites(model, tokens):
  params, cfg, f = model
  h = sinkjax.capture(
    f, {"mass": (("pattern", "v"), lambda a, v: a[..., 0].sum() + v.sum())}
  )
  t = sinkjax.capture(h, observe("pattern", "v"))(params, tokens).trace
  want = t["pattern"][..., 0].sum((1, 2, 3)) + t["v"].sum((1, 2, 3, 4))
  np.testing.assert_allclose(t["mass"], want, rtol=1e-5)


def test_scores_edits_cannot_break_causality(model, tokens):
  params, _, f = model
  g = sinkjax.capture(f, observe("pattern"))
  for value in (1e4, -1e30, 1e30):
    taps = sinkjax.Taps({"scores": sinkjax.replace(value)})
    t = g(params, tokens, taps=taps).trace
    pattern = np.asarray(t["pattern"])
    assert np.all(pattern[..., np.triu(np.ones((12, 12)), 1) > 0] == 0)
    np.testing.assert_allclose(pattern[..., 5, :6], 1 / 6, rtol=1e-5)


def test_unknown_site_lists_the_sites(tiny):
  f = sinkjax.forward(tiny[1])
  for make in (
    lambda: sinkjax.intervene(f, {"patern": sinkjax.scale(1.0)}),
    lambda: sinkjax.capture(f, {"x": ("patern", lambda x: x)}),
  ):
    with pytest.raises(ValueError, match="unknown site 'patern'.*'pattern'"):
      make()


def test_duplicates_are_errors(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  g = sinkjax.intervene(f, {"z": sinkjax.scale(1.0)})
  with pytest.raises(ValueError, match="duplicate edit 'z'"):
    sinkjax.intervene(g, {"z": sinkjax.add(1.0)})
  with pytest.raises(ValueError, match="duplicate edit 'z'"):
    g(params, tokens, taps=sinkjax.Taps({"z": sinkjax.add(1.0)}))
  with pytest.raises(ValueError, match="duplicate observer 'z'"):
    sinkjax.capture(sinkjax.capture(f, observe("z")), observe("z"))


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: sinkjax.Taps({"z": 3}), TypeError, "must be callable"),
    (lambda: sinkjax.Taps({}, {"a": "z"}), TypeError, "must be .site, reducer"),
    (lambda: sinkjax.Taps({}, {"a": ("z", 1)}), TypeError, "must be callable"),
    (lambda: sinkjax.Taps({}, {"a": ((), abs)}), ValueError, "no site"),
    (
      lambda: sinkjax.Taps({}, {"a": (("z", "final"), abs)}),
      ValueError,
      "inside and outside",
    ),
  ],
)
def test_bad_taps(make, error, message):
  with pytest.raises(error, match=message):
    make()


def test_wrong_shape_names_both(tiny, tokens):
  params, cfg = tiny
  g = sinkjax.intervene(sinkjax.forward(cfg), {"z": lambda z, layer: z[..., 0]})
  with pytest.raises(ValueError, match=r"'z' returned shape \(2, 12, 4\), exp"):
    g(params, tokens)


def test_taps_cross_jit_as_an_argument(tiny, tokens):
  params, cfg = tiny
  f = jax.jit(sinkjax.forward(cfg))
  taps = taps_module.Taps(
    {"z": sinkjax.scale(jnp.float32(0.5)), "q": abs_edit},
    {"a": ("pattern", sinkjax.sink_score)},
  )
  leaves, tree = jax.tree.flatten(taps)
  assert len(leaves) == 1
  assert jax.tree.unflatten(tree, leaves).observers == taps.observers
  assert f(params, tokens, taps=taps).trace["a"].shape == (3, 2, 4)


def abs_edit(value, layer):
  del layer
  return jnp.abs(value)
