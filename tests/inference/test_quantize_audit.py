"""Rows of tensors and what rounding loses of them, by hand."""

import numpy as np
import pytest
from jitted import jitted

from sinkjax.inference import quantize_audit as module
from sinkjax.inference.quantize_audit import (
  is_broken,
  kernels_of,
  rows_of_kernel,
  with_kernel,
)
from sinkjax.inference.quantize_linear import quantize_weights

row_dispersion, underflow = map(
  jitted, (module.row_dispersion, module.underflow)
)


def test_dispersion_and_underflow_by_hand():
  x = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
  x[0, 2] *= 100
  x[1, :, 3] = 0
  sizes = np.abs(x.astype(float)).max(axis=-1)
  want = sizes.max(axis=-1) / np.median(sizes, axis=-1)
  np.testing.assert_allclose(row_dispersion(x), want, rtol=1e-5)
  assert want[0] > 20 > want[1]
  for per in ("tensor", "token"):
    largest = sizes[..., None]
    if per == "tensor":
      largest = sizes.max(axis=-1)[:, None, None]
    step = largest / 7
    lost = (np.abs(x) < step / 2) & (x != 0)
    want = lost.sum(axis=(1, 2)) / (x != 0).sum(axis=(1, 2))
    np.testing.assert_allclose(underflow(x, 4, per=per), want, rtol=1e-6)
  # The large row takes the others' digits where it shares their step.
  tensor, token = (underflow(x, 4, per=per)[0] for per in ("tensor", "token"))
  assert tensor > 0.6 > 0.2 > token
  assert row_dispersion(0 * x).tolist() == [0, 0]
  assert underflow(0 * x, 4, per="token").tolist() == [0, 0]


def test_scale_changes_neither():
  x = np.random.default_rng(1).normal(size=(1, 6, 9)).astype(np.float32)
  np.testing.assert_allclose(row_dispersion(8 * x), row_dispersion(x))
  np.testing.assert_array_equal(
    underflow(8 * x, 3, per="tensor"), underflow(x, 3, per="tensor")
  )
  # Rows of one size have one step, shared or not.
  x = x / np.abs(x).max(axis=-1, keepdims=True)
  np.testing.assert_allclose(row_dispersion(x), 1)
  np.testing.assert_allclose(
    underflow(x, 3, per="tensor"), underflow(x, 3, per="token")
  )


def test_ten_times_the_perplexity_is_broken():
  texts = np.log([9.0, 9.5, 10.5])
  assert not is_broken(texts) and is_broken(texts + 0.1)


def test_kernels_are_those_that_are_rounded(tiny):
  params, cfg = tiny
  rounded = quantize_weights(params, 3)
  whole, coarse = kernels_of(params), kernels_of(rounded)
  assert len(whole) == 7
  for name in whole:
    assert np.abs(whole[name] - coarse[name]).max() > 0
    rows = rows_of_kernel(name, coarse[name])
    # An output channel of 3 bits has at most 7 levels.
    channel = np.asarray(rows[1, 0], float)
    assert len(np.unique((channel / np.abs(channel).max()).round(4))) <= 7
    kept = with_kernel(rounded, name, whole[name])
    for other, kernel in kernels_of(kept).items():
      want = whole[other] if other == name else coarse[other]
      assert kernel is want
  assert rows_of_kernel("attn.o", whole["attn.o"]).shape == (
    cfg.n_layers,
    cfg.d_model,
    cfg.n_heads * cfg.head_dim,
  )
  with pytest.raises(ValueError, match=r"no kernel 'attn.x'; attn.k, "):
    with_kernel(params, "attn.x", whole["attn.q"])
