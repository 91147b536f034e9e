"""Experts: a layer in float64 by hand, its slopes, sites and Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.inference import quantize_linear
from sinkjax.models.mlp import Experts, Mlp, routing
from sinkjax.taps import Tapper, Taps
from sinkjax.transforms.layer_jacobian import fold_layer
from sinkjax.transforms.residual import context_of
from sinkjax.transforms.streaming import stream_statistics

BASE = sinkjax.TINY.replace(
  d_model=8, n_layers=2, d_ff=6, n_experts=4, experts_per_token=2
)
OPTIONS = {
  "plain": {},
  "one": {"experts_per_token": 1},
  "sum": {"norm_topk": True, "mlp_bias": True, "gated_mlp": False},
  "shared": {"shared_d_ff": 5, "mlp_bias": True},
  "clamped": {
    "norm_topk": True,
    "router_bias": True,
    "activation": "quick_gelu",
    "mlp_clamp": 1.0,
    "up_offset": 1.0,
  },
  "grouped": {
    "n_experts": 12,
    "experts_per_token": 3,
    "router_score": "sigmoid",
    "choice_bias": True,
    "router_groups": 4,
    "groups_per_token": 2,
    "norm_topk": True,
    "routed_scale": 2.5,
    "shared_d_ff": 5,
    "shared_open": False,
  },
  "grouped softmax": {
    "n_experts": 6,
    "router_groups": 2,
    "choice_bias": True,
    "routed_scale": 0.5,
  },
}


def logistic(x):
  return 1 / (1 + np.exp(-x))


def one_mlp(cfg, w, kind, x, expert=()):
  """The output of one expert, or of the shared one."""

  def linear(part, x):
    at = w[f"{kind}_{part}"]
    out = x @ at["kernel"][expert]
    return out + at["bias"][expert] if "bias" in at else out

  if f"{kind}_gate" not in w:
    up = linear("up", x)
    return linear("down", up * logistic(up))
  gate, up = linear("gate", x), linear("up", x)
  slope = 1.0
  if cfg.mlp_clamp is not None:
    limit, slope = cfg.mlp_clamp, 1.702
    gate, up = (
      np.minimum(gate, limit),
      np.maximum(np.minimum(up, limit), -limit),
    )
  hidden = gate * logistic(slope * gate) * (up + cfg.up_offset)
  return linear("down", hidden)


def by_hand(cfg, w, x):
  """What the experts give [T, D], token by token."""
  out = np.zeros_like(x)
  for t, token in enumerate(x):
    logits = token @ w["router"]["kernel"] + w["router"].get("bias", 0.0)
    share = np.exp(logits) / np.exp(logits).sum()
    if cfg.router_score == "sigmoid":
      share = logistic(logits)
    chosen = choice(cfg, share + w.get("choice_bias", 0.0))
    total = share[chosen].sum() if cfg.norm_topk else 1
    for e in chosen:
      part = cfg.routed_scale * share[e] / total
      out[t] += part * one_mlp(cfg, w, "expert", token, e)
    if cfg.shared_d_ff:
      opened = 1.0
      if cfg.shared_open:
        opened = logistic(token @ w["shared_open"]["kernel"])
      out[t] += opened * one_mlp(cfg, w, "shared", token)
  return out


def choice(cfg, rank):
  """The experts of one token, group by group."""
  groups = np.arange(cfg.n_experts).reshape(cfg.router_groups, -1)
  worth = [np.sort(rank[group])[-2:].sum() for group in groups]
  best = sorted(range(len(groups)), key=lambda g: -worth[g])
  members = np.concatenate([groups[g] for g in best[: cfg.groups_per_token]])
  return members[np.argsort(-rank[members])[: cfg.experts_per_token]]


def experts(cfg):
  def run(params, x):
    module, tap, x = Experts(cfg), Tapper(Taps({}), 0), jnp.asarray(x)

    def both(module, x):
      return module.activate(*module.linear(x), tap=tap)

    return module.apply({"params": params}, x[None], method=both)[0]

  return run


def model(cfg, dtype=np.float32):
  """Parameters, far from their initialisation."""
  params = sinkjax.init_params(cfg, jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: (x + 0.5 * rng.normal(size=x.shape)).astype(dtype), params
  )


def moved(params, ways, step):
  return jax.tree.map(lambda p, d: p + step * d, params, ways)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(OPTIONS, "clamped", "grouped"))
def test_one_layer_and_its_slopes(name):
  """By hand; forward, reverse and central differences in float64."""
  cfg = BASE.replace(dtype="float64", **OPTIONS[name])
  with jax.enable_x64(True):
    w = jax.tree.map(lambda x: x[0], model(cfg, np.float64)["blocks"]["mlp"])
    rng = np.random.default_rng(1)
    x, along, onto = rng.normal(size=(3, 7, cfg.d_model))
    f = experts(cfg)
    np.testing.assert_allclose(f(w, x), by_hand(cfg, w, x), rtol=1e-12)
    ways = jax.tree.map(lambda p: rng.normal(size=p.shape), w)
    _, pushed = jax.jvp(f, (w, x), (ways, along))
    _, pull = jax.vjp(f, w, x)
    back = jax.tree.map(lambda g, d: jnp.vdot(g, d), pull(onto), (ways, along))
    forward, reverse = jnp.vdot(pushed, onto), sum(jax.tree.leaves(back))
    # No choice changes within the step, whose square is far below 1e-7.
    up, down = (
      by_hand(cfg, moved(w, ways, step), x + step * along)
      for step in (1e-6, -1e-6)
    )
    slope = np.vdot((up - down) / 2e-6, onto)
    np.testing.assert_allclose(forward, reverse, rtol=1e-12)
    np.testing.assert_allclose(forward, slope, rtol=1e-7)


@pytest.mark.thorough
def test_groups_and_the_bias_decide_who_is_chosen():
  """The hand's choice is another one without either of them."""
  cfg = BASE.replace(**OPTIONS["grouped"])
  rng = np.random.default_rng(3)
  ranks = rng.normal(size=(50, cfg.n_experts))
  free = cfg.replace(router_groups=1, groups_per_token=1)
  changed = [set(choice(cfg, r)) != set(choice(free, r)) for r in ranks]
  assert 0.2 < np.mean(changed) < 1
  logits = jnp.asarray(ranks, jnp.float32)[None]
  bias = jnp.asarray(rng.normal(size=cfg.n_experts), jnp.float32)
  with_bias = np.asarray(routing(cfg, logits, bias)) > 0
  without = np.asarray(routing(cfg, logits)) > 0
  assert np.all(with_bias.sum(-1) == 3) and np.all(without.sum(-1) == 3)
  assert 0.2 < np.mean(np.any(with_bias != without, axis=-1)) < 1


