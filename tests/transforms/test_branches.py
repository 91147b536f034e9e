"""Branches of a row: each is what it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import scaled

import sinkjax
from sinkjax.transforms.branches import (
  branch_row,
  check_window,
  separate,
  split_endings,
)
from sinkjax.transforms.streaming import stream_statistics

CONTEXT, ENDINGS = [5, 9, 2, 7], [[3], [8, 8, 1], [4, 6]]


@pytest.fixture(scope="module", params=["rope", "learned", "none"])
def model(request):
  cfg = sinkjax.TINY.replace(positions=request.param)
  params = sinkjax.init_params(cfg, jax.random.key(3))
  return cfg, scaled(params, 1.5)


def alone(cfg, params, edits=None):
  """Logits of every token of a branch, each run with the context only."""
  f = sinkjax.intervene(sinkjax.forward(cfg), edits or {})
  return [
    f(params, jnp.array(CONTEXT + ending)).logits[0, len(CONTEXT) :]
    for ending in ENDINGS
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  "edit",
  [
    pytest.param(None, marks=pytest.mark.slow),
    sinkjax.knockout(0, from_layer=1),
  ],
)
def test_a_branch_is_what_it_would_be_alone(model, edit):
  cfg, params = model
  with jax.enable_x64(True):
    cfg = cfg.replace(dtype="float64")
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    row = branch_row(CONTEXT, ENDINGS)
    apart = separate(jnp.asarray(row.branch)[None])
    chained = sinkjax.chain(apart, edit) if edit else apart
    f = sinkjax.intervene(sinkjax.forward(cfg), {"scores": chained})
    got = f(params, row.tokens, positions=row.positions).logits[0]
    want = alone(cfg, params, {"scores": edit} if edit else None)
    for number, logits in enumerate(want):
      mine = got[row.branch == number + 1]
      np.testing.assert_allclose(mine, logits, atol=1e-11)
    free = sinkjax.forward(cfg)(params, row.tokens).logits[0]
  assert not np.allclose(free[row.branch == 3], want[2], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 3, 64])
def test_streamed_branches(model, block):
  cfg, params = model
  row = branch_row(CONTEXT, ENDINGS)
  f = sinkjax.intervene(
    sinkjax.forward(cfg), {"scores": separate(jnp.asarray(row.branch)[None])}
  )
  watched = sinkjax.capture(f, {"final": ("final", lambda x: x)})
  want = watched(params, row.tokens, positions=row.positions).trace["final"]
  run = stream_statistics(watched, {}, block=block)
  got = run(params, row.tokens, positions=row.positions).trace["final"]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_parents_and_refusals():
  row = branch_row(CONTEXT, ENDINGS)
  for number, ending in enumerate(ENDINGS):
    at, walked = np.flatnonzero(row.branch == number + 1)[-1], []
    while at:
      walked.append(int(row.tokens[at]))
      at = row.parent[at]
    assert walked[::-1] == CONTEXT[1:] + ending
  for context, endings in (([], [[1]]), ([1], []), ([1], [[2], []])):
    with pytest.raises(ValueError, match="at least one token"):
      branch_row(context, endings)


def test_what_a_tokenizer_joins_is_scored():
  def pairs(text):  # two letters a token
    return [
      int.from_bytes(text[i : i + 2].encode()) for i in range(0, len(text), 2)
    ]

  context, rests = split_endings(pairs, "abc", ["de", "f"])
  assert context == pairs("ab")
  assert rests == [pairs("cde"), pairs("cf")]
  with pytest.raises(ValueError, match="leaves no context"):
    split_endings(pairs, "a", ["b", "c"])
  with pytest.raises(ValueError, match="none of an ending"):
    split_endings(pairs, "ab", ["cd", ""])


def test_a_window_must_hold_the_row():
  local = sinkjax.TINY.replace(
    window=8, local_layers=(True,) + (False,) * (sinkjax.TINY.n_layers - 1)
  )
  check_window(local, 8)
  with pytest.raises(ValueError, match="window of 8"):
    check_window(local, 9)
  check_window(sinkjax.TINY, 10**6)
