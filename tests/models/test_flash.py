"""Tests of sinkjax.models.flash_statistics: accelerators' own kernels.

Here JAX interprets them; tests/compilers has what the devices' compilers say.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from streamed import STATISTICS

import sinkjax
from sinkjax.models import (
  attention_form,
  flash_arrays,
  flash_statistics,
  online_sums,
)
from sinkjax.models.online import online_attention
from sinkjax.transforms.streaming import stream_statistics

BATCH, HEADS, GROUPS, WIDTH, VALUES, SCALE = 2, 4, 2, 6, 5, 0.4
WANTED = ("columns", "diagonals", "entropy", "written")


@pytest.fixture(params=["gpu", "tpu"], autouse=True)
def where(request, monkeypatch):
  """Kernels of a kind of device, by blocks of 8."""
  kind = request.param
  monkeypatch.setattr(flash_statistics, "device", lambda: kind)
  monkeypatch.setattr(flash_statistics, "SHORTEST", 1)
  monkeypatch.setattr(flash_arrays, "BLOCKS", {kind: (8,)})
  return kind


def inputs(length):
  """(q, k, v, norms, sinks of heads, sinks of rows), float64."""
  rng = np.random.default_rng(length)
  return (
    3 * rng.normal(size=(BATCH, length, HEADS, WIDTH)),
    rng.normal(size=(BATCH, length, GROUPS, WIDTH)),
    rng.normal(size=(BATCH, length, GROUPS, VALUES)),
    rng.uniform(size=(BATCH, length, GROUPS)),
    2 * rng.normal(size=(1, HEADS, 1)),
    2 * rng.normal(size=(BATCH, HEADS, length)),
  )


def by_definition(q, k, v, norms, sinks, window, valid, cap):
  """z, lse and every sum of the pattern, which is written out in float64."""
  k, v, norms = (np.repeat(x, HEADS // GROUPS, 2) for x in (k, v, norms))
  s = SCALE * np.einsum("bthk,bshk->bhts", q, k)
  s = s if cap is None else cap * np.tanh(s / cap)
  length = q.shape[1]
  back = np.arange(length)[:, None] - np.arange(length)
  seen = (back >= 0) & (back < (window or length))
  if valid is not None:
    seen = (seen & valid[:, None, None]) | (back == 0)
  weight = np.where(seen, np.exp(s), 0)
  total = weight.sum(-1)
  total = total if sinks is None else total + np.exp(sinks)
  p = weight / total[..., None]
  return {
    "z": np.einsum("bhts,bshw->bthw", p, v),
    "lse": np.moveaxis(np.log(total), 1, 2),
    "entropy": -(p * np.log(np.where(p > 0, p, 1))).sum(-1),
    "written": np.einsum("bhts,bsh->bht", p, norms),
    "columns": p.sum(2),
    "diagonals": np.stack(
      [np.trace(p, -d, axis1=2, axis2=3) for d in range(length)], -1
    ),
  }


@functools.partial(jax.jit, static_argnames=("where", "window", "cap"))
def by_kernels(q, k, v, norms, sinks, valid, reach, *, where, window, cap):
  """The same by both walks; `reach` is a window that is traced."""
  assert flash_statistics.device() == where  # which a trace depends on
  window = window if reach is None else reach
  rest = {"wanted": WANTED, "scale": SCALE}
  rest["scores"] = None if cap is None else lambda s: cap * jnp.tanh(s / cap)
  z, lse, sums = online_sums.attention_with_sums(
    q, k, v, norms, sinks, window, None, valid, **rest
  )
  assert set(sums) == {"entropy", "written"}
  sums = {name: jnp.swapaxes(x, 1, 2) for name, x in sums.items()}
  rest["wanted"] = ("columns", "diagonals")
  more = online_sums.online_sums(q, k, lse, None, window, None, valid, **rest)
  return {"z": z, "lse": lse, **sums, **more}


CASES = {
  "whole blocks": {"length": 16},
  "a length of no whole blocks": {"length": 21},
  "a window": {"length": 21, "window": 5},
  "a window longer than a block": {"length": 30, "window": 11},
  "a window that is traced": {"length": 21, "reach": 5},
  "itself alone": {"length": 16, "window": 1},
  "padding": {"length": 21, "valid": True},
  "padding and a window": {"length": 21, "valid": True, "window": 9},
  "a sink of each head": {"length": 16, "sinks": 4},
  "key heads one after the other": {
    "length": 22, "valid": True, "window": 9, "apart": True,
  },
  "everything": {
    "length": 21, "valid": True, "window": 9, "sinks": 5, "cap": 3.0,
  },
}  # fmt: skip


@pytest.mark.parametrize("name", quick(CASES, "everything", others="thorough"))
def test_against_float64(name, where, monkeypatch):
  case = {"window": None, "reach": None, "cap": None, **CASES[name]}
  if case.get("apart"):
    monkeypatch.setattr(flash_arrays, "LARGEST", 0)
  given = inputs(case["length"])
  sinks = given[case["sinks"]] if "sinks" in case else None
  valid = None
  if "valid" in case:
    valid = np.arange(case["length"]) < np.array([[case["length"]], [9]])
  window = case["window"] or case["reach"]
  want = by_definition(*given[:4], sinks, window, valid, case["cap"])
  got = by_kernels(
    *(jnp.asarray(x, jnp.float32) for x in given[:4]),
    None if sinks is None else jnp.asarray(sinks, jnp.float32),
    valid,
    case["reach"],
    where=where,
    window=case["window"],
    cap=case["cap"],
  )
  assert set(got) == set(want)
  for key, value in want.items():
    # Rounded products of queries near 10 in float32, and up to 30 weights.
    np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-5, err_msg=key)


def shaped(dtype="float32", width=64):
  """Queries, keys and values as their shapes."""
  of = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.dtype(dtype))
  return [of((1, 256, heads, width)) for heads in (4, 2, 2)]


def test_what_no_kernel_covers_is_left_to_plain_jax(where, monkeypatch):
  monkeypatch.undo()  # the real sizes
  covers = functools.partial(
    flash_statistics.covers, where, length=256, mask=None, weights=None
  )
  assert covers(shaped())
  assert covers(shaped("bfloat16", width=256))
  assert covers(shaped("float16")) == (where == "gpu")
  assert not covers(shaped("float64"))
  with jax.default_matmul_precision("highest"):
    assert covers(shaped())
  with jax.default_matmul_precision("default"):
    assert not covers(shaped()) and covers(shaped("bfloat16"))
  assert not covers(shaped(width=1024))
  assert not covers(shaped(), length=flash_statistics.SHORTEST - 1)
  assert not covers(shaped(), mask=jnp.ones((1, 1, 256, 256), bool))
  assert not covers(shaped(), weights=jax.nn.sigmoid)
  assert not flash_statistics.covers(
    None, shaped(), length=256, mask=None, weights=None
  )
  assert flash_statistics.device() is None  # on a CPU


def narrow(*arrays):
  return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


@pytest.mark.thorough
def test_entropy_and_columns_by_other_kernels():
  """Two identities, in which no sum of the pattern is formed as one.

  entropy_t = lse_t - scale q_t . z_t with the keys for values, and a column's
  sum is the derivative of the sum of z by that value.
  """
  q, k, v = narrow(*inputs(21)[:3])
  window = jnp.asarray(11)

  @jax.jit
  def both(q, k, v):
    # Of 6 entries as the queries, and of 5 as the values.
    z, lse, sums = online_sums.attention_with_sums(
      q, k, k, window=window, wanted=("entropy",), scale=SCALE
    )
    columns = online_sums.online_sums(
      q, k, lse, window=window, wanted=("columns",), scale=SCALE
    )["columns"]

    def total(v):
      return online_attention(q, k, v, None, window, scale=SCALE)[0].sum()

    entropy = lse - SCALE * (q * z).sum(-1)
    return (sums["entropy"], entropy), (columns, jax.grad(total)(v))

  (got, want), (columns, slopes) = both(q, k, v)
  # Scores are near 20, and the identity takes the difference of two such.
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
  assert float(got.max()) > 1
  of_group = columns.reshape(BATCH, GROUPS, -1, 21).sum(2)
  for entry in range(VALUES):
    slope = jnp.moveaxis(slopes[..., entry], 1, 2)
    np.testing.assert_allclose(of_group, slope, rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_what_a_row_gives_to_any_set_of_keys():
  """The first keys, a set of sinks, and the largest weight."""
  length = 21
  q, k, v, norms, sinks, _ = inputs(length)
  kernel = functools.partial(flash_arrays.rows, flash_statistics.device())
  chosen = np.zeros((2, length))
  chosen[0, :3] = 1
  chosen[1, [0, 5, 13]] = 1
  of_keys = np.broadcast_to(chosen, (BATCH, GROUPS, 2, length))
  firsts = (np.swapaxes(x, 1, 2) for x in (q, k, v))

  @jax.jit
  def found(q, k, v, sinks, of_keys):
    return kernel(
      *(SCALE, None, q, k, v),
      sinks=sinks,
      window=9,
      valid=None,
      of_keys=of_keys,
    )

  got = found(*narrow(*firsts, sinks, of_keys))
  # Values that are units mix to the pattern itself.
  units = np.broadcast_to(np.eye(length)[None, :, None], (
    BATCH, length, GROUPS, length,
  ))  # fmt: skip
  p = by_definition(q, k, units, norms, sinks, 9, None, None)["z"]
  p = np.swapaxes(p, 1, 2)
  want = np.einsum("bhts,ms->bhmt", p, chosen)
  np.testing.assert_allclose(got["weighted"], want, rtol=0, atol=1e-5)
  np.testing.assert_allclose(got["largest"], p.max(-1), rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_every_derivative_and_vmap_is_that_of_plain_jax(monkeypatch):
  """A kernel has none: they are computed from its log-sum-exp."""
  q, k, v, norms, sinks = narrow(*inputs(21)[:5])

  def all_of(q, k, v, sinks, norms):
    def attend(q, k, v, sinks, window):
      return online_attention(q, k, v, sinks, window, scale=SCALE)

    def summed(q, k):
      z, lse, known = online_sums.attention_with_sums(
        q, k, v, norms, wanted=("entropy", "written"), scale=SCALE
      )
      sums = online_sums.online_sums(
        *(q, k, lse, norms),
        wanted=("columns", "diagonals", *set(WANTED) - set(known)),
        scale=SCALE,
      )
      known = {name: jnp.swapaxes(x, 1, 2) for name, x in known.items()}
      return z, {name: {**sums, **known}[name] for name in WANTED}

    def loss(q, k, v, sinks):
      z, lse = attend(q, k, v, sinks, 9)
      return jnp.sum(jnp.sin(z)) + jnp.sum(jnp.cos(lse))

    given, moved = (q, k, v, sinks), (k.sum() * q, 0.1 * k, v, sinks)
    twice = jnp.stack([q, 0.5 * q])
    pairs = jnp.stack([twice, 2 * twice])
    gradient = jax.grad(loss, argnums=(0, 1, 2, 3))
    return {
      "jvp": jax.jvp(lambda *x: attend(*x, 9), given, moved),
      "grad": gradient(*given),
      "bent": jax.jvp(gradient, given, moved)[1],
      "vmap": jax.vmap(lambda q: attend(q, k, v, sinks, 9))(twice),
      "nested": jax.vmap(jax.vmap(lambda q: attend(q, k, v, sinks, 9)))(pairs),
      "windows": jax.vmap(lambda n: attend(q, k, v, sinks, n))(
        jnp.asarray([3, 11])
      ),
      "sums": jax.jvp(summed, (q, k), (0.1 * q, 0.1 * k)),
    }

  got = jax.jit(lambda *x: all_of(*x))(q, k, v, sinks, norms)
  monkeypatch.setattr(flash_statistics, "device", lambda: None)
  want = jax.jit(lambda *x: all_of(*x))(q, k, v, sinks, norms)
  for key in want:
    pairs = zip(*map(jax.tree.leaves, (got[key], want[key])), strict=True)
    for a, b in pairs:
      # Sums of some hundred rounded terms of the size of the largest.
      largest = float(jnp.abs(b).max())
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(largest, 1))


def test_on_the_host_of_an_accelerator_it_is_plain_jax(where, monkeypatch):
  """A kernel is compiled for its own device alone."""
  q, k, v = narrow(*inputs(16)[:3])
  want = jax.jit(lambda q, k, v: online_attention(q, k, v, scale=SCALE))
  monkeypatch.setattr(flash_statistics, "device", lambda: None)
  want = want(q, k, v)
  monkeypatch.setattr(flash_statistics, "device", lambda: where)
  monkeypatch.setattr(jax, "default_backend", lambda: where)
  got = jax.jit(lambda q, k, v: online_attention(q, k, v, scale=SCALE))(q, k, v)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adds_up_in_float32(dtype, where):
  """z has the rounding of its own dtype, and all else that of float32."""
  if where == "tpu" and dtype == "float16":
    pytest.skip("a TPU has no such products")
  given = [jnp.asarray(x, dtype) for x in inputs(21)[:3]]
  norms = inputs(21)[3]
  want = by_definition(
    *(np.asarray(x, np.float64) for x in given), norms, None, 9, None, None
  )
  got = by_kernels(
    *(*given, *narrow(norms), None, None, None), where=where, window=9, cap=None
  )
  assert got["z"].dtype == dtype and got["lse"].dtype == jnp.float32
  # The weights are rounded to the dtype of the values, and so is z.
  unit = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    np.asarray(got.pop("z"), np.float64), want.pop("z"), rtol=0, atol=4 * unit
  )
  for key, value in want.items():
    np.testing.assert_allclose(got[key], value, rtol=0, atol=1e-5, err_msg=key)


VARIANTS = {
  "mixed windows and sinks": {
    "window": 7, "local_layers": (True, False, True), "sink_logit": True,
    "attn_softcap": 2.0,
  },
  "key and value bias": {"attn_bias": "kv"},
  "log-sigmoids": {"normalizer": "normalized_sigmoid"},
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
  "name", quick(VARIANTS, "mixed windows and sinks", others="slow")
)
def test_a_model_streams_the_same_by_kernels_and_by_rows(
  name, where, monkeypatch
):
  walked = []
  monkeypatch.setattr(attention_form, "LONG", 1)
  for part in ("rows", "squares"):
    kernel = getattr(flash_statistics, part)

    def counted(*args, kernel=kernel, part=part, **rest):
      walked.append(part)
      return kernel(*args, **rest)

    monkeypatch.setattr(flash_statistics, part, counted)
  # A length that no other test has: a layer is compiled once a config.
  cfg = sinkjax.TINY.replace(max_len=70 + len(where + name), **VARIANTS[name])
  cfg = cfg.replace(max_len=cfg.max_len + (where == "gpu"))
  params = sinkjax.init_params(cfg, jax.random.key(0))
  # Zeros at the start (biases, sinks) would hide a wrong sign.
  params = jax.tree.map(lambda x: 2 * x + 0.1, params)
  tokens = jax.random.randint(jax.random.key(1), (2, 21), 0, cfg.vocab_size)
  f = sinkjax.forward(cfg)
  got = stream_statistics(f, STATISTICS)(params, tokens)
  assert sorted(set(walked)) == ["rows", "squares"]
  by_rows = sinkjax.forward(cfg.replace(attention="einsum"))
  want = stream_statistics(by_rows, STATISTICS)(params, tokens)
  assert set(got.trace) == set(want.trace)
  for statistic, value in want.trace.items():
    # Three layers in float32, with logits of some tens.
    np.testing.assert_allclose(
      got.trace[statistic], value, rtol=0, atol=1e-4, err_msg=statistic
    )
  np.testing.assert_allclose(got.nll, want.nll, rtol=1e-4)
