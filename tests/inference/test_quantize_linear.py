"""Rounded weights and inputs of projections."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jitted import jitted
from variants import scaled

import sinkjax
from sinkjax.inference import quantize as module
from sinkjax.inference.quantize_linear import (
  INPUTS,
  RANGES,
  inputs_of,
  limits_of,
  quantize_inputs,
  quantize_weights,
  range_observers,
)
from sinkjax.transforms.jacobian_engine import SelfCheckError

quantize = jitted(module.quantize)

WATCH = {site: (site, lambda x: x) for site in INPUTS}


def kernels(params):
  """{path: [L, inputs, outputs]} of every projection."""
  found = {}
  for part, names in (("attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
    for name in names:
      kernel = np.asarray(params["blocks"][part][name]["kernel"], np.float64)
      wide = kernel.shape[-1] if name == "o" else kernel.shape[1]
      shape = (-1, wide) if name == "o" else (wide, -1)
      found[part, name] = kernel.reshape(len(kernel), *shape)
  return found


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_weights_per_output_channel(tiny, bits):
  params, _ = tiny
  rounded = quantize_weights(params, bits)
  for (path, w), got in zip(
    kernels(params).items(), kernels(rounded).values(), strict=True
  ):
    step = np.abs(w).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    if bits < 16:  # else float32 decides ties otherwise
      np.testing.assert_allclose(got, step * np.round(w / step), atol=1e-6)
    assert np.all(np.abs(got - w) <= step / 2 * (1 + 1e-4) + 1e-7), path
    assert np.abs(got - w).max() > 0.3 * step.max()
  again = quantize_weights(rounded, bits)
  for got, want in zip(
    kernels(again).values(), kernels(rounded).values(), strict=True
  ):
    np.testing.assert_allclose(got, want, atol=1e-6)
  for name in ("embed", "final_norm"):
    jax.tree.map(np.testing.assert_array_equal, rounded[name], params[name])
  norm = rounded["blocks"]["attn_norm"]["scale"]
  np.testing.assert_array_equal(norm, params["blocks"]["attn_norm"]["scale"])


def test_weights_scaled_by_output(tiny):
  """A power of two on one output is a power of two on its rounded weights."""
  params, _ = tiny
  factor = jnp.ones((1, 1, 32)).at[..., 5].set(8)
  scaled = jax.tree.map(lambda x: x, params)
  scaled["blocks"]["mlp"]["down"]["kernel"] *= factor
  got = quantize_weights(scaled, 3)["blocks"]["mlp"]["down"]["kernel"]
  want = quantize_weights(params, 3)["blocks"]["mlp"]["down"]["kernel"] * factor
  np.testing.assert_array_equal(got, want)


def test_one_compilation_for_all_bits(tiny):
  params, _ = tiny
  traces = []

  @jax.jit
  def run(bits):
    traces.append(1)
    return quantize_weights(params, bits)["blocks"]["attn"]["q"]["kernel"]

  few, many = run(2.0), run(8.0)
  assert len(np.unique(few[0, :, 0, 0])) == 3
  assert len(np.unique(many[0, :, 0, 0])) > 20 and len(traces) == 1
  for bits in (1, 17):
    with pytest.raises(ValueError, match=f"in \\[2, 16\\], got {bits}"):
      quantize_weights(params, bits)


def edits_of(cfg, ranges, bits=4, limits=None, **kw):
  return quantize_inputs(
    cfg,
    bits,
    ranges=ranges,
    limits=limits if ranges == RANGES[0] else None,
    **kw,
  )


@pytest.fixture(scope="module")
def static(tiny, tokens):
  """Limits without token 0, from the texts themselves."""
  params, cfg = tiny
  f = jax.jit(sinkjax.forward(cfg))
  seen = sinkjax.capture(f, range_observers(0))(params, tokens).trace
  whole = sinkjax.capture(f, WATCH)(params, tokens).trace
  limits = limits_of(seen)
  for site in INPUTS:
    x = np.asarray(whole[site])[:, :, 1:]
    axes = tuple(range(1, x.ndim))
    want = np.stack([x.min(axis=axes), x.max(axis=axes)], axis=-1)
    np.testing.assert_array_equal(limits[site], want)
  every = sinkjax.capture(f, range_observers(-1))(params, tokens).trace
  assert np.all(limits_of(every)["mlp_in"][:, 1] >= limits["mlp_in"][:, 1])
  return limits


@pytest.mark.parametrize("ranges", RANGES)
def test_what_projections_read_is_rounded(tiny, tokens, static, ranges):
  """In one layer, from what it was; heads side by side; token 0 kept."""
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  plain = jax.jit(sinkjax.capture(f, WATCH))(params, tokens)
  edits = edits_of(cfg, ranges, limits=static, keep=0, layers=1)
  edited = jax.jit(sinkjax.capture(sinkjax.intervene(f, edits), WATCH))
  plain, out = jax.tree.map(np.asarray, (plain, edited(params, tokens)))
  for site in INPUTS:
    got, want = out.trace[site], plain.trace[site]
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1, :, 0], want[1, :, 0], atol=1e-5)
    assert np.abs(got[1, :, 1:] - want[1, :, 1:]).max() > 1e-3
  read = jnp.asarray(plain.trace["attn_in"][1])
  want = quantize(
    read,
    4,
    per="token" if ranges == "token" else "tensor",
    symmetric=True,
    keep=np.arange(12) == 0,
    limits=tuple(static["attn_in"][1]) if ranges == RANGES[0] else None,
  )
  np.testing.assert_allclose(out.trace["attn_in"][1], want, atol=1e-4)
  z = out.trace["z"][1, 0].reshape(12, -1)
  levels = {len(np.unique(row.round(5))) for row in z[1:]}
  assert max(levels) <= 15  # of all heads of a token together


def test_one_model_serves_all_settings(tiny, tokens, static):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  plain, traces = jax.jit(f)(params, tokens).logits, []

  @jax.jit
  def run(edits):
    traces.append(1)
    return sinkjax.intervene(f, edits)(params, tokens).logits

  def logits(bits, keep, layers, limits=static):
    return run(
      edits_of(
        cfg,
        RANGES[0],
        jnp.float32(bits),
        limits,
        keep=jnp.asarray(keep),
        layers=layers,
      )
    )

  layers = jnp.arange(cfg.n_layers)
  none = jnp.full_like(layers, -1)
  np.testing.assert_allclose(logits(4, -1, none), plain, atol=1e-5)
  np.testing.assert_allclose(logits(16, 0, layers), plain, atol=2e-2)
  few = logits(3, 0, layers)
  assert np.abs(few - plain).max() > 0.1
  some = logits(3, 0, dict.fromkeys(INPUTS, none) | {"mlp_act": layers})
  assert 0 < np.abs(some - plain).max() != np.abs(few - plain).max()
  wider = {site: 2 * x for site, x in static.items()}
  assert np.abs(logits(3, 0, layers, wider) - few).max() > 1e-2
  assert len(traces) == 1


@pytest.mark.slow
def test_a_sweep_of_layers_by_vmap(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)

  def run(layer):
    edits = edits_of(cfg, "token", 3, layers=layer)
    return sinkjax.intervene(f, edits)(params, tokens).logits

  swept = jax.vmap(run)(jnp.arange(cfg.n_layers))
  for layer in range(cfg.n_layers):
    gap = np.abs(np.asarray(swept) - np.asarray(run(layer))).max((1, 2, 3))
    assert np.argmin(gap) == layer and gap[layer] < 1e-2
    assert np.delete(gap, layer).min() > 0.05


@pytest.mark.slow
def test_exact_jacobians_of_rounded_inputs(tiny, tokens):
  """A step for each token is each token's own; one for all of them is not."""
  params, cfg = tiny
  f, text = sinkjax.forward(cfg), tokens[0, :6]
  g = sinkjax.intervene(f, edits_of(cfg, "token", 6))
  got = sinkjax.jacobian_norms(g, params, text)
  want = sinkjax.jacobian_norms(g, params, text, method="reference")
  np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-5)
  plain = sinkjax.jacobian_norms(f, params, text)
  assert np.abs(got - plain).max() > 0.1
  g = sinkjax.intervene(f, edits_of(cfg, "tensor", 6))
  want = np.asarray(sinkjax.jacobian_norms(g, params, text, method="reference"))
  backwards = np.triu(want, 1)
  column = int(backwards.max(axis=0).argmax())
  assert column > 0 and backwards[:, column].max() > 0.1
  with pytest.raises(SelfCheckError, match="sends information backwards"):
    sinkjax.jacobian_norms(g, params, text, cols=[column])


