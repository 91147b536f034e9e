"""Gradients by token and layer: finite differences and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.gradient_norms import gradient_norms
from sinkjax.analysis.loss_sensitivity import loss_sensitivity
from sinkjax.analysis.sink_profile import token_nll

CFG = sinkjax.TINY.replace(
  d_model=12, n_layers=2, head_dim=6, d_ff=14, dtype="float64"
)
IDS = jnp.array([3, 1, 4, 1, 5])


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def model(cfg, seed=0):
  leaves, tree = jax.tree.flatten(sinkjax.param_shapes(cfg))
  rng = np.random.default_rng(seed)
  made = [
    jnp.asarray(rng.normal(size=x.shape) * x.shape[-1] ** -0.5) for x in leaves
  ]
  return sinkjax.forward(cfg), jax.tree.unflatten(tree, made)


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("changes", "edits"),
  [
    ({}, {}),
    (
      {"norm": "layer", "parallel_residual": True},
      {
        "attn_in": sinkjax.scale(2.0),
        "resid_pre": sinkjax.scale(0.7),
        "scores": sinkjax.knockout(0, from_layer=1),
      },
    ),
    pytest.param(
      {"post_norms": True, "pre_norms": False}, {}, marks=pytest.mark.slow
    ),
  ],
)
def test_gradients_are_finite_differences(changes, edits):
  f, params = model(CFG.replace(**changes))
  g = sinkjax.intervene(f, edits)
  found = gradient_norms(g, params, IDS)
  token, step = 2, 1e-5
  places = {
    "resid_pre": (1, found.stream[1]),
    "resid_post": (1, found.stream[2]),
    "attn_in": (1, found.attn_in[1]),
    "mlp_in": (0, found.mlp_in[0]),
  }

  def loss(unit):
    """With a step in one coordinate at one of the sites, [4, D]."""
    moved = dict(edits)
    for (site, (layer, _)), mine in zip(places.items(), unit, strict=True):
      shift = jnp.zeros((1, len(IDS), CFG.d_model)).at[0, token].set(mine)
      own = edits.get(site, sinkjax.scale(1.0))
      moved[site] = sinkjax.chain(own, sinkjax.add(shift, layers=layer))
    run = sinkjax.intervene(f, moved)
    return token_nll(run(params, IDS[None]).logits, IDS[None])[0]

  shape = (len(places), CFG.d_model)
  units = step * np.eye(np.prod(shape)).reshape(-1, *shape)
  both = np.concatenate([units, -units])
  up, down = jax.jit(lambda u: jax.lax.map(loss, u))(both).reshape(2, *shape)
  want = np.linalg.norm((up - down) / (2 * step), axis=-1)
  for (site, (_, got)), norm in zip(places.items(), want, strict=True):
    assert got[token] == pytest.approx(norm, rel=1e-6), site
  assert not found.stream[:, -1].any() and found.stream[:, :-1].all()
  want = loss_sensitivity(g, params, IDS, source=("resid_pre", 1))
  np.testing.assert_allclose(found.stream[1], want, rtol=1e-9)


def norm_back(x, gradient, scale, eps):
  """J^T g of an RMS norm, written out."""
  r = np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  g = gradient * scale
  along = (x * g).sum(-1, keepdims=True) / (x.shape[-1] * r**2)
  return (g - x * along) / r


@pytest.mark.thorough
def test_what_comes_back_through_a_norm():
  """The formula of the docstring, its bound, and large tokens' small factor."""
  f, params = model(CFG)
  size = np.array([100.0, 1, 1, 1, 1])[None, :, None]
  large = {"resid_pre": sinkjax.scale(size, layers=1)}
  g = sinkjax.intervene(f, large)
  found = gradient_norms(g, params, IDS)
  sites = ("resid_pre", "resid_mid")
  watched = sinkjax.capture(g, {site: (site, lambda x: x) for site in sites})
  trace = jax.jit(watched)(params, IDS[None]).trace

  @jax.jit
  def gradients(shifts):
    moved = {k: sinkjax.add(x, layers=1) for k, x in shifts.items()}
    run = sinkjax.intervene(g, moved)
    return token_nll(run(params, IDS[None]).logits, IDS[None])[0]

  zero = jnp.zeros((1, len(IDS), CFG.d_model))
  grads = jax.grad(gradients)({"attn_in": zero, "mlp_in": zero})
  for site, part in (("resid_pre", "attn"), ("resid_mid", "mlp")):
    x = np.asarray(trace[site][1, 0])
    scale = np.asarray(params["blocks"][f"{part}_norm"]["scale"][1])
    back = norm_back(x, np.asarray(grads[f"{part}_in"][0]), scale, CFG.norm_eps)
    got = getattr(found, f"{part}_through")[1]
    np.testing.assert_allclose(got, np.linalg.norm(back, axis=-1), rtol=1e-9)
    factor = getattr(found, f"{part}_factor")[1]
    r = np.sqrt((x**2).mean(-1) + CFG.norm_eps)
    np.testing.assert_allclose(factor, 1 / r, rtol=1e-9)
    most = np.abs(scale).max() * getattr(found, f"{part}_in")[1] * factor
    assert (got <= most * (1 + 1e-9)).all() and (got[:-1] > 0).all()
  # A token a hundred times as large gets a hundredth of what it is read for.
  share = found.attn_through[1, :-1] / found.attn_in[1, :-1]
  assert share[0] < 0.1 * share[1:].min()


def test_refusals():
  f, params = model(CFG)
  with pytest.raises(ValueError, match="one text .T. of at least 2"):
    gradient_norms(f, params, IDS[None])
  with pytest.raises(ValueError, match="parameters in memory"):
    gradient_norms(f, object(), IDS)
