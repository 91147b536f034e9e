"""Bounds against float64, the attention against plain softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sinkjax.inference import block_bounds, key_codes, sparse_blocks
from sinkjax.inference.key_codes import fit_codec
from sinkjax.inference.sparse_blocks import sparse_block_attention

BATCH, LENGTH, HEADS, GROUPS, WIDTH, BLOCK = 2, 64, 4, 2, 8, 8
COUNT = LENGTH // BLOCK
SCALE = WIDTH**-0.5
WAYS = (None, 0, 2, 6)
attend = jax.jit(
  functools.partial(sparse_block_attention, scale=SCALE, block=BLOCK),
  static_argnames="bits",
)
span_of = jax.jit(
  functools.partial(block_bounds.span_of, scale=SCALE, block=BLOCK),
  static_argnames="bits",
)


def exact(q, k, v):
  """(scores, pattern [B, H, T, S], z [B, T, H, K]) in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, HEADS // GROUPS, axis=2) for x in (k, v))
  scores = SCALE * np.einsum("bthk,bshk->bhts", q, k)
  seen = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
  weights = np.exp(seen - seen.max(axis=-1, keepdims=True))
  pattern = weights / weights.sum(axis=-1, keepdims=True)
  return scores, pattern, np.einsum("bhts,bshk->bthk", pattern, v)


def drawn(kind: str, seed: int):
  """Queries, keys and values, of kinds that try the bounds."""
  rng = np.random.default_rng(seed)
  q = rng.normal(size=(BATCH, LENGTH, HEADS, WIDTH))
  k, v = (rng.normal(size=(BATCH, LENGTH, GROUPS, WIDTH)) for _ in range(2))
  if kind == "large":
    q, k = 30 * q, 30 * k
  elif kind == "sink":
    q[..., 0], k[:, 0, :, 0] = 6, 6
    k[:, 1:, :, 0] = 0
  elif kind == "one key":  # one of a block is the query itself, far away
    k *= 0.01
    k[:, 13, 1] = 20 * q[:, 61, 3]
  elif kind == "no spread":
    k[:, 1:] = k[:, 1:2]
  elif kind == "corner":  # at the box's corner, and at the ball's edge
    k, q = 3 * np.sign(k), np.sign(q)
  elif kind == "far":  # a large centre of which the score cancels
    k += 1e3 * np.eye(WIDTH)[1]
    q[..., 1] = 0
  elif kind == "flat":  # queries see two dimensions of eight
    q[..., 2:] *= 1e-3
    k[..., :2] *= 0.3
  return tuple(jnp.asarray(x, jnp.float32) for x in (q, k, v))


KINDS = (
  "random",
  "large",
  "sink",
  "one key",
  "no spread",
  "corner",
  "far",
  "flat",
)


@functools.cache
def codec(seed=100, kind="random"):
  """Fitted on a text of its own."""
  return fit_codec(*drawn(kind, seed)[:2], block=BLOCK)


def one_head(codec, group):
  return jax.tree.map(lambda x: x[group], codec)


def logs(scores, queries_own: bool):
  """[H, T, C] of one text: each block's weight, without the first key."""
  scores = scores.copy()
  scores[..., 0] = -np.inf
  if queries_own:
    scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
  scores = scores.reshape(HEADS, LENGTH, COUNT, BLOCK)
  with np.errstate(divide="ignore", invalid="ignore"):
    top = scores.max(axis=-1, keepdims=True)
    total = np.exp(scores - np.where(np.isfinite(top), top, 0)).sum(axis=-1)
    return np.log(total) + top[..., 0]