@pytest.mark.thorough
@pytest.mark.parametrize("gate", ["head", "element"])
def test_what_gated_heads_write_is_rounded_behind_the_gates(tokens, gate):
  cfg = sinkjax.TINY.replace(gate=gate)
  params = scaled(sinkjax.init_params(cfg, jax.random.key(0)), 1.5)
  f, sites = sinkjax.forward(cfg), inputs_of(cfg)
  watch = {x: (x, lambda x: x) for x in (*sites, "z", "attn_out")}

  def seen(g):
    run = jax.jit(lambda *a: sinkjax.capture(g, watch)(*a).trace)
    return jax.tree.map(np.asarray, run(params, tokens))

  plain = seen(f)
  attn = params["blocks"]["attn"]
  x = plain["attn_in"][1].astype(float)
  opened = np.einsum("btd,dhk->bthk", x, attn["gate"]["kernel"][1])
  gated = plain["z"][1] / (1 + np.exp(-opened))
  np.testing.assert_allclose(plain["z_gated"][1], gated, atol=1e-4)
  assert np.abs(gated - plain["z"][1]).max() > 0.1
  edits = quantize_inputs(cfg, 4, ranges="token", layers=1)
  assert set(edits) == set(sites)
  # At this site alone, since the gates read "attn_in", which would be rounded.
  found = seen(sinkjax.intervene(f, {"z_gated": edits["z_gated"]}))
  flat = gated.reshape(2, 12, -1)
  step = np.abs(flat).max(-1, keepdims=True) / 7
  rounded = (np.round(flat / step) * step).reshape(gated.shape)
  # float32 decides a few ties otherwise.
  off = np.abs(found["z_gated"][1] - rounded) > 1e-4
  assert off.mean() < 0.01
  out = np.einsum("bthk,hkd->btd", found["z_gated"][1], attn["o"]["kernel"][1])
  np.testing.assert_allclose(found["attn_out"][1], out, atol=1e-4)
  limits = limits_of(
    sinkjax.capture(f, range_observers(sites=sites))(params, tokens).trace
  )
  assert set(limits) == set(sites)


