"""Bounds from real weights dominate exact Jacobians, in every family."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.analysis import over_squashing as module
from sinkjax.analysis.over_squashing import FORMS, hold_pattern, over_squashing
from sinkjax.analysis.sensitivity import Columns

BASE = sinkjax.ModelConfig(
  vocab_size=32,
  d_model=8,
  n_layers=3,
  n_heads=4,
  n_kv_heads=2,
  head_dim=6,
  d_ff=14,
  max_len=32,
)
FAMILIES = {
  "llama": {},
  "gpt2": {
    "norm": "layer",
    "positions": "learned",
    "gated_mlp": False,
    "activation": "gelu",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "n_kv_heads": 4,
  },
  "neox": {"norm": "layer", "parallel_residual": True, "gated_mlp": False},
  "gemma3": {
    "post_norms": True,
    "qk_norm": True,
    "norm_offset": 1.0,
    "window": 2,
    "local_layers": (True, False, True),
  },
  "gemma2": {"post_norms": True, "attn_softcap": 2.0, "attn_scale": 0.7},
  "olmo2": {
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "qk_norm_over": "all",
  },
  "granite": {"residual_scale": 0.4, "rope_layers": (True, False, True)},
}
IDS = np.array([3, 1, 4, 1, 5, 9])


def edits(*, sink_until=BASE.n_layers, scores=1.0, v=1.0, mlp=1.0, others=None):
  """Every edit there is in these tests, most of them idle: compiled once."""
  sites = ("attn_out", "resid_mid", "z", "resid_pre", "pattern", "k")
  others = others or (1.0,) * len(sites)
  found = dict(zip(sites, map(sinkjax.scale, others), strict=True))
  hidden = sinkjax.knockout(0, from_layer=sink_until)
  return found | {
    "scores": sinkjax.chain(hidden, sinkjax.scale(scores)),
    "v": sinkjax.scale(v),
    "mlp_out": sinkjax.scale(mlp),
  }


THIN = np.random.default_rng(5).choice([0.0, 0.01, 1.0], (1, 1, 6, 6))
EDITS = {
  "none": {},
  "no sink": {"sink_until": 1},
  "scaled": {"others": (3.0, 0.5, 2.0, 1.5, 0.8, 2.0)},
  # Weights that an edit makes zero or small still move with their scores.
  "thinned": {"others": (1.0, 1.0, 1.0, 1.0, THIN, 1.0)},
}


def edited(cfg, **changes):
  return sinkjax.intervene(sinkjax.forward(cfg), edits(**changes))


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
  """Most of the time of these tests is compilation."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def random_params(cfg, seed, weights=1.0):
  """Weights at a scale of their own, drawn anew for each tensor."""
  leaves, tree = jax.tree.flatten(sinkjax.param_shapes(cfg))
  rng = np.random.default_rng(seed)

  def leaf(spec):
    size = weights * np.exp(0.7 * rng.normal()) * spec.shape[-1] ** -0.5
    return jnp.asarray(size * rng.normal(size=spec.shape), jnp.float32)

  return jax.tree.unflatten(tree, [leaf(spec) for spec in leaves])


@pytest.mark.slow
@pytest.mark.parametrize("family", quick(FAMILIES, "gemma3"))
def test_valid_forms_are_never_violated(family):
  cfg, gaps = BASE.replace(**FAMILIES[family]), []
  for edit, seed in itertools.product(EDITS, range(4)):
    params = random_params(cfg, seed)
    found = over_squashing(edited(cfg, **EDITS[edit]), params, IDS)
    seen = np.tri(len(IDS), dtype=bool)
    for name in ("paper", "frozen", "full"):
      assert found.violations(name) == 0, (edit, seed)
      assert np.all(np.isnan(found.decades(name)[~seen]))
    logs = {name: log[seen] for name, log in found.log_bounds.items()}
    assert np.all(logs["frozen"] <= logs["paper"] + 1e-4)
    assert np.all(logs["frozen"] <= logs["full"] + 1e-4)
    # Where most weights are 0 a bound is of few paths, and its distance says
    # nothing of that in a model as it is.
    if edit != "thinned":
      gaps.append(np.nanmedian(found.decades("frozen")))
  assert np.median(gaps) < 3  # a bound that is never near shows nothing


