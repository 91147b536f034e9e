"""The exact Jacobian of every family's golden model, in float64."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from quick import quick

import sinkjax
from sinkjax.transforms.jacobian import jacobian_norms
from sinkjax.weights import huggingface

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import Dense, error, norms_of, quickly_compiled, text

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
NAMES = sorted(path.name for path in FAMILIES.iterdir())


@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(NAMES, "mpt", "phi"))
def test_the_folded_engine_is_forward_mode(name):
  """From the embedding to the last layer's output, by norms of all blocks."""
  with jax.enable_x64(True), quickly_compiled():
    params, cfg = huggingface.load(FAMILIES / name)
    cfg = cfg.replace(dtype="float64")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    f, tokens = sinkjax.forward(cfg), text(5)
    got = jacobian_norms(f, params, tokens)
    sites = {"sources": ("embed",), "targets": ("resid_post",)}
    want = norms_of(Dense(f, params, tokens, **sites)(), "fro")
  # Some hundred products of float64 in a row, each rounded at 1e-16.
  assert error(got, want) < 1e-11
