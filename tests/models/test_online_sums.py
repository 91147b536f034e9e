"""Tests of sinkjax.models.online_sums: sums over a pattern never written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from streamed import STATISTICS, sizes

import sinkjax
from sinkjax.analysis.sink_profile import coarse_map
from sinkjax.metrics import rows
from sinkjax.models import attention_form, normalizers, online_blocks
from sinkjax.models.online import online_attention
from sinkjax.models.online_sums import SUMS, online_sums, weight_on
from sinkjax.transforms.streaming import stream_statistics

ALL = {
  **STATISTICS,
  "rows": rows.row_sum(),
  "learned": rows.learned_sink_mass(),
  "learned_and_first": rows.learned_sink_mass(with_first=True),
  "map": coarse_map(4),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Blocks of at most 5, so that most lengths here are no whole blocks."""
  monkeypatch.setattr(online_blocks, "BLOCK", 5)


def by_definition(p, norms):
  """Every sum of a pattern [B, H, T, S], by NumPy."""
  p = np.asarray(p)
  length, logs = p.shape[-1], np.log(np.where(p > 0, p, 1))
  cell = -(-length // 3)
  bounds = np.arange(0, length, cell)
  return {
    "columns": p.sum(2),
    "diagonals": np.stack(
      [np.trace(p, -d, axis1=2, axis2=3) for d in range(length)], axis=-1
    ),
    "entropy": -(p * logs).sum(3),
    "rows": p.sum(3),
    "written": np.einsum("bhts,bhs->bht", p, norms),
    "cells": np.add.reduceat(np.add.reduceat(p, bounds, 2), bounds, 3),
  }


FORMS = ("softmax", "sinks", "capped", "sigmoid")
CASES = {
  f"{length}-{window}-{form}": (length, window, form)
  for length in (1, 4, 13, 20)
  for window in (None, 1, 3, 6, 40)
  for form in FORMS
}
FEW = ("13-3-sinks",)


@pytest.mark.thorough
@pytest.mark.parametrize("name", quick(CASES, *FEW, others="slow"))
def test_every_sum_by_its_definition(name):
  length, window, form = CASES[name]
  with jax.enable_x64(True):
    keys = jax.random.split(jax.random.key(length), 4)
    q = 2 * jax.random.normal(keys[0], (2, length, 4, 6))
    k = jax.random.normal(keys[1], (2, length, 2, 6))
    norms = jax.random.uniform(keys[2], (2, length, 2))
    sinks = jax.random.normal(keys[3], (1, 4, 1)) if form == "sinks" else None
    given = {"scale": 0.4}
    if form == "capped":
      given["scores"] = lambda s: 2 * jnp.tanh(s / 2)
    if form == "sigmoid":
      given["weights"] = normalizers.ELEMENTWISE["sigmoid"]

    s = 0.4 * jnp.einsum("bthk,bshk->bhts", q, jnp.repeat(k, 2, axis=2))
    s = given.get("scores", lambda s: s)(s)
    t = jnp.arange(length)
    back = t[:, None] - t[None]
    seen = (back >= 0) & (back < (window or length))
    normalize = normalizers.NORMALIZERS.get(form, normalizers.softmax)
    more = () if sinks is None else (sinks[..., None],)
    p = normalize(s, seen[None, None], *more)

    _, lse = online_attention(q, k, k, sinks, window, **given)
    # A window that depends on the layer is traced.
    walk = jax.jit(
      functools.partial(online_sums, wanted=(*SUMS, ("cells", 3)), **given)
    )
    of_head = jnp.repeat(jnp.moveaxis(norms, 1, 2), 2, axis=1)
    want = by_definition(p, of_head)
    reach = None if window is None else jnp.asarray(window)
    got = walk(q, k, lse, norms, reach)
    assert set(got) == set(want)
    for key, value in want.items():
      # 20 terms in float64.
      np.testing.assert_allclose(
        got[key], value, rtol=1e-12, atol=1e-13, err_msg=key
      )
    for key in {0, length - 1}:
      got = weight_on(q, k, lse, window, key=key, **given)
      np.testing.assert_allclose(got, p[..., key], rtol=1e-12, atol=1e-13)


@pytest.mark.thorough
def test_a_window_of_every_layer_is_no_traced_number():
  q = k = jax.random.normal(jax.random.key(0), (1, 13, 2, 4))
  _, lse = online_attention(q, k, k, window=3, scale=1.0)
  sums = functools.partial(online_sums, wanted=("columns",), scale=1.0)
  got, want = (
    jax.jit(functools.partial(sums, window=w))(q, k, lse)["columns"]
    for w in (3, jnp.asarray(3))
  )
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.thorough
def test_padding_and_hidden_keys():
  """Rows that see other keys than those before them."""
  with jax.enable_x64(True):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 12, 2, 4))
    k = jax.random.normal(keys[1], (2, 12, 2, 4))
    valid = jnp.arange(12)[None] < jnp.asarray([[12], [7]])
    own = jnp.eye(12, dtype=bool)[None, None]
    mask = jax.random.bernoulli(keys[2], 0.5, (1, 1, 12, 12)) | own
    s = 0.5 * jnp.einsum("bthk,bshk->bhts", q, k)
    seen = jnp.tril(jnp.ones((12, 12), bool))[None, None]
    seen = (seen & valid[:, None, None] | own) & mask
    p = normalizers.softmax(s, seen)
    given = {"mask": mask, "valid": valid, "scale": 0.5}
    attend = jax.jit(online_attention, static_argnames="scale")
    _, lse = attend(q, k, k, **given)
    norms = jnp.ones((2, 12, 2))
    walk = jax.jit(
      functools.partial(online_sums, wanted=SUMS, scale=given.pop("scale"))
    )
    got = walk(q, k, lse, norms, **given)
    want = by_definition(p, np.ones((2, 2, 12)))
    for name in SUMS:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-13)


