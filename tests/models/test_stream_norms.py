"""Norms on the residual stream itself, behind each branch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax

CFG = sinkjax.TINY.replace(
  norm="layer", pre_norms=False, stream_norms=True, dtype="float64"
)
SITES = (
  *("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out"),
  *("resid_post", "final"),
)


def layer_norm(x, params):
  x = x - x.mean(axis=-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + CFG.norm_eps)
  return x * params["scale"] + params["bias"]


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True):
    yield


def test_every_sum_is_normed_and_nothing_else():
  shapes = sinkjax.param_shapes(CFG)
  assert "final_norm" not in shapes
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  params = jax.tree.unflatten(
    tree, [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves]
  )
  watch = {site: (site, lambda x: x) for site in SITES}
  f = sinkjax.capture(sinkjax.forward(CFG), watch)
  got = f(params, jnp.array([[3, 1, 4, 1, 5]]))
  at = {site: np.asarray(value) for site, value in got.trace.items()}
  np.testing.assert_array_equal(at["attn_in"], at["resid_pre"])
  np.testing.assert_array_equal(at["mlp_in"], at["resid_mid"])
  np.testing.assert_array_equal(at["final"], at["resid_post"][-1])
  sums = (
    ("attn_norm", "resid_pre", "attn_out", "resid_mid"),
    ("mlp_norm", "resid_mid", "mlp_out", "resid_post"),
  )
  for layer in range(CFG.n_layers):
    for norm, before, added, after in sums:
      of = params["blocks"][norm].items()
      scale = {name: np.asarray(x)[layer] for name, x in of}
      want = layer_norm(at[before][layer] + at[added][layer], scale)
      np.testing.assert_allclose(at[after][layer], want, atol=1e-12)
  logits = at["final"] @ np.asarray(params["unembed"])
  np.testing.assert_allclose(got.logits, logits, atol=1e-10)
