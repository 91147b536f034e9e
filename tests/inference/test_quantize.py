"""Rounding to a grid: the laws of it, and the edit inside a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted

import sinkjax
from sinkjax.inference.quantize import (
  PER,
  Quantize,
  before_rotation,
  quantize_kv,
)
from sinkjax.inference.quantize import quantize as eager

quantize = jitted(eager)

KINDS = [
  (per, symmetric, group)
  for per in PER
  for symmetric in (False, True)
  for group in (None, 4, 5)
  if group is None or per != "tensor"
]


def values(shape=(2, 12, 3, 8)):
  """Not the same size everywhere, so that a wrong range shows."""
  rng = np.random.default_rng(0)
  return rng.normal(size=shape) * np.exp(rng.normal(size=shape))


def reference(x, bits, per, symmetric, group, keep=()):
  """Number by number: everything that shares a step in one list."""
  out, shared = x.copy(), {}
  size = group or 10**9
  for at in np.ndindex(x.shape):
    if at[1] in keep:
      continue
    name = {
      "token": (*at[:-1], at[-1] // size),
      "channel": (at[0], at[1] // size, *at[2:]),
      "tensor": (at[0],),
    }[per]
    shared.setdefault(name, []).append(at)
  steps = np.full(x.shape, np.nan)
  for places in shared.values():
    at = tuple(np.array(places).T)
    mine = x[at]
    if symmetric:
      low, step = 0.0, np.abs(mine).max() / (2 ** (bits - 1) - 1)
    else:
      low = mine.min()
      step = (mine.max() - low) / (2**bits - 1)
    out[at] = np.round((mine - low) / step) * step + low
    steps[at] = step
  return out, steps


@pytest.mark.thorough
@pytest.mark.parametrize(("per", "symmetric", "group"), KINDS)
def test_grid_error_idempotence_and_kept_tokens(per, symmetric, group):
  x = values()
  kind = {"per": per, "symmetric": symmetric, "group": group}
  for bits in (2, 3, 4, 8):
    for keep in ((), (0,), (0, 7)):
      kept = np.isin(np.arange(x.shape[1]), keep)
      want, steps = reference(x, bits, per, symmetric, group, keep)
      with jax.enable_x64():
        got = np.asarray(quantize(jnp.asarray(x), bits, keep=kept, **kind))
        again = np.asarray(quantize(jnp.asarray(got), bits, keep=kept, **kind))
      np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
      np.testing.assert_allclose(again, got, rtol=1e-9, atol=1e-12)
      assert np.array_equal(got[:, kept], x[:, kept])
      error, half = np.abs(got - x)[:, ~kept], steps[:, ~kept] / 2
      assert np.all(error <= half * (1 + 1e-9))
      assert error.max() > 0.2 * half.max()


@pytest.mark.parametrize("per", PER)
def test_what_is_on_the_grid_stays(per):
  """Small integers with both ends in every row, column and text."""
  x = np.random.default_rng(1).integers(0, 4, size=(2, 8, 8))
  for i in range(8):
    x[:, i, i], x[:, i, (i + 1) % 8] = 0, 3
  x = jnp.asarray(x, jnp.float32)
  assert np.array_equal(quantize(x, 2, per=per), x)
  even = 2 * x - 3  # -3, -1, 1, 3: no zero, so not on a symmetric grid
  assert np.array_equal(quantize(even, 2, per=per), even)
  assert not np.array_equal(quantize(even, 2, per=per, symmetric=True), even)
  odd = jnp.where(x == 3, -7, 7 * x)  # 0, 7, 14, -7
  odd = jnp.where(odd == 14, 0, odd)
  assert np.array_equal(quantize(odd, 2, per=per, symmetric=True), odd)


def test_scaling_a_channel_scales_what_comes_out_per_channel():
  x = jnp.asarray(values(), jnp.float32)
  factor = jnp.asarray([1, 2, 64, 0.5, 1, 4, 8, 0.25]).reshape(1, 1, 1, 8)

  def by(per, x):
    return np.asarray(quantize(x, 3, per=per))

  assert np.array_equal(
    by("channel", x * factor), by("channel", x) * np.asarray(factor)
  )
  assert not np.allclose(
    by("token", x * factor), by("token", x) * np.asarray(factor)
  )


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_kept_outlier_does_not_widen_the_grid(per):
  x = jnp.asarray(values(), jnp.float32)
  out = x.at[:, 0].mul(1e4)
  keep = np.arange(12) == 0
  with_it, without = (
    np.asarray(quantize(out, 4, per=per, keep=k))[:, 1:] for k in (None, keep)
  )
  rest = np.asarray(x)[:, 1:]
  wide, narrow = (np.abs(y - rest).max() for y in (with_it, without))
  assert wide > 10 * narrow > 0
  alone = quantize(x[:, 1:], 4, per=per)
  np.testing.assert_allclose(without, alone, rtol=1e-6)


def test_constants_and_tokens_all_kept_are_finite_and_exact():
  x = jnp.full((1, 3, 4), 0.3)
  for per in PER:
    for symmetric in (False, True):
      got = quantize(x, 3, per=per, symmetric=symmetric)
      np.testing.assert_allclose(got, x, rtol=1e-6)
      zero = quantize(0 * x, 3, per=per, symmetric=symmetric)
      assert np.array_equal(zero, 0 * x)
    kept = quantize(x, 3, per=per, keep=np.ones(3, bool))
    assert np.array_equal(kept, x)


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"per": "head"}, r"one of \['token', 'channel', 'tensor'\], got 'head'"),
    ({"per": "tensor", "group": 4}, "got 4 per tensor"),
    ({"per": "token", "group": 0}, "got 0 per token"),
    ({"per": "token", "symmetric": True, "bits": 1}, r"\[2, 16\] if symmetric"),
    ({"per": "token", "bits": 0}, r"in \[1, 16\] if asymmetric, got 0"),
  ],
)
def test_mistakes_are_named(given, said):
  given = {"bits": 4, **given}
  with pytest.raises(ValueError, match=said):
    quantize(jnp.ones((1, 2, 3)), given.pop("bits"), **given)
  with pytest.raises(ValueError, match=r"\[B, T, ..., C\], got shape \(2, 3\)"):
    quantize(jnp.ones((2, 3)), 4, per="token")


@pytest.mark.thorough
@pytest.mark.parametrize("per", PER)
def test_the_edit_inside_a_model_is_one_trace(tiny, tokens, per):
  """Its layers, its kept tokens, and 16 bits close to none."""
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  watch = {site: (site, lambda x: x) for site in ("k", "v", "z")}
  traces = []

  @jax.jit
  def run(bits, keep, layers):
    traces.append(1)
    edits = quantize_kv(bits, keep=keep, layers=layers, per=per)
    out = sinkjax.capture(sinkjax.intervene(f, edits), watch)(params, tokens)
    return out.logits, out.trace

  plain = jax.jit(sinkjax.capture(f, watch))(params, tokens)
  everywhere = jnp.arange(cfg.n_layers)
  logits, trace = run(3, jnp.asarray(0), everywhere)
  assert not np.allclose(logits, plain.logits, atol=1e-3)
  for site in ("k", "v"):
    want, got = np.asarray(plain.trace[site]), np.asarray(trace[site])
    np.testing.assert_allclose(got[0, :, 0], want[0, :, 0], rtol=1e-5)
    assert not np.allclose(got[0, :, 1:], want[0, :, 1:], rtol=1e-3)
    whole = quantize(jnp.asarray(want[0]), 3, per=per, keep=np.arange(12) == 0)
    np.testing.assert_allclose(got[0], whole, atol=1e-4)
  none, _ = run(3, jnp.asarray(-1), jnp.full(cfg.n_layers, -1, jnp.int32))
  np.testing.assert_allclose(none, plain.logits, atol=1e-5)
  fine, _ = run(16, jnp.asarray(-1), everywhere)
  np.testing.assert_allclose(fine, plain.logits, atol=5e-3)
  one, trace = run(2, jnp.asarray(-1), jnp.full(cfg.n_layers, 1, jnp.int32))
  np.testing.assert_allclose(trace["k"][0], plain.trace["k"][0], rtol=1e-5)
  assert not np.allclose(trace["k"][1], plain.trace["k"][1], rtol=1e-3)
  assert len(traces) == 1


def test_the_edit_refuses_blocks_of_rows(tiny):
  from sinkjax.transforms.edits import rows_of

  with pytest.raises(ValueError, match="Quantize cannot act on a block"):
    rows_of(Quantize(4))


@pytest.mark.parametrize("symmetric", [False, True])
def test_static_limits(symmetric):
  """The range of the array itself is the dynamic grid; others clip."""
  x = jnp.asarray(values(), jnp.float32)[:1]
  kind = {"per": "tensor", "symmetric": symmetric}
  own = quantize(x, 4, limits=(x.min(), x.max()), **kind)
  np.testing.assert_array_equal(own, quantize(x, 4, **kind))
  limits = (-1.0, 0.5)
  got = np.asarray(quantize(x, 3, limits=limits, **kind))
  low, high = (-1.0, 1.0) if symmetric else limits
  steps = 6 if symmetric else 7
  assert len(np.unique(got.round(6))) == steps + 1
  np.testing.assert_allclose([got.min(), got.max()], [low, high], rtol=1e-6)
  want = np.clip(np.asarray(x), low, high)
  assert np.abs(got - want).max() <= (high - low) / steps / 2 * (1 + 1e-5)
  kept = quantize(x, 3, limits=limits, keep=np.arange(12) == 2, **kind)
  np.testing.assert_array_equal(kept[:, 2], x[:, 2])
  with pytest.raises(ValueError, match="of a whole tensor, got per 'token'"):
    quantize(x, 3, per="token", limits=limits)


def test_static_limits_are_of_each_layer():
  x = jnp.asarray(values(), jnp.float32)
  limits = jnp.asarray([[-1.0, 1.0], [-4.0, 2.0]])
  edit = Quantize(4, per="tensor", limits=limits)
  for layer in range(2):
    want = eager(x, 4, per="tensor", limits=tuple(limits[layer]))
    np.testing.assert_array_equal(edit(x, layer), want)


@pytest.mark.parametrize("kind", ["global", "local", "grown"])
def test_keys_before_rotation(kind):
  """The edit's own keys, turned in complex numbers here."""
  cfg = sinkjax.TINY.replace(rope_dim=4)
  local, grown = kind == "local", 1.3 if kind == "grown" else 1.0
  if kind == "grown":
    scaling = sinkjax.RopeScaling("yarn", factor=1.0, attention=grown)
    cfg = cfg.replace(rope_scaling=scaling)
  if local:
    cfg = cfg.replace(
      window=3, local_layers=(False, True, False), rope_local_base=50.0
    )
  rng = np.random.default_rng(2)
  sizes = [2, 18, 2, 2] + [1] * (cfg.head_dim - 4)
  k = rng.normal(size=(2, 9, cfg.n_kv_heads, cfg.head_dim)) * sizes
  edit = Quantize(3, keep=jnp.asarray([0, 4]), per="channel")
  both = before_rotation(cfg, edit, jnp.arange(9))
  for layer in (0, 1):
    base = 50.0 if local and layer == 1 else cfg.rope_base
    turn = np.exp(1j * np.outer(np.arange(9), base ** -(np.arange(2) / 2)))
    turn *= grown

    def rotated(k, turn=turn):
      z = (k[..., :2] + 1j * k[..., 2:4]) * turn[:, None]
      return np.concatenate([z.real, z.imag, k[..., 4:]], axis=-1)

    given = jnp.asarray(rotated(k), jnp.float32)
    got = np.asarray(both(given, layer))
    want = rotated(np.asarray(edit(jnp.asarray(k, jnp.float32), layer)))
    np.testing.assert_allclose(got, want, atol=2e-4)
    np.testing.assert_array_equal(got[:, [0, 4]], given[:, [0, 4]])
    after = np.asarray(edit(given, layer))
    assert np.abs(after - want).max() > 0.1
  with pytest.raises(ValueError, match="not rotated with positions 'learned'"):
    before_rotation(cfg.replace(positions="learned"), edit, jnp.arange(9))