VARIANTS = {
  "plain": {},
  "mixed_windows": {"window": 7, "local_layers": (True, False, True)},
  "windows": {"window": 7, "local_layers": (True, True, True)},
  "sigmoid": {"normalizer": "sigmoid"},
  "normalized_sigmoid": {"normalizer": "normalized_sigmoid"},
  "softmax1": {"normalizer": "softmax1"},
  "sink_logit": {"sink_logit": True},
  "softcap": {"attn_softcap": 2.0},
  "kv_bias": {"attn_bias": "kv"},
  "v_bias": {"attn_bias": "v"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", quick(VARIANTS, "mixed_windows", "softcap", "kv_bias")
)
def test_a_model_streams_the_same_by_sums_and_by_rows(name, monkeypatch):
  monkeypatch.setattr(attention_form, "LONG", 1)
  with jax.enable_x64(True):
    cfg = sinkjax.TINY.replace(dtype="float64", **VARIANTS[name])
    params = sinkjax.init_params(cfg, jax.random.key(0))
    # Zeros at the start (biases, sinks) would hide a wrong sign.
    params = jax.tree.map(lambda x: 2 * x + 0.1, params)
    tokens = jax.random.randint(jax.random.key(1), (2, 23), 0, cfg.vocab_size)
    by_rows = sinkjax.forward(cfg.replace(attention="einsum"))
    want = stream_statistics(by_rows, ALL)(params, tokens)
    got = stream_statistics(sinkjax.forward(cfg), ALL)(params, tokens)
    assert set(got.trace) == set(want.trace)
    for statistic, value in want.trace.items():
      np.testing.assert_allclose(
        got.trace[statistic], value, rtol=1e-10, atol=1e-12, err_msg=statistic
      )
    np.testing.assert_allclose(got.nll, want.nll, rtol=1e-12)


def test_all_metrics_of_a_report_need_no_rows(monkeypatch):
  """One that does would make a report over long texts several times slower."""
  from sinkjax.analysis import sink_profile

  monkeypatch.setattr(attention_form, "LONG", 1)
  monkeypatch.setattr(sink_profile, "DRAWN", 8)  # a map is smaller as well
  cfg = sinkjax.TINY
  params = sinkjax.init_params(cfg, jax.random.key(0))
  observers = sink_profile._observers(cfg, streamed=True)
  f = sinkjax.capture(sinkjax.forward(cfg), observers)
  run = stream_statistics(f, {}, nll=False)
  tokens = jnp.zeros((1, 64), int)
  found = max(sizes(jax.make_jaxpr(run)(params, tokens).jaxpr))
  assert found < 64 * 64  # four heads have each as many weights


def test_refuses_a_key_that_no_query_sees(monkeypatch):
  monkeypatch.setattr(attention_form, "LONG", 1)
  cfg = sinkjax.TINY
  params = sinkjax.init_params(cfg, jax.random.key(0))
  run = stream_statistics(
    sinkjax.forward(cfg), {"far": rows.sink_score(key=12)}
  )
  with pytest.raises(ValueError, match=r"key must be in \[0, 12\), got 12"):
    run(params, jnp.zeros((1, 12), int))