def test_gated_sites_are_those_of_gated_models(tiny, tokens):
  params, cfg = tiny
  f = sinkjax.forward(cfg)
  with pytest.raises(ValueError, match="this model has none .gate='none'"):
    sinkjax.capture(f, {"x": ("z_gated", lambda x: x)})
  f = sinkjax.forward(cfg.replace(gate="head"))
  edited = sinkjax.intervene(f, {"z_gated": sinkjax.scale(2.0)})
  with pytest.raises(ValueError, match="no edit at 'z_gated'; edit site 'z'"):
    sinkjax.jacobian_norms(edited, gated_params(), tokens[0, :4])


@functools.cache
def gated_params():
  return sinkjax.init_params(
    sinkjax.TINY.replace(gate="head"), jax.random.key(0)
  )


@pytest.mark.thorough
def test_long_texts_are_rounded_as_short_ones(tiny, tokens):
  params, cfg = tiny
  g = sinkjax.intervene(
    sinkjax.forward(cfg), edits_of(cfg, "tensor", 5, keep=0)
  )
  logits = g(params, tokens).logits[:, :-1]
  logs = jax.nn.log_softmax(logits)
  want = -jnp.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0].mean(-1)
  got = sinkjax.stream_statistics(g, {}, block=5)(params, tokens).nll
  np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize(
  ("change", "given", "said"),
  [
    ({}, {"ranges": "row"}, r"one of \['tensor, static', .*, got 'row'"),
    ({}, {"ranges": "tensor, static"}, "limits go with ranges"),
    ({}, {"ranges": "token", "limits": {}}, "nothing else, got 'token'"),
  ],
)
def test_mistakes_are_named(change, given, said):
  with pytest.raises(ValueError, match=said):
    quantize_inputs(sinkjax.TINY.replace(**change), 8, **given)