@pytest.mark.slow
def test_a_layer_without_experts_is_one_mlp():
  """Of its width, whatever the parameters are that it does not use."""
  options = {**OPTIONS["grouped"], "dense_layers": 1, "dense_d_ff": 29}
  cfg = BASE.replace(dtype="float64", **options)
  one = BASE.replace(dtype="float64", n_experts=0, d_ff=29)
  with jax.enable_x64(True):
    w = jax.tree.map(lambda x: x[0], model(cfg, np.float64)["blocks"]["mlp"])
    flat = {
      part: w[f"expert_{part}"]["kernel"].transpose(1, 0, 2).reshape(8, -1)
      for part in ("gate", "up")
    }
    kernels = {part: {"kernel": x[:, :29]} for part, x in flat.items()}
    down = w["expert_down"]["kernel"].reshape(-1, 8)[:29]
    kernels["down"] = {"kernel": down}
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 7, 8)))
    tap, mlp = Tapper(Taps({}), 0), Mlp(one)

    def dense(mlp, x):
      return mlp.activate(*mlp.linear(x), tap=tap)

    want = mlp.apply({"params": kernels}, x, method=dense)[0]
    f = experts(cfg)
    np.testing.assert_allclose(f(w, x[0]), want, rtol=1e-12)
    slopes = jax.grad(lambda w: jnp.sum(f(w, x[0]) ** 2))(w)
    slopes = jax.tree.map(np.asarray, slopes)
  for name in ("router", "shared_up", "shared_down"):
    assert not np.any(slopes[name]["kernel"])
  used = np.any(slopes["expert_up"]["kernel"] != 0, axis=1).reshape(-1)
  assert used.tolist() == [True] * 29 + [False] * (12 * 6 - 29)


