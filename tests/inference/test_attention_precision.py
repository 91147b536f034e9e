"""Attention in low precision against NumPy with other people's formats."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.inference.attention_precision import (
  FORMATS,
  TOP,
  low_precision,
  rounded,
)

CFG = sinkjax.TINY.replace(n_layers=1, n_heads=4, n_kv_heads=2, head_dim=8)
TOKENS = np.array([[5, 9, 2, 30, 7, 11]])


@pytest.fixture(scope="module")
def params():
  return scaled(sinkjax.init_params(CFG, jax.random.key(0)), 3.0)


def by_dtype(x, kind, top=None):
  """NumPy's rounding to a format; 8 bits with a step of the last axis."""
  x = np.asarray(x, np.float32)
  if kind == "bfloat16":
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)
  most = np.abs(x).max(-1, keepdims=True) if top is None else np.float32(top)
  step = np.asarray(most / np.float32(TOP[kind]), np.float32)
  unit = x / np.where(step > 0, step, np.float32(1))
  if kind == "int8":
    return np.clip(np.rint(unit), -127, 127) * step
  unit = np.clip(unit, -448, 448)
  return unit.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * step


@pytest.mark.parametrize("kind", FORMATS)
def test_rounding_is_that_of_the_format(kind):
  rng = np.random.default_rng(0)
  # Many magnitudes, subnormal numbers of the format and zeros among them.
  x = rng.normal(size=(300, 33)) * 10.0 ** rng.uniform(-6, 3, (300, 33))
  x[0], x[1, :5] = 0, 0
  x = x.astype(np.float32)
  # A step of one: the numbers of the format themselves, and bit for bit.
  top = TOP.get(kind)
  as_they_are = jax.jit(rounded, static_argnums=1, static_argnames="top")
  np.testing.assert_array_equal(
    as_they_are(x, kind, top=top), by_dtype(x, kind, top)
  )
  # Compilers may divide by multiplying with the inverse: one bit of the step.
  np.testing.assert_allclose(rounded(x, kind), by_dtype(x, kind), rtol=3e-7)


def test_numbers_beyond_the_range_become_its_end():
  for kind in ("int8", "float8_e4m3"):
    found = rounded(jnp.array([3.0, -7.0]), kind, top=2.0)
    np.testing.assert_allclose(found, [2, -2], rtol=1e-6)


KEPT = {
  "nothing": (None, None),
  "sink": (0, 0),
  "score": (0, None),
  "value": (None, 0),
  "later": (3, 3),
}


@pytest.fixture(scope="module")
def run():
  """`f(params, edits)`: q, k, v and z; compiled once for each format."""
  watch = {site: (site, lambda x: x) for site in ("q", "k", "v", "z")}
  f = sinkjax.forward(CFG)
  return jax.jit(
    lambda params, edits: (
      sinkjax.capture(sinkjax.intervene(f, edits), watch)(params, TOKENS).trace
    )
  )


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_layer_is_the_formula(kind, kept, params, run):
  """From the layer's own queries, keys and values, by NumPy."""
  score, value = (
    np.arange(TOKENS.shape[1]) == (-1 if x is None else x) for x in KEPT[kept]
  )
  plain = run(params, {})
  low = run(params, low_precision(CFG, kind, score, value))
  q, k, v = (np.asarray(plain[site][0, 0]) for site in "qkv")
  k, v = (np.repeat(x, CFG.group_size, axis=1) for x in (k, v))

  def products(q, k):
    s = np.einsum("thk,shk->hts", q, k) / np.sqrt(CFG.head_dim)
    return s.astype(np.float32)

  exact, s = products(q, k), products(by_dtype(q, kind), by_dtype(k, kind))
  if kind == "bfloat16":
    s = by_dtype(s, kind)
  s = np.where(score, exact, s)
  s = np.where(np.tri(len(q), dtype=bool), s, -np.inf)
  p = np.exp(s - s.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  p = np.where(value, p, by_dtype(p, kind, 1.0))
  v = np.where(value[:, None, None], v, by_dtype(v, kind))
  want = np.einsum("hts,shk->thk", p, v)
  # A score at the middle of two numbers may be rounded either way: a weight
  # then moves by 2^-8 of itself in bfloat16, and all others are equal.
  atol = {"bfloat16": 2e-2, "float8_e4m3": 2e-2, "int8": 2e-2}[kind]
  error = np.abs(low["z"][0, 0] - want) / np.abs(want).max()
  assert error.max() < atol
  assert np.median(error) < 1e-6
  assert np.abs(plain["z"][0, 0] - want).max() > 1e-5


def test_all_kept_is_the_model(params):
  every = np.ones(TOKENS.shape[1], bool)
  f = sinkjax.forward(CFG)
  edits = low_precision(CFG, "int8", every)
  found = sinkjax.intervene(f, edits)(params, TOKENS).logits
  np.testing.assert_allclose(found, f(params, TOKENS).logits, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"normalizer": "relu"}, "this model has 'relu'"),
    ({"attn_softcap": 20.0}, "a soft cap of 20"),
  ],
)
def test_models_without_the_formula_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    low_precision(CFG.replace(**change), "int8")


def test_an_unknown_format_is_refused():
  with pytest.raises(ValueError, match="valid: bfloat16, float8_e4m3, int8"):
    low_precision(CFG, "int4")


def test_passes_that_hand_no_queries_over_are_refused(params):
  edit = low_precision(CFG, "int8")["scores"]
  with pytest.raises(ValueError, match="whole pass"):
    edit(jnp.zeros((1, 4, 6, 6)), 0)
