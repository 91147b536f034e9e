"""Rates of mixing: their limits, their site, and who refuses them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.metrics import registry
from sinkjax.models.attention import Attention
from sinkjax.taps import Tapper
from sinkjax.transforms.layer_gains import layer_gains
from sinkjax.transforms.layer_jacobian import fold_layer
from sinkjax.transforms.residual import context_of
from sinkjax.weights import huggingface, orbax_io

BASE = sinkjax.TINY.replace(n_layers=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(64, size=(2, 9)))


@functools.cache
def model(mixing):
  """(params, cfg), every parameter random; without compiling anything."""
  cfg, rng = BASE.replace(mixing=mixing), np.random.default_rng(1)

  def one(shape):
    size = 2 / np.sqrt(shape.shape[-2] if len(shape.shape) > 1 else 1)
    return jnp.asarray(size * rng.normal(size=shape.shape), jnp.float32)

  return jax.tree.map(one, sinkjax.param_shapes(cfg)), cfg


@functools.cache
def watched(mixing):
  """The model, jitted, with an edit of its rates."""
  f = sinkjax.forward(model(mixing)[1])
  see = {site: (site, lambda x: x) for site in ("mix_rate", "pattern", "v")}
  see["z"] = ("z", lambda z: z)

  @jax.jit
  def run(params, tokens, factor, shift):
    edit = sinkjax.chain(sinkjax.scale(factor), sinkjax.add(shift))
    edited = sinkjax.intervene(f, {"mix_rate": edit})
    return sinkjax.capture(edited, see)(params, tokens)

  return lambda factor, shift: run(model(mixing)[0], TOKENS, factor, shift)


def test_heads_by_hand():
  """Four heads of two values each: own and mixed, by the rate of each."""
  rng = np.random.default_rng(3)
  z, v = rng.normal(size=(1, 5, 4, 8)), rng.normal(size=(1, 5, 2, 8))
  logits = np.array([-30.0, -1.0, 0.5, 30.0])
  rate = (1 / (1 + np.exp(-logits)))[:, None]
  want = (1 - rate) * v[:, :, [0, 0, 1, 1]] + rate * z
  with jax.enable_x64(True):
    attention = Attention(BASE.replace(mixing="rate"), parent=None)
    given = {"params": {"mix_rate": jnp.asarray(logits)}}
    tap = Tapper(sinkjax.Taps(), 0)
    got = attention.apply(
      given, jnp.asarray(z), jnp.asarray(v), None, tap, method="heads"
    )
  np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("mixing", ["rate", "gate"])
def test_the_two_ends_of_a_rate(mixing):
  """At 1 the model without rates; at 0 tokens are alone; z is in between."""
  run, (params, cfg) = watched(mixing), model(mixing)
  plain = sinkjax.forward(BASE)
  whole = jax.jit(plain)(params, TOKENS).logits
  np.testing.assert_allclose(run(0.0, 1.0).logits, whole, rtol=1e-5, atol=1e-5)

  # Without positions a token that mixes nothing is as if it came first.
  alone = jax.jit(plain)(params, TOKENS.reshape(-1, 1)).logits
  got = run(0.0, 0.0).logits
  np.testing.assert_allclose(
    got.reshape(alone.shape), alone, rtol=1e-5, atol=1e-5
  )

  out = run(1.0, 0.0)
  assert np.abs(out.logits - whole).max() > 0.01
  seen = jax.tree.map(lambda x: np.asarray(x, np.float64), out.trace)
  rate, v = seen["mix_rate"], np.repeat(seen["v"], cfg.group_size, axis=3)
  assert rate.shape == (2, *TOKENS.shape, cfg.n_heads)
  mixed = np.einsum("lbhts,lbshw->lbthw", seen["pattern"], v)
  want = (1 - rate[..., None]) * v + rate[..., None] * mixed
  np.testing.assert_allclose(seen["z"], want, rtol=1e-4, atol=1e-6)
  # The first token mixes nothing but itself, whatever its rate is.
  np.testing.assert_allclose(seen["z"][:, :, 0], v[:, :, 0], rtol=1e-5)


@pytest.mark.thorough
def test_a_rate_by_head_and_a_gate_by_token():
  logits = np.asarray(model("rate")[0]["blocks"]["attn"]["mix_rate"])
  by_head = watched("rate")(1.0, 0.0).trace["mix_rate"]
  want = np.broadcast_to(
    1 / (1 + np.exp(-logits))[:, None, None], by_head.shape
  )
  np.testing.assert_allclose(by_head, want, rtol=1e-5)
  by_token = watched("gate")(1.0, 0.0).trace["mix_rate"]
  assert np.ptp(by_token, axis=2).min() > 0.1
  reduce = registry.observers(["mix_rate"], mixing=True)["mix_rate"][1]
  np.testing.assert_allclose(
    reduce(by_token[0]), np.mean(by_token[0], axis=1), rtol=1e-6
  )
  assert not registry.observers(["mix_rate"])


def test_the_config_and_the_folder_keep_it(tmp_path):
  params, cfg = model("gate")
  assert cfg.to_dict()["mixing"] == "gate" and "mixing" not in BASE.to_dict()
  assert sinkjax.ModelConfig.from_dict(cfg.to_dict()) == cfg
  orbax_io.save(tmp_path / "model", params, cfg)
  found = sinkjax.load(tmp_path / "model")
  assert found.cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_who_refuses_it(tmp_path):
  with pytest.raises(ValueError, match="mixing must be one of"):
    BASE.replace(mixing="halting")
  params, cfg = model("gate")
  f, tokens = sinkjax.forward(cfg), jnp.array([1, 2])
  with pytest.raises(ValueError, match="bounds know no rate.*mixing='gate'"):
    layer_gains(f, params, tokens)
  with pytest.raises(ValueError, match="carriers know no rate"):
    sinkjax.carriers(f, params, tokens)
  plain = sinkjax.forward(BASE)
  with pytest.raises(ValueError, match="this model has none .mixing='none'"):
    sinkjax.capture(plain, {"g": ("mix_rate", lambda x: x)})
  with pytest.raises(ValueError, match="this model has no site 'mix_rate'"):
    sinkjax.edited(BASE, "scale site=mix_rate by=0")
  assert sinkjax.edited(cfg, "scale site=mix_rate by=0") != cfg
  with pytest.raises(ValueError, match="mixing"):
    huggingface.save(tmp_path / "hf", params, cfg)


@pytest.mark.thorough
@pytest.mark.parametrize("mixing", ["rate", "gate"])
def test_a_folded_layer_has_the_layers_derivative(mixing):
  """With edits of what enters and leaves the mixing, some of one token."""
  cfg = BASE.replace(n_layers=1, mixing=mixing, dtype="float64")
  token = 1 + 0.2 * np.arange(5)[None, :, None, None]
  edits = {
    "mix_rate": sinkjax.scale(0.9),
    "v": sinkjax.scale(token),
    "z": sinkjax.scale(np.array([0.5, 1.0, 2.0, 0.0])[None, None, :, None]),
  }
  with jax.enable_x64(True):
    block = jax.tree.map(lambda x: x[0], model(mixing)[0]["blocks"])
    ctx, _ = context_of(cfg, jnp.arange(5)[None])
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 5, cfg.d_model)))
    fold = fold_layer(cfg, block, x, jnp.asarray(0), ctx, edits)
    assert float(fold.error) < 1e-12