@pytest.mark.thorough
def test_sites():
  """Tokens choose by the edited logits; the experts' parts add up."""
  cfg = sinkjax.TINY.replace(
    n_experts=4, experts_per_token=2, d_ff=6, shared_d_ff=5
  )
  params, f = model(cfg), sinkjax.forward(cfg)
  tokens = jnp.arange(9)[None]
  seen = [*sinkjax.EXPERT_SITES, "mlp_act", "mlp_out"]
  watch = {site: (site, lambda x: x) for site in seen}
  plain = jax.jit(sinkjax.capture(f, watch))(params, tokens).trace
  assert plain["router_logits"].shape == (3, 1, 9, 4)
  assert plain["mlp_act"].shape == (3, 1, 9, cfg.mlp_width)
  assert plain["expert_out"].shape == (3, 1, 9, 5, 32)
  used = np.any(np.asarray(plain["expert_out"]) != 0, axis=-1)
  assert np.all(used[..., :4].sum(axis=-1) == 2)
  assert np.all(used[..., 4])
  np.testing.assert_allclose(
    plain["expert_out"].sum(axis=-2), plain["mlp_out"], rtol=1e-6, atol=1e-6
  )
  # The first expert's hidden layer stands first.
  first = np.zeros(cfg.mlp_width)
  first[:6] = 1
  edits = {
    "router_logits": sinkjax.add(jnp.array([[[50.0, 40.0, 0, 0]]])),
    "mlp_act": sinkjax.scale(jnp.asarray(first)[None, None]),
  }
  g = sinkjax.intervene(f, edits)
  out = np.asarray(
    jax.jit(sinkjax.capture(g, watch))(params, tokens).trace["expert_out"]
  )
  assert np.all(np.any(out != 0, axis=-1) == [True, False, False, False, False])


EDITS = {
  "router_logits": sinkjax.add(np.linspace(0, 1, 4, dtype="f")[None, None]),
  "expert_out": sinkjax.scale(
    np.linspace(0.5, 2, 5, dtype="f")[None, None, :, None]
  ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("edits", [{}, EDITS], ids=["plain", "edited"])
def test_a_folded_layer_has_the_layers_derivative(edits):
  cfg = BASE.replace(n_layers=1, shared_d_ff=5, dtype="float64")
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: x[0], model(cfg, np.float64)["blocks"])
    ctx, _ = context_of(cfg, jnp.arange(5)[None])
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 5, cfg.d_model)))
    fold = fold_layer(cfg, params, x, jnp.asarray(0), ctx, edits)
    assert float(fold.error) < 1e-12


@pytest.mark.slow
def test_a_pass_in_pieces_sees_every_token():
  cfg = BASE.replace(n_layers=1, shared_d_ff=5)
  params, tokens = model(cfg), jnp.arange(5)[None]
  watch = {site: (site, lambda x: x) for site in sinkjax.EXPERT_SITES}
  f = sinkjax.capture(sinkjax.intervene(sinkjax.forward(cfg), EDITS), watch)
  want = jax.jit(f)(params, tokens).trace
  got = stream_statistics(f, {}, block=2)(params, tokens).trace
  for site in watch:
    np.testing.assert_allclose(got[site], want[site], rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_refusals():
  f = sinkjax.forward(sinkjax.TINY)
  for site in sinkjax.EXPERT_SITES:
    with pytest.raises(ValueError, match=f"'{site}' is one of models with exp"):
      sinkjax.capture(f, {"x": (site, lambda x: x)})
    with pytest.raises(ValueError, match=f"'{site}' is one of models with exp"):
      f({}, jnp.arange(3), taps=Taps({site: sinkjax.scale(0.0)}))
  with pytest.raises(ValueError, match="model with experts is not supported"):
    quantize_linear.quantize_inputs(BASE, 8, ranges="token")
  with pytest.raises(ValueError, match="model with experts is not supported"):
    quantize_linear.quantize_weights(model(BASE), 8)
  for changes, message in [
    ({"n_experts": 3, "experts_per_token": 4}, "must be at most n_experts=3"),
    ({"shared_d_ff": 5}, "shared_d_ff needs n_experts, got 0"),
    ({"gated_mlp": False, "up_offset": 1.0}, "need gated_mlp=True"),
    ({"n_experts": -1}, "n_experts must be a positive integer"),
    ({"choice_bias": True}, "choice_bias needs n_experts, got 0"),
    ({"n_experts": 6, "router_groups": 4}, "groups of one size"),
    ({"n_experts": 4, "router_groups": 4}, "two experts at least"),
    ({"n_experts": 4, "groups_per_token": 2}, "at most router_groups=1"),
    (
      {"n_experts": 4, "router_groups": 2, "experts_per_token": 3},
      "more than groups_per_token=1 groups have",
    ),
    ({"n_experts": 4, "dense_layers": 1}, "need each other"),
    (
      {"n_experts": 4, "dense_layers": 3, "dense_d_ff": 8},
      "less than n_layers=3, got 3",
    ),
    (
      {"n_experts": 4, "dense_layers": 1, "dense_d_ff": 193},
      "at most n_experts d_ff=192, got 193",
    ),
    (
      {"n_experts": 4, "dense_layers": 1, "dense_d_ff": 8, "mlp_bias": True},
      "dense_layers needs mlp_bias=False",
    ),
    ({"router_score": "tanh"}, "router_score must be one of"),
  ]:
    with pytest.raises(ValueError, match=message):
      sinkjax.TINY.replace(**changes)
