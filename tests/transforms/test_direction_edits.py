"""Directions taken out of tokens, by hand and inside a model."""

import jax
import numpy as np
import pytest

import sinkjax
from sinkjax.transforms.direction_edits import TakeOut

edited = jax.jit(lambda edit, x: edit(x, 1))
RNG = np.random.default_rng(0)


def directions(layers=3, batch=2, size=32):
  return RNG.normal(size=(2, layers, batch, size)).astype(np.float32)


def test_projection_and_control_by_hand():
  read, write = directions(size=5)
  x = RNG.normal(size=(2, 6, 5)).astype(np.float32)
  queries = np.array([[False] * 2 + [True] * 4, [False] * 5 + [True]])
  r, w = (
    u[1] / np.linalg.norm(u[1], axis=-1, keepdims=True) for u in (read, write)
  )
  size = np.einsum("btd,bd->bt", x, r)[..., None] * queries[..., None]
  out = np.asarray(edited(TakeOut(read, 3 * read, queries), x))
  np.testing.assert_allclose(out, x - size * r[:, None], atol=1e-6)
  left = np.einsum("btd,bd->bt", out, r)[queries]
  np.testing.assert_allclose(left, 0, atol=1e-6)
  moved = np.asarray(edited(TakeOut(read, write, queries), x))
  np.testing.assert_allclose(moved, x - size * w[:, None], atol=1e-6)
  # The control moves every token as far.
  np.testing.assert_allclose(
    *(np.linalg.norm(y - x, axis=-1) for y in (out, moved)), atol=1e-5
  )
  # What all have in common is left: the mean of each text is what it was.
  mean = size.sum(axis=1) / queries.sum(axis=1)[:, None]
  level = np.zeros((3, 2), np.float32)
  level[1] = mean[:, 0]
  level_out = np.asarray(edited(TakeOut(read, read, queries, level), x))
  for b in range(2):
    rest = level_out[b, queries[b]]
    np.testing.assert_allclose(rest @ r[b], mean[b, 0], atol=1e-5)
    np.testing.assert_allclose(
      rest.mean(axis=0), x[b, queries[b]].mean(axis=0), atol=1e-5
    )
  same = edited(TakeOut(0 * read, write, queries), x)
  np.testing.assert_array_equal(same, x)


@pytest.mark.thorough
def test_every_layer_writes_nothing_along_its_direction(tiny, tokens):
  params, cfg = tiny
  read, _ = directions(cfg.n_layers, 2, cfg.d_model)
  queries = np.ones(tokens.shape, bool)
  queries[:, :3] = False
  f = sinkjax.intervene(
    sinkjax.forward(cfg), {"attn_out": TakeOut(read, read, queries)}
  )
  g = sinkjax.capture(f, {"x": ("attn_out", lambda x: x)})
  x = jax.jit(lambda *a: g(*a).trace["x"])(params, tokens)
  along = np.abs(np.einsum("lbtd,lbd->lbt", x, read))
  assert along[:, :, 3:].max() < 1e-4 < 1e-2 < along[:, :, :3].max()


def test_arrays_of_another_size_are_refused(tiny, tokens):
  params, cfg = tiny
  read, _ = directions(cfg.n_layers + 1, 2, cfg.d_model)
  every = np.ones(tokens.shape, bool)
  f = sinkjax.forward(cfg)
  for edit, what in (
    (TakeOut(read, read, every), "read must have the model's 3 layers"),
    (TakeOut(read[1:], read[1:], every[:, 1:]), "each of the 12 tokens"),
  ):
    with pytest.raises(ValueError, match=what):
      sinkjax.intervene(f, {"attn_out": edit})(params, tokens)