def test_a_learned_value_has_no_held_forms():
  """Its weight is no part of the pattern that is held."""
  cfg = BASE.replace(attn_bias="kv")
  with pytest.raises(ValueError, match="paper, frozen, naive .*'kv'"):
    over_squashing(sinkjax.forward(cfg), random_params(cfg, 0), IDS)


@pytest.mark.thorough
def test_the_full_bound_counts_a_learned_value():
  cfg = BASE.replace(attn_bias="kv")
  ids = jax.numpy.asarray(IDS)
  for seed in range(3):
    params, f = random_params(cfg, seed), sinkjax.forward(cfg)
    logs, _ = module.paths(module.layer_gains(f, params, ids))
    true = module.jacobian_norms(f, params, ids, norm="spectral")
    full = jax.numpy.asarray(logs["full"])
    assert not module.bounds.violations(full, jax.numpy.asarray(true)).any()


@pytest.mark.thorough
def test_bounds_of_one_head_are_reached():
  """One layer, one head, no MLP: the frozen bound is the Jacobian."""
  cfg = BASE.replace(n_layers=1, n_heads=1, n_kv_heads=1)
  fn = edited(cfg, mlp=0.0, sink_until=1)
  found = over_squashing(fn, random_params(cfg, 0), IDS)
  decades = found.decades("frozen")
  below = np.tri(len(IDS), k=-1, dtype=bool)
  np.testing.assert_allclose(decades[below], 0, atol=1e-5)
  assert np.all(np.diagonal(decades) >= 0)
  assert found.decades("full")[below].max() < 0.5


@pytest.mark.slow
def test_the_naive_constant_is_violated():
  """The residual passes a token on with gain 1; attention alone does not."""
  found = over_squashing(edited(BASE, v=0.01), random_params(BASE, 0), IDS)
  assert found.violations("naive") > 0
  assert np.nanmin(found.decades("naive")) < -1
  assert found.constants["naive"] < found.constants["paper"]
  assert not FORMS["naive"].valid


@pytest.mark.thorough
def test_what_the_softmax_adds_breaks_the_frozen_bound():
  """That is why the full form is there."""
  found = over_squashing(edited(BASE, scores=30.0), random_params(BASE, 0), IDS)
  assert found.violations("full") == 0
  beyond = np.log(found.norms[-1]) > found.log_bounds["frozen"][-1]
  assert beyond.any()


@pytest.mark.slow
def test_a_held_pattern_changes_derivatives_only():
  params, mine = random_params(BASE, 0), edits(**EDITS["scaled"])
  f = sinkjax.intervene(sinkjax.forward(BASE), mine)
  held, tokens = hold_pattern(f), jnp.asarray(IDS)[None]
  watch = {"pattern": ("pattern", lambda x: x)}
  plain, same = (sinkjax.capture(g, watch)(params, tokens) for g in (f, held))
  np.testing.assert_array_equal(plain.logits, same.logits)
  patched = sinkjax.intervene(
    sinkjax.forward(BASE),
    {**mine, "pattern": sinkjax.patch(plain.trace["pattern"])},
  )
  want, got, free = (
    sinkjax.jacobian_norms(g, params, tokens[0], method="reference")
    for g in (patched, held, f)
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert np.abs(got - free).max() > 1e-2


@pytest.mark.thorough
def test_goes_on_from_known_columns(monkeypatch):
  params, f = random_params(BASE, 0), edited(BASE)
  whole = over_squashing(f, params, IDS)
  asked = []

  def counted(*args, **kw):
    asked.append(kw["cols"])
    return sinkjax.jacobian_norms(*args, **kw)

  monkeypatch.setattr(module, "jacobian_norms", counted)
  known = Columns.none(len(IDS))
  known.add([0, 2], whole.frozen_norms[:, [0, 2]])
  again = over_squashing(f, params, IDS, norms=whole.norms, frozen=known)
  assert asked == [[1, 3, 4, 5]]
  np.testing.assert_array_equal(known.values, again.frozen_norms)
  for name in FORMS:
    np.testing.assert_allclose(again.decades(name), whole.decades(name), 1e-5)
