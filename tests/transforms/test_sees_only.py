"""`sees_only`: patterns by hand, the state of a text of one, streaming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.metrics.rows import received_mass
from sinkjax.transforms.attention_edits import sees_only
from sinkjax.transforms.streaming import stream_statistics


@jax.jit
def run(params, ids, edit):
  """[L, H, T, S] of one text."""
  f = sinkjax.capture(
    sinkjax.forward(sinkjax.TINY), {"p": ("pattern", lambda x: x)}
  )
  return sinkjax.intervene(f, {"scores": edit})(params, ids).trace["p"][:, 0]


def mask(size, *at):
  return np.isin(np.arange(size), at)


def pattern(params, *query, back=0, layers=(0, 1, 2)):
  """With masks in place of indices, so that one program serves all."""
  which = mask(sinkjax.TINY.n_layers, *layers)
  edit = sees_only(mask(8, *query), back=np.asarray(back), layers=which)
  return np.asarray(run(params, IDS, edit))


IDS = np.arange(8)[None] + 3


def test_rows(tiny):
  params, cfg = tiny
  assert cfg.n_layers == 3
  one, plain = np.eye(8), pattern(params)
  alone = pattern(params, 4)
  assert (alone[:, :, 4] == one[4]).all()
  before = pattern(params, 4, 6, back=1)
  assert (before[:, :, 4] == one[3]).all()
  assert (before[:, :, 6] == one[5]).all()
  # There is nothing nine tokens before; the first is as far as it goes.
  assert (pattern(params, 2, back=9)[:, :, 2] == one[0]).all()
  layer = pattern(params, 4, layers=[1])
  np.testing.assert_array_equal(layer[0], plain[0])
  assert (layer[1, :, 4] == one[4]).all() and (layer[2, :, 4] < 1).all()
  # Rows of other queries are changed by the states that they read, not masked.
  np.testing.assert_array_equal(alone[:, :, :4], plain[:, :, :4])
  assert (alone[:, :, 5, :6] > 0).all()


@pytest.mark.thorough
def test_a_token_that_sees_itself_alone_is_a_text_of_its_own():
  """In float64, to rounding: rotary scores depend on distances alone."""
  with jax.enable_x64(True):
    cfg = sinkjax.TINY.replace(dtype="float64")
    params = sinkjax.init_params(cfg, jax.random.key(3))
    params = jax.tree.map(lambda x: 2.0 * x.astype(jnp.float64), params)
    ids = np.arange(6)[None] + 3

    @jax.jit
    def states(params):
      f = sinkjax.capture(
        sinkjax.forward(cfg), {"x": ("resid_post", lambda x: x)}
      )
      edited = sinkjax.intervene(f, {"scores": sees_only(4)})
      many, one = edited(params, ids), f(params, ids[:, 4:5])
      return many.trace["x"][:, 0, 4], one.trace["x"][:, 0, 0]

    got, want = states(params)
  np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.thorough
def test_streamed_rows_are_the_same(tiny):
  params, cfg = tiny
  f = sinkjax.intervene(sinkjax.forward(cfg), {"scores": sees_only(4)})
  statistic = received_mass()
  streamed = stream_statistics(f, {"r": statistic}, nll=False)
  whole = pattern(params, 4).astype(np.float64)
  want = whole.sum(axis=-2) / (8 - np.arange(8))
  np.testing.assert_allclose(
    np.asarray(streamed(params, IDS).trace["r"])[:, 0], want, rtol=1e-5
  )


@pytest.mark.parametrize("edit", [sees_only(99), sees_only(0, layers=[99])])
def test_what_is_out_of_range_is_refused(tiny, edit):
  f = sinkjax.intervene(sinkjax.forward(tiny[1]), {"scores": edit})
  with pytest.raises(ValueError, match="99 is out of range"):
    f(tiny[0], np.arange(8)[None])
