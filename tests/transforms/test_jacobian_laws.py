"""What an exact Jacobian is, in float64, where nothing hides behind rounding.

By the model's own forward mode, reverse mode and finite differences, and by
the chain rule.
"""

import pathlib
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms.jacobian import jacobian_norms

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import (
  BASE,
  END,
  LENGTH,
  RESIDUAL,
  START,
  Dense,
  engine,
  error,
  model,
  norms_of,
  outputs,
  points,
  product,
  quickly_compiled,
  text,
  widths_pushed_directly,
)

UPPER = np.triu_indices(LENGTH, 1)
LOWER = np.tril_indices(LENGTH, -1)
NORMS = ("fro", "spectral", "max")


@pytest.fixture(scope="module", autouse=True)
def wide():
  with jax.enable_x64(True), quickly_compiled():
    yield


@pytest.fixture(autouse=True)
def all_folded(monkeypatch):
  """A derivative that is wrong where layers are folded is not used at all:
  the engine sees it, and goes the long way. Here it never should.
  """
  widths = widths_pushed_directly(monkeypatch)
  yield
  assert set(widths) <= {1}


GEMMA = {
  "n_kv_heads": 1,
  "norm_offset": 1.0,
  "post_norms": True,
  "qk_norm": True,
  "attn_softcap": 1.0,
  "logit_softcap": 3.0,
  "window": 3,
  "embed_scale": 3.0,
  "local_layers": (True, False, True),
  "rope_local_base": 100.0,
  "attn_scale": 0.7,
  "activation": "gelu_tanh",
  "rope_dim": 4,
  "rope_scaling": sinkjax.RopeScaling("linear", factor=2.0),
}
"""Every option that a plain model, as in the other files, is without."""


@pytest.fixture(scope="module")
def base():
  f, params = model(BASE.replace(dtype="float64", **GEMMA))
  tokens = text(LENGTH)
  dense = Dense(f, params, tokens)
  layers = InMemory(f.cfg, params)  # once, not at every call
  return SimpleNamespace(
    f=f, params=params, tokens=tokens, dense=dense, args=(f, layers, tokens)
  )


SOURCES = [START, ("resid_mid", 0), ("resid_post", 0), ("final", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_later_point_is_as_forward_mode_has_it(base, source):
  every = points(base.f.cfg)
  for target in every[every.index(source) :]:
    got = engine(*base.args, source, target)
    assert error(got, base.dense(source, target)) < 1e-12
    assert np.all(got[UPPER] == 0)


@pytest.mark.thorough
@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_those_of_the_blocks(base, norm):
  for method, rtol in (("exact", 1e-9), ("reference", 1e-12)):
    got = jacobian_norms(
      base.f, base.params, base.tokens, norm=norm, method=method
    )
    want = norms_of(base.dense(), norm)
    np.testing.assert_allclose(got, want, rtol=rtol)
    assert got.dtype == np.float64
    assert np.all(got[UPPER] == 0)
    assert np.all(got[np.tril_indices(LENGTH)] > 0.1)


@pytest.mark.slow
def test_reverse_mode_agrees(base):
  def last(x):
    y = outputs(
      base.f, base.params, base.tokens, {}, {"embed": x[None]}, ["resid_post"]
    )
    return y["resid_post"][-1]

  zero = jnp.zeros((LENGTH, BASE.d_model))
  jac = np.swapaxes(jax.jit(jax.jacrev(last))(zero), 1, 2)
  assert error(engine(*base.args), jac) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("source", "target"),
  [
    (START, ("final", 0)),
    pytest.param(("resid_mid", 0), END, marks=pytest.mark.thorough),
  ],
)
def test_finite_differences_in_random_directions(base, source, target):
  """No derivative of anybody's: the model run twice, a small step apart."""
  (site, layer), (to, at) = source, target
  step, size = 1e-5, (base.f.cfg.n_layers, LENGTH, BASE.d_model)
  rng = np.random.default_rng(0)
  u_RxTxD = rng.normal(size=(64, *size[1:]))

  def run(u):
    shift = jnp.zeros(size).at[layer].set(u)
    y = outputs(base.f, base.params, base.tokens, {}, {site: shift}, [to])
    return y[to][at]

  run = jax.jit(jax.vmap(run))
  numeric = (run(step * u_RxTxD) - run(-step * u_RxTxD)) / (2 * step)
  jac = engine(*base.args, source, target)
  want = np.einsum("tsij,rsj->rti", jac, u_RxTxD)
  assert error(np.asarray(numeric), want) < 1e-7


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("middle", "target"),
  [
    (("resid_post", 0), END),
    *(
      pytest.param(*points, marks=pytest.mark.thorough)
      for points in (
        (("resid_post", 1), END),
        (("resid_mid", 0), END),
        (("resid_mid", 1), ("final", 0)),
        (("resid_post", 2), ("final", 0)),
      )
    ),
  ],
)
def test_chain_rule(base, middle, target):
  whole = engine(*base.args, START, target)
  parts = engine(*base.args, middle, target), engine(*base.args, START, middle)
  assert error(product(*parts), whole) < 1e-12


