"""Closed forms of the exact Jacobian, in float64.

Models whose weights are set by hand, so that the map is known on paper.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.jacobian import jacobian_norms

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import (
  LENGTH,
  engine,
  error,
  every_pair,
  product,
  quickly_compiled,
  text,
  widths_pushed_directly,
)

LOWER = np.tril_indices(LENGTH, -1)


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


# A model that is linear but for its scores: a norm with so large an epsilon
# divides by a constant, and a rectifier far above zero is the identity. As in
# GPT-NeoX, the MLP reads what the attention reads.
LINEAR = sinkjax.ModelConfig(
  vocab_size=32,
  d_model=8,
  n_layers=2,
  n_heads=2,
  n_kv_heads=2,
  head_dim=4,
  d_ff=12,
  max_len=32,
  norm_eps=1e10,
  positions="none",
  gated_mlp=False,
  mlp_bias=True,
  activation="relu",
  parallel_residual=True,
  dtype="float64",
)


def blank():
  """Weights of `LINEAR`, all zero but for the embedding and the norms."""
  shapes = sinkjax.param_shapes(LINEAR)
  params = jax.tree.map(lambda s: np.zeros(s.shape), shapes)
  rng = np.random.default_rng(5)
  params["embed"] = rng.normal(size=(32, 8))
  for norm in (
    *(params["blocks"][n] for n in ("attn_norm", "mlp_norm")),
    params["final_norm"],
  ):
    norm["scale"][:] = 1e5
  return params, params["blocks"]


def solved(params, **kw):
  params = jax.tree.map(jnp.asarray, params)
  return engine(sinkjax.forward(LINEAR), params, text(LENGTH), **kw)


def identity_attention(blocks, layers=(0, 1)):
  """Every head hands its part of the residual stream on as it is."""
  one = np.eye(8).reshape(8, 2, 4)
  for layer in layers:
    blocks["attn"]["v"]["kernel"][layer] = one
    blocks["attn"]["o"]["kernel"][layer] = np.moveaxis(one, 0, 2)


MEAN = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]


@pytest.mark.thorough
def test_without_weights_it_is_the_identity():
  params, _ = blank()
  want = np.einsum("ts,ij->tsij", np.eye(LENGTH), np.eye(8))
  assert np.array_equal(solved(params), want)
  f, params = sinkjax.forward(LINEAR), jax.tree.map(jnp.asarray, params)
  for norm, size in (("fro", np.sqrt(8)), ("spectral", 1), ("max", 1)):
    got = jacobian_norms(f, params, text(LENGTH), norm=norm)
    np.testing.assert_allclose(got, np.eye(LENGTH) * size, rtol=1e-12)


@pytest.mark.thorough
def test_uniform_attention_takes_the_mean():
  """J[t, s] = ((1 + M)^L)[t, s], M the mean of what a token sees."""
  params, blocks = blank()
  identity_attention(blocks)
  mixing = np.linalg.matrix_power(np.eye(LENGTH) + MEAN, 2)
  want = np.einsum("ts,ij->tsij", mixing, np.eye(8))
  assert error(solved(params), want) < 1e-8
  f, params = sinkjax.forward(LINEAR), jax.tree.map(jnp.asarray, params)
  for norm, size in (("fro", np.sqrt(8)), ("spectral", 1), ("max", 1)):
    got = jacobian_norms(f, params, text(LENGTH), norm=norm)
    np.testing.assert_allclose(got, mixing * size, rtol=1e-8)


@pytest.mark.thorough
def test_a_linear_model_is_its_matrices():
  """Attention and MLP read the same: J = J_1 J_0, J_l = I + M + W_l."""
  params, blocks = blank()
  identity_attention(blocks)
  rng = np.random.default_rng(6)
  up, down = rng.normal(size=(2, 8, 12)), 0.1 * rng.normal(size=(2, 12, 8))
  mlp = blocks["mlp"]
  mlp["up"]["kernel"][:], mlp["down"]["kernel"][:] = up, down
  mlp["up"]["bias"][:], mlp["down"]["bias"][:] = 1e3, -1e3 * down.sum(axis=1)
  mixing = np.einsum("ts,ij->tsij", np.eye(LENGTH) + MEAN, np.eye(8))
  alone = np.einsum("ts,lij->ltsji", np.eye(LENGTH), up @ down)
  first, second = mixing + alone
  assert error(solved(params), product(second, first)) < 1e-7


@pytest.mark.thorough
def test_one_head_by_the_derivative_of_its_softmax():
  """z_t = sum_s P_ts v_s; d z_t / d x_s = P_ts (W_v + (v_s - z_t) q_t W_k)
  and at s = t also sum_u P_tu (v_u - z_t) k_u W_q, each with the scale.
  """
  params, blocks = blank()
  rng = np.random.default_rng(7)
  w_q, w_k, w_v = rng.normal(size=(3, 8, 4))
  w_o, scale = rng.normal(size=(4, 8)), LINEAR.score_scale
  for name, kernel in zip("qkv", (w_q, w_k, w_v), strict=True):
    blocks["attn"][name]["kernel"][0, :, 1] = kernel
  blocks["attn"]["o"]["kernel"][0, 1] = w_o
  x = params["embed"][np.asarray(text(LENGTH))]
  q, k, v = x @ w_q, x @ w_k, x @ w_v
  scores = np.where(np.tri(LENGTH) > 0, q @ k.T * scale, -np.inf)
  pattern = np.exp(scores - scores.max(axis=1, keepdims=True))
  pattern /= pattern.sum(axis=1, keepdims=True)
  z = pattern @ v
  want = np.zeros((LENGTH, LENGTH, 8, 8))
  for t, s in every_pair(LENGTH):
    of_key = scale * np.outer(w_k @ q[t], v[s] - z[t])
    want[t, s] = (pattern[t, s] * (w_v + of_key) @ w_o).T
  for t in range(LENGTH):
    of_query = scale * (w_q @ k.T * pattern[t]) @ (v - z[t])
    want[t, t] += np.eye(8) + (of_query @ w_o).T
  assert np.abs(want[LOWER]).max() > 0.5
  assert error(solved(params), want) < 1e-7
