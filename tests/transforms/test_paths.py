"""Carriers of the exact map against stop_gradient surgery, float64."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms.edits import pytree_dataclass
from sinkjax.transforms.jacobian_engine import SelfCheckError
from sinkjax.transforms.path_steps import CARRIERS, WHOLES, Parts
from sinkjax.transforms.paths import Sums, carriers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import BASE, model, quickly_compiled, text

CFG = BASE.replace(n_layers=2, dtype="float64")
IDS = text(4)
SITES = ("q", "k", "v", "z", "attn_out", "mlp_out")


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True), quickly_compiled():
    yield


@pytree_dataclass
class Open:
  """Lets derivatives through where `where`, [L, H], is true."""

  where: jax.Array

  def __call__(self, value, layer):
    mine = self.where[layer]
    if value.ndim == 4 and value.shape[2] == len(mine):  # a head each
      mine = mine[:, None]
    else:
      mine = mine[0]
    return jnp.where(mine, value, jax.lax.stop_gradient(value))


def surgery(cfg, layer):
  """{name: which sites of one layer, [H] each, let derivatives through}."""
  every, none = np.ones(cfg.n_heads, bool), np.zeros(cfg.n_heads, bool)
  alone = {"attn_out": none, "mlp_out": none}
  made = {"residual": alone, "residual and mlp": {"attn_out": none}}
  for h in range(cfg.n_heads):
    only = {"z": np.arange(cfg.n_heads) == h}
    past = {**only, "mlp_out": none}
    made[f"values {h}"] = {**past, "q": none, "k": none}
    made[f"scores {h}"] = {**past, "v": none}
    made[f"all of {h}"] = only
  # Sites that are not named, and other layers, let everything through.
  flags = {site: [] for site in SITES}
  for closed in made.values():
    for site in SITES:
      of_layers = np.ones((cfg.n_layers, cfg.n_heads), bool)
      of_layers[layer] = closed.get(site, every)
      flags[site].append(of_layers)
  return list(made), {site: np.stack(x) for site, x in flags.items()}


def maps(f, params, edits, flags, target="resid_post"):
  """[n, T, D, T, D] maps from embed to target, derivatives let through."""

  def one(flags):
    def y(shift):
      opened = {site: Open(where) for site, where in flags.items()}
      both = {
        site: sinkjax.chain(
          *([edits[site]] if site in edits else []),
          *([opened[site]] if site in opened else []),
        )
        for site in {*edits, *opened}
      }
      both["embed"] = sinkjax.chain(
        *([edits["embed"]] if "embed" in edits else []),
        sinkjax.add(shift[None]),
      )
      g = sinkjax.intervene(f, both)
      watched = sinkjax.capture(g, {"y": (target, lambda x: x)})
      found = watched(params, IDS[None]).trace["y"]
      return found[0] if target == "final" else found[-1, 0]

    return jax.jacfwd(y)(jnp.zeros((len(IDS), f.cfg.d_model)))

  return jax.jit(lambda flags: jax.lax.map(one, flags))(flags)


def by_surgery(f, params, edits, target="resid_post"):
  """([{carrier: [(H,) T, D, T, D]} of each layer], [T, D, T, D])."""
  layers, heads = range(f.cfg.n_layers), range(f.cfg.n_heads)
  made = [surgery(f.cfg, layer) for layer in layers]
  names = [name for name, _ in made]
  flags = {
    site: np.concatenate(
      [*(x[site] for _, x in made), np.ones_like(made[0][1][site][:1])]
    )
    for site in SITES
  }
  *parts, whole = np.asarray(maps(f, params, edits, flags, target))
  found = []
  for layer in layers:
    count = len(names[layer])
    some = parts[layer * count : (layer + 1) * count]
    at = dict(zip(names[layer], some, strict=True))
    residual = at["residual"]
    values = np.stack([at[f"values {h}"] - residual for h in heads])
    scores = np.stack([at[f"scores {h}"] - residual for h in heads])
    both = np.stack([at[f"all of {h}"] for h in heads])
    through = both - at["residual and mlp"] - values - scores
    carried = {
      "residual": residual,
      "mlp": at["residual and mlp"] - residual,
      "values": values,
      "scores": scores,
      "mlp_of_head": through,
      "head": values + scores + through,
      "attention": (values + scores).sum(0),
      "mlp_of_attention": through.sum(0),
    }
    found.append(carried)
  return found, whole


def agrees(got, want, whole):
  """Norms and shares of every carrier, against the blocks themselves."""
  size = np.sqrt((whole**2).sum((1, 3)))
  np.testing.assert_allclose(got.whole, size, rtol=1e-9, atol=1e-12)
  safe = np.where(size > 0, size, 1) ** 2
  for layer, parts in enumerate(want):
    for name, part in parts.items():
      norm = np.sqrt((part**2).sum((-3, -1)))
      share = (part * whole).sum((-3, -1)) / safe
      # Differences of whole maps lose digits where a carrier is small.
      close = {"rtol": 1e-7, "atol": 1e-9 * size.max(), "err_msg": name}
      np.testing.assert_allclose(got.norms[name][layer], norm, **close)
      close |= {"atol": 1e-7}
      np.testing.assert_allclose(got.shares[name][layer], share, **close)


def check(f, params, edits=None, target="resid_post"):
  edits = edits or {}
  g = sinkjax.intervene(f, edits) if edits else f
  got = carriers(g, params, IDS, target=target)
  assert got.layers == list(range(f.cfg.n_layers))
  agrees(got, *by_surgery(f, params, edits, target))
  return got


def summed(got):
  """[L, R, C] shares of all carriers."""
  shape = (len(got.layers), -1, *got.whole.shape)
  return sum(got.shares[n].reshape(shape).sum(1) for n in CARRIERS)


@pytest.mark.thorough
def test_carriers_are_what_surgery_leaves():
  f, params = model(CFG)
  got = check(f, params)
  seen = np.tri(len(IDS), dtype=bool)
  np.testing.assert_allclose(summed(got)[:, seen], 1, rtol=1e-9)
  assert not summed(got)[:, ~seen].any() and got.error.max() < 1e-12
  assert all((x[..., ~seen] == 0).all() for x in got.norms.values())
  # Every carrier has a part in it, so that none is compared with nothing.
  for name in CARRIERS:
    assert (got.norms[name][..., seen].max((0, -1)) > 1e-3).all(), name


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
  "changes",
  [
    {
      "parallel_residual": True,
      "norm": "layer",
      "sink_logit": True,
      "gate": "value",
      "qkv_bias": True,
    },
    {
      "post_norms": True,
      "residual_scale": 0.5,
      "qk_norm": True,
      "n_experts": 3,
      "experts_per_token": 2,
      "attn_softcap": 5.0,
    },
    {"stream_norms": True, "pre_norms": False},
    {"kv_rank": 5, "v_dim": 3, "rope_dim": 2, "n_kv_heads": 4},
    {"attn_bias": "kv", "gated_mlp": False, "positions": "alibi"},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_every_kind_of_layer(changes):
  f, params = model(CFG.replace(**changes))
  got = check(f, params)
  if changes.get("parallel_residual"):
    assert not got.norms["mlp_of_head"].any()


EDITS = {
  "of each token": {
    "resid_pre": sinkjax.scale(1.5),
    "scores": sinkjax.knockout(0, from_layer=1),
    "z": sinkjax.scale(0.5),
    "attn_out": sinkjax.scale(2.0),
    "mlp_act": lambda x, layer: x * (1 + jnp.sin(x)),
    "resid_post": sinkjax.scale(3.0),
  },
  "held": {"pattern": sinkjax.hold()},
  "across tokens": {
    "mlp_act": lambda x, layer: jnp.cumsum(x, 1),
    "attn_in": lambda x, layer: jnp.cumsum(x, 1),
  },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EDITS)
def test_edits_are_in_the_carriers(name):
  f, params = model(CFG)
  got = check(f, params, EDITS[name], target="final")
  if name == "held":
    assert not got.norms["scores"].any()


@pytest.mark.thorough
def test_a_linear_layer_in_closed_form():
  """One layer of uniform attention and a linear MLP: J = (I + M)(I + A)."""
  # What a norm divides by is its epsilon, and scores are zero.
  cfg = CFG.replace(n_layers=1, norm_eps=1e16, mlp_bias=True)
  f, params = model(cfg)
  block = params["blocks"]
  attn, mlp = block["attn"], block["mlp"]
  for norm in ("attn_norm", "mlp_norm"):
    block[norm]["scale"] = jnp.full_like(block[norm]["scale"], 1e8)
  attn["q"]["kernel"] = jnp.zeros_like(attn["q"]["kernel"])
  mlp["gate"]["kernel"] = jnp.zeros_like(mlp["gate"]["kernel"])
  mlp["gate"]["bias"] = jnp.ones_like(mlp["gate"]["bias"])
  got = carriers(f, params, IDS)

  up, down, out, value = (
    np.asarray(x["kernel"][0])
    for x in (mlp["up"], mlp["down"], attn["o"], attn["v"])
  )
  m = (up @ down).T / (1 + np.exp(-1.0))
  group, heads = cfg.group_size, range(cfg.n_heads)
  a = np.stack([(value[:, h // group] @ out[h]).T for h in heads])
  length, eye = len(IDS), np.eye(cfg.d_model)
  weights = np.tri(length) / np.arange(1, length + 1)[:, None]

  def at_itself(matrix):
    return np.einsum("ts,ij->tisj", np.eye(length), matrix)

  def mixed(matrices):
    return np.einsum("ts,hij->htisj", weights, matrices)

  want = {
    "residual": at_itself(eye),
    "mlp": at_itself(m),
    "values": mixed(a),
    "scores": np.zeros_like(mixed(a)),
    "mlp_of_head": mixed(m @ a),
  }
  whole = want["residual"] + want["mlp"]
  whole = whole + mixed(a).sum(0) + mixed(m @ a).sum(0)
  agrees(got, [want], whole)


@pytest.mark.thorough
def test_some_rows_and_columns_and_a_small_budget():
  f, params = model(CFG)
  every = carriers(f, params, IDS)
  rows, cols = [3, 1], [2, 0, 1]
  calls = []
  # So little that sources and targets go one by one.
  some = carriers(
    *(f, InMemory(CFG, params), IDS),
    rows=rows,
    cols=cols,
    budget_bytes=32_000,
    progress=lambda *done: calls.append(done),
  )
  for part in ("norms", "shares"):
    for name, values in getattr(every, part).items():
      want = values[..., rows, :][..., cols]
      got = getattr(some, part)[name]
      np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
  assert calls[-1][0] == calls[-1][1] > 2 * CFG.n_layers
  inner = carriers(f, params, IDS, source=("resid_post", 0))
  assert inner.layers == [1]
  np.testing.assert_allclose(summed(inner)[0, 2, :3], 1, rtol=1e-9)


def test_refusals():
  f, params = model(CFG)
  for kw, message in (
    ({"source": "resid_mid"}, "source must be at one of .'embed', 'resid_post"),
    ({"target": ("resid_mid", 1)}, "target must be at one of"),
    ({"source": ("resid_post", 1)}, "no layer lies between"),
    ({"rows": [9]}, "token 9 is outside"),
  ):
    with pytest.raises(ValueError, match=message):
      carriers(f, params, IDS, **kw)
  gated = sinkjax.forward(CFG.replace(gate="head"))
  with pytest.raises(ValueError, match="no gate on what heads write.*'head'"):
    carriers(gated, params, IDS)
  half = sinkjax.forward(CFG.replace(dtype="bfloat16"))
  with pytest.raises(ValueError, match="float32 or float64"):
    carriers(half, params, IDS)


def test_a_sum_that_is_not_the_map_is_refused():
  sums = Sums(CFG, [0], (1, 1))
  one = np.ones((1, 1))
  each = dict.fromkeys(CARRIERS + WHOLES, one)
  sums.add(0, [0], [0], Parts(each, each, 1e-12 * one, one))
  with pytest.raises(SelfCheckError, match="layer 0 the carriers differ"):
    sums.result()