@pytest.mark.thorough
def test_leaving_mixing_out_is_far_off(base):
  """Estimators that are right for one layer, or where no token sees another.

  One without any mixing has nothing off the diagonal; one in which a token
  reaches another only at once, not through a third, misses most of it.
  """
  whole = engine(*base.args)
  steps = [engine(*base.args, START, ("resid_post", 0))]
  for layer in (1, 2):
    ends = ("resid_post", layer - 1), ("resid_post", layer)
    steps.append(engine(*base.args, *ends))
  alone = [np.zeros_like(step) for step in steps]
  diagonal = np.arange(LENGTH)
  for mine, step in zip(alone, steps, strict=True):
    mine[diagonal, diagonal] = step[diagonal, diagonal]
  at_once = sum(
    product(
      product(*[(steps if moved == i else alone)[i] for i in (2, 1)]),
      (steps if moved == 0 else alone)[0],
    )
    for moved in range(3)
  )
  unmixed = product(product(alone[2], alone[1]), alone[0])
  assert error(product(product(steps[2], steps[1]), steps[0]), whole) < 1e-12
  assert error(unmixed[diagonal, diagonal], whole[diagonal, diagonal]) < 1e-12
  assert np.all(unmixed[LOWER] == 0)
  exact = norms_of(whole, "fro")
  assert np.all(norms_of(unmixed - whole, "fro")[LOWER] == exact[LOWER])
  missed, far = norms_of(at_once - whole, "fro"), np.tril_indices(LENGTH, -2)
  assert np.median(missed[far] / exact[far]) > 0.2


OPTIONS = [
  {"n_kv_heads": 4},
  {"norm": "layer"},
  {"norm": "layer", "norm_bias": False},
  {"norm_eps": 1e-2},
  {"norm_offset": 1.0},
  {"post_norms": True},
  {"one_scale": True, "norm": "layer"},
  {"pre_norms": False, "post_norms": True},
  {"pre_norms": False, "stream_norms": True},
  {"pre_norms": False, "stream_norms": True, "post_norms": True},
  {"qk_norm": True},
  {"qk_norm": True, "qk_norm_over": "all"},
  {"qkv_bias": True},
  {"qkv_clip": 0.3, "qk_norm": True},
  {"out_bias": True},
  {"gated_mlp": False},
  {"mlp_bias": True},
  {"n_experts": 3, "experts_per_token": 2},
  {"n_experts": 3, "norm_topk": True, "mlp_bias": True, "gated_mlp": False},
  {"n_experts": 3, "experts_per_token": 2, "shared_d_ff": 5},
  {
    "n_experts": 4,
    "experts_per_token": 2,
    "router_score": "sigmoid",
    "choice_bias": True,
    "router_groups": 2,
    "shared_d_ff": 5,
    "shared_open": False,
    "dense_layers": 1,
    "dense_d_ff": 11,
  },
  {"v_dim": 3},
  {"mixing": "rate", "v_dim": 3},
  {"control_heads": 2, "normalizer": "softpick"},
  {"control_heads": 2, "positions": "alibi", "mixing": "gate"},
  {"mixing": "gate", "post_norms": True, "attn_bias": "k"},
  {"depth": "halting", "post_norms": True},
  {"depth": "routed", "parallel_residual": True},
  {"depth": "routed", "residual_scale": 0.4, "mixing": "gate"},
  {"v_dim": 6, "gate": "value"},
  {"rope_dim": 2, "kv_rank": 5, "v_dim": 3},
  {"rope_dim": 2, "kv_rank": 5, "q_rank": 6, "gate": "element", "v_dim": 6},
  {"activation": "relu"},
  {"activation": "relu2"},
  {"activation": "xielu", "gated_mlp": False},
  {"activation": "gelu"},
  {"activation": "gelu_tanh"},
  {"activation": "quick_gelu", "mlp_clamp": 1.0, "up_offset": 1.0},
  {"parallel_residual": True},
  {"parallel_residual": True, "post_norms": True},
  {"parallel_residual": True, "shared_norm": True},
  {"positions": "learned"},
  {"positions": "none"},
  {"positions": "alibi", "alibi_scale": 0.7},
  {"embed_norm": True, "norm": "layer"},
  {"rope_dim": 2},
  {"rope_layers": (True, False, True)},
  {"rope_bases": (9.0, 1e4, 9.0)},
  {"attn_scale": 0.7},
  {"attn_softcap": 1.0},
  {"embed_scale": 3.0},
  {"residual_scale": 0.4},
  {"scan_layers": False},
  {"window": 2, "local_layers": (True, False, True), "rope_local_base": 9.0},
  {"rope_scaling": sinkjax.RopeScaling("linear", factor=2.0)},
  {"rope_scaling": sinkjax.RopeScaling("llama3", original_max_len=8)},
  {"rope_scaling": sinkjax.RopeScaling("yarn", factor=4.0, attention=1.3)},
  {"rope_scaling": sinkjax.RopeScaling("dynamic", 2.0, original_max_len=4)},
  {"rope_scaling": sinkjax.RopeScaling("factors", factors=(1.0, 4.0, 9.0))},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_and_every_point(options):
  f, params = model(BASE.replace(dtype="float64", **options))
  tokens = text(LENGTH)
  dense = Dense(f, params, tokens)
  for source in (START, ("resid_pre", 1), ("resid_mid", 0)):
    for site in RESIDUAL[2:]:
      target = (site, -1)
      got = engine(f, params, tokens, source, target)
      assert error(got, dense(source, target)) < 1e-11