@pytest.mark.parametrize("bits", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_spans_hold(kind, bits):
  far = np.tri(COUNT, k=-1, dtype=bool).repeat(BLOCK, axis=0)  # [T, C]
  for seed in range(3):
    q, k, v = drawn(kind, seed)
    want = logs(exact(q, k, v)[0][0], bits is None)
    for head in range(HEADS):
      own = one_head(codec(), head // 2)
      got = span_of(q[0, :, head], k[0, :, head // 2], own, bits=bits)
      low, high = (np.asarray(x, np.float64)[far] for x in got)
      true = want[head][far]
      room = 1e-6 * (1 + np.abs(true))
      assert np.all(high >= true - room), (kind, seed, head)
      assert np.all(low <= true + room), (kind, seed, head)
      if bits is None and kind == "random":
        assert np.all(high - low < 1e-3)


def test_more_bits_are_tighter_and_a_fitted_basis_is_too():
  q, k, _ = drawn("flat", 0)
  fitted, plain = fit_codec(*drawn("flat", 0)[:2], block=BLOCK), codec()
  unit = plain._replace(
    basis=np.broadcast_to(np.eye(WIDTH, dtype=np.float32), (2, WIDTH, WIDTH)),
    inverse=np.broadcast_to(np.eye(WIDTH, dtype=np.float32), (2, WIDTH, WIDTH)),
    low=np.asarray(k[:, 1:].min(axis=(0, 1))),
    high=np.asarray(k[:, 1:].max(axis=(0, 1))),
  )

  def width(codec, bits):
    own = one_head(codec, 0)
    _, error = key_codes.coded(k[0, :, 0], own, bits)
    seen = key_codes.query_norm(q[0, :, 0], own)
    return float(error[1:].mean() * seen.mean())

  widths = {bits: width(fitted, bits) for bits in (2, 4, 6, 8)}
  for bits in (2, 4, 6):  # as the grid's steps
    steps = (2 ** (bits + 2) - 1) / (2**bits - 1)
    assert widths[bits] / widths[bits + 2] == pytest.approx(steps, rel=0.1)
  assert width(fitted, 6) < 0.3 * width(unit, 6)
  # codes are of their own key: what comes later does not change them
  own = one_head(fitted, 0)
  near, error = key_codes.coded(k[0, :, 0], own, 4)
  again, errors = key_codes.coded(k[0, :9, 0], own, 4)
  np.testing.assert_allclose(near[:9], again, atol=1e-6)
  np.testing.assert_allclose(error[:9], errors, rtol=1e-4)


def test_the_fitted_basis_balances_both_factors():
  q, k, _ = drawn("flat", 3)
  own = one_head(fit_codec(q, k, block=BLOCK), 0)
  seen = np.asarray(q[:, :, :2], np.float64).reshape(-1, WIDTH) @ own.basis
  gap = np.asarray(k[:, BLOCK:, 0], np.float64)
  gap = gap.reshape(BATCH, -1, BLOCK, WIDTH)
  gap = (gap - gap.mean(axis=2, keepdims=True)).reshape(-1, WIDTH)
  off = gap @ own.inverse.T
  moments = [x.T @ x / len(x) for x in (seen, off)]
  sizes = np.diag(moments[0])
  scale = sizes.max()
  big = sizes > 2e-3 * scale  # smaller ones are at the floor
  assert big.sum() >= 2
  for moment in moments:
    part = moment[np.ix_(big, big)]
    np.testing.assert_allclose(part, np.diag(sizes[big]), atol=1e-3 * scale)
  # no other basis has a smaller product of mean squares
  product = np.trace(moments[0]) * np.trace(moments[1])
  plain = np.mean(np.sum(gap**2, -1)) * np.mean(
    np.sum(np.asarray(q[:, :, :2], np.float64) ** 2, -1)
  )
  rng = np.random.default_rng(0)
  assert product < plain
  for _ in range(50):
    turn = np.eye(WIDTH) + 0.1 * rng.normal(size=(WIDTH, WIDTH))
    other = np.mean(np.sum((seen @ turn) ** 2, -1)) * np.mean(
      np.sum((off @ np.linalg.inv(turn).T) ** 2, -1)
    )
    assert other > product * 0.999


@pytest.mark.thorough
@pytest.mark.parametrize("bits", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_tolerance_is_exact(kind, bits):
  q, k, v = drawn(kind, 3)
  got = attend(q, k, v, codec(), tolerance=0.0, bits=bits)
  assert not got.error.any()
  np.testing.assert_array_equal(
    got.kept, np.broadcast_to(np.tri(COUNT, dtype=bool), got.kept.shape)
  )
  norms = np.linalg.norm(q, axis=-1).max() * np.linalg.norm(k, axis=-1).max()
  rounding = np.finfo(np.float32).eps * max(float(norms) * SCALE, 1.0)
  tight = 1e-6 if kind not in ("large", "far") else 1e-3
  np.testing.assert_allclose(
    got.z, exact(q, k, v)[2], atol=tight, rtol=4 * rounding
  )


@pytest.mark.thorough
@pytest.mark.parametrize("bits", WAYS)
@pytest.mark.parametrize("tolerance", [1e-3, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["sink", "large", "one key", "flat"])
def test_errors_stay_below_their_bound(kind, tolerance, bits):
  shares = []
  for seed in range(3):
    q, k, v = drawn(kind, seed)
    _, pattern, z = exact(q, k, v)
    got = attend(q, k, v, codec(), tolerance=tolerance, bits=bits)
    kept = np.asarray(got.kept)
    whole = kept.repeat(BLOCK, axis=2).repeat(BLOCK, axis=3)
    whole[..., 0] = True
    lost = np.where(whole, 0, pattern).sum(axis=-1)
    assert np.all(lost < tolerance * (1 + 1e-5))
    far = np.maximum.accumulate(np.linalg.norm(v, axis=-1), axis=1)
    far = np.repeat(far.swapaxes(1, 2), 2, axis=1)
    error = np.asarray(got.error)
    assert np.all(2 * lost * far <= error * (1 + 1e-5) + 1e-12)
    off = np.linalg.norm(np.asarray(got.z) - z, axis=-1).swapaxes(1, 2)
    assert np.all(off <= error + 2e-4)
    near = np.tri(COUNT, dtype=bool) & ~np.tri(COUNT, k=-2, dtype=bool)
    future = ~np.tri(COUNT, dtype=bool)
    assert kept[:, :, near].all() and not kept[:, :, future].any()
    shares.append(1 - kept.sum() / (BATCH * HEADS * COUNT * (COUNT + 1) / 2))
  if kind == "sink" and bits in (None, 6) and tolerance > 1e-3:
    assert np.mean(shares) > 0.3
  if kind == "one key" and tolerance == 1e-3:
    assert np.mean(shares) < 0.3


def test_what_is_left_out_first_weighs_least():
  q, k, v = drawn("random", 0)
  pattern = exact(q, k, v)[1]
  got = attend(q, k, v, tolerance=0.2, bits=None)
  kept = np.asarray(got.kept)
  weight = pattern.copy()
  weight[..., 0] = 0
  weight = weight.reshape(BATCH, HEADS, COUNT, BLOCK, COUNT, BLOCK)
  worst = weight.sum(axis=-1).max(axis=3)  # [B, H, C, C]
  free = np.tri(COUNT, k=-2, dtype=bool)
  for at in np.ndindex(BATCH, HEADS, COUNT):
    gone, left = (worst[at][free[at[2]] & x] for x in (~kept[at], kept[at]))
    assert gone.max(initial=0) <= left.min(initial=1) * (1 + 1e-4)
    if left.size:  # one more would be too much
      rows = weight[at].sum(axis=-1)[:, free[at[2]]]
      lost = rows[:, ~kept[at][free[at[2]]]].sum(axis=1)
      next_one = worst[at][free[at[2]] & kept[at]].argmin()
      more = lost + rows[:, kept[at][free[at[2]]]][:, next_one]
      assert more.max() >= 0.2 * (1 - 1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("bits", WAYS)
def test_later_blocks_change_nothing(bits):
  q, k, v = drawn("sink", 1)
  cut = 5 * BLOCK
  other = drawn("large", 2)
  changed = [
    x.at[:, cut:].set(y[:, cut:]) for x, y in zip((q, k, v), other, strict=True)
  ]
  one = attend(q, k, v, codec(), tolerance=0.2, bits=bits)
  two = attend(*changed, codec(), tolerance=0.2, bits=bits)
  np.testing.assert_array_equal(one.kept[:, :, :5], two.kept[:, :, :5])
  np.testing.assert_array_equal(one.z[:, :cut], two.z[:, :cut])
  np.testing.assert_array_equal(one.error[..., :cut], two.error[..., :cut])
  assert not np.array_equal(one.z[:, cut:], two.z[:, cut:])


@pytest.mark.thorough
def test_near_weight_counts_what_it_says():
  q, k, v = drawn("random", 5)
  scores = exact(q, k, v)[0][0, 3]
  at = np.arange(LENGTH)
  for window, sink in ((1, True), (0, True), (2, False), (-1, True)):
    first = (at // BLOCK - window) * BLOCK
    seen = (at[None] <= at[:, None]) & (at[None] >= first[:, None])
    seen[:, 0] = sink
    got = block_bounds.near_weight(
      q[0, :, 3], k[0, :, 1], scale=SCALE, block=BLOCK, window=window, sink=sink
    )
    want = np.where(seen, np.exp(scores), 0).sum(axis=1)
    some = want > 0
    np.testing.assert_allclose(np.exp(got)[some], want[some], rtol=2e-3)
    assert np.all(np.exp(got)[some] <= want[some] * (1 + 1e-6))


@pytest.mark.parametrize("bits", [None, 0, 6])
def test_products_are_exact_where_the_default_is_not(bits):
  """On a TPU or in TF32 the margins of rounding would be too small."""
  call = functools.partial(
    sparse_block_attention, scale=SCALE, tolerance=0.1, bits=bits, block=BLOCK
  )
  with jax.default_matmul_precision("bfloat16"):
    text = str(jax.make_jaxpr(call)(*drawn("random", 0), codec()))
    assert text.count("dot_general[") == text.count(
      "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    )


def test_refusals():
  q, k, v = drawn("random", 0)
  call = functools.partial(sparse_block_attention, scale=SCALE, tolerance=0.1)
  with pytest.raises(ValueError, match="divide the length 64, got 7"):
    call(q, k, v, block=7)
  with pytest.raises(ValueError, match="N dividing H"):
    call(q[:, :, :3], k, v)
  with pytest.raises(ValueError, match="0 or more, got 0.1 and -1"):
    call(q, k, v, window=-1)
  with pytest.raises(ValueError, match="need a codec"):
    call(q, k, v, bits=4)
  with pytest.raises(ValueError, match="1 to 16, got 17"):
    call(q, k, v, codec(), bits=17)
  with pytest.raises(ValueError, match="positive, got 0"):
    sparse_block_attention(q, k, v, scale=0, tolerance=0.1)
  with pytest.raises(ValueError, match="at least 128 tokens"):
    fit_codec(q, k, block=64)
  with pytest.raises(ValueError, match="do not differ"):
    fit_codec(0 * q, k, block=8)
  assert sparse_blocks._sizes(5) == [1, 2, 3, 4, 5]
