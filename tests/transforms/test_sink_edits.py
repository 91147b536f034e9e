"""Edits that part content from size, against rows and norms by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.sink_edits import SplitNorm, SplitSink, split_norms

CASES = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)]


def rows():
  p = np.tril(np.random.default_rng(0).random((2, 3, 6, 6))) + np.eye(6)
  return (p / p.sum(-1, keepdims=True)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="start")
def edited(pattern, adds, rescales, start):
  return SplitSink(adds, rescales).rows(pattern, 0, start)


@pytest.mark.parametrize("adds, rescales", CASES)
def test_rows_with_each_part_by_hand(adds, rescales):
  p = rows()
  want = p.astype(float)
  for b, h, t in np.ndindex(2, 3, 6):
    if t and not rescales:
      want[b, h, t, 1:] /= 1 - want[b, h, t, 0]
  want[:, :, 1:, 0] *= adds
  found = edited(p, adds, rescales, 0)
  np.testing.assert_allclose(found, want, atol=1e-6)
  # A block of rows is that part of the whole.
  np.testing.assert_array_equal(
    edited(p[:, :, 2:], adds, rescales, 2), found[:, :, 2:]
  )
  if adds == rescales == 1:
    np.testing.assert_array_equal(found, p)
  if adds == rescales == 0:
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_a_row_on_the_sink_alone_has_nothing_to_renormalise():
  p = np.array([[1, 0], [1, 0]], np.float32)[None, None]
  found = edited(p, 0.0, 0.0, 0)
  assert found[0, 0].tolist() == [[1, 0], [0, 0]]


@pytest.mark.thorough
def test_renormalised_rows_are_those_of_a_hidden_key(tiny, tokens):
  """softmax without key 0 is the row renormalised."""
  params, cfg = tiny
  f = sinkjax.forward(cfg)

  def run(edits):
    return jax.jit(sinkjax.intervene(f, edits))(params, tokens).logits

  one = run({"pattern": SplitSink(0.0, 0.0)})
  other = run({"scores": sinkjax.knockout(0)})
  np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("adds, rescales", CASES)
def test_norms_with_each_part_by_hand(norm, adds, rescales):
  rng = np.random.default_rng(0)
  x, scale = rng.normal(size=(2, 4, 8)), rng.normal(size=(3, 8))
  bias = rng.normal(size=(3, 8)) * (norm == "layer")
  x[..., 2] += 20
  centred = x - x.mean(-1, keepdims=True) if norm == "layer" else x
  dims = np.zeros((3, 8), bool)
  dims[1, [2, 5]] = True

  def normed(counted, read):
    size = np.sqrt(np.mean(counted**2, -1, keepdims=True) + 1e-5)
    return read / size * scale[1] + bias[1]

  without = np.where(dims[1], 0, centred)
  want = normed(centred if rescales else without, centred if adds else without)
  value = normed(centred, centred).astype(np.float32)
  edit = SplitNorm(dims, scale, bias, adds, rescales, np.arange(4) > 0)
  found = np.asarray(edit(jnp.asarray(value), 1))
  np.testing.assert_allclose(found[:, 1:], want[:, 1:], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(found[:, 0], value[:, 0])
  np.testing.assert_array_equal(edit(jnp.asarray(value), 0), value)


@pytest.mark.thorough
def test_sites_of_a_block_read_as_if_the_stream_had_no_such_dimensions(
  tiny, tokens
):
  params, cfg = tiny
  f, dims = sinkjax.forward(cfg), np.zeros((cfg.n_layers, cfg.d_model), bool)
  dims[0, 3] = True
  edits = split_norms(cfg, params, dims, adds=0.0, rescales=0.0)

  def gone(value, layer):
    return jnp.where(layer == 0, value.at[..., 3].set(0), value)

  def read(edits):
    watch = {"x": ("attn_in", lambda x: x)}
    g = sinkjax.capture(sinkjax.intervene(f, edits), watch)
    return jax.jit(lambda p, ids: g(p, ids).trace["x"][0])(params, tokens)

  one, other = read(edits), read({"resid_pre": gone})
  np.testing.assert_allclose(one, other, atol=1e-5)
  assert np.abs(one - read({})).max() > 1e-3


def test_a_model_without_norms_is_refused(tiny):
  params, cfg = tiny
  with pytest.raises(ValueError, match="norms what its layers read"):
    split_norms(
      cfg.replace(pre_norms=False, post_norms=True),
      params,
      np.zeros((3, 16), bool),
      adds=0.0,
      rescales=0.0,
    )
