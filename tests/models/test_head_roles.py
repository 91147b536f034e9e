"""Heads for the control of mixing: what they equal, and who refuses them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.over_squashing import over_squashing
from sinkjax.inference import prune, quantize
from sinkjax.models.attention import Attention
from sinkjax.taps import Tapper
from sinkjax.weights import huggingface, orbax_io

BASE = sinkjax.TINY.replace(n_layers=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(64, size=(2, 9)))


def params_of(cfg):
  """Every parameter random; without compiling anything."""
  rng = np.random.default_rng(1)

  def one(shape):
    size = 0.7 / np.sqrt(shape.shape[-2] if len(shape.shape) > 1 else 1)
    return jnp.asarray(size * rng.normal(size=shape.shape), jnp.float32)

  return jax.tree.map(one, sinkjax.param_shapes(cfg))


def test_weights_by_hand():
  """Two softmax heads with a key without a value, two softpick heads."""
  cfg = BASE.replace(control_heads=2, normalizer="softpick")
  rng = np.random.default_rng(3)
  scores, sinks = rng.normal(size=(1, 4, 3, 3)), rng.normal(size=(1, 2, 3, 1))
  v, mask = rng.normal(size=(1, 3, 2, 8)), np.tri(3, dtype=bool)
  over = np.where(mask, np.exp(scores), 0)
  lifted = np.where(mask, np.exp(scores) - 1, 0)
  soft = over[:, :2] / (over[:, :2].sum(-1, keepdims=True) + np.exp(sinks))
  total = np.abs(lifted[:, 2:]).sum(-1, keepdims=True)
  pick = np.maximum(lifted[:, 2:], 0) / total
  want = [
    *np.einsum("hts,sk->htk", soft[0], v[0, :, 0]),
    *np.einsum("hts,sk->htk", pick[0], v[0, :, 1]),
  ]

  @jax.jit
  def attend(scores, v, mask, sinks):
    params = {"null_key": jnp.zeros((1, 8))}
    given = scores, v, mask, Tapper(sinkjax.Taps(), 0), sinks
    return Attention(cfg, parent=None).apply(
      {"params": params}, *given, method="attend"
    )

  with jax.enable_x64(True):
    z = attend(scores, v, mask[None, None], sinks)
  # Softpick adds 1e-8 to what it divides by.
  np.testing.assert_allclose(z[0].swapaxes(0, 1), want, rtol=1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_all_heads_for_control_are_a_model_with_a_learned_key(positions):
  """Without positions; and those of some heads change nothing for the rest."""
  other = BASE.replace(positions="none", attn_bias="k")
  params = params_of(other)
  want = jax.jit(sinkjax.forward(other))(params, TOKENS).logits
  attn = dict(params["blocks"]["attn"])
  attn["null_key"] = attn.pop("k_bias")
  params["blocks"]["attn"] = attn
  cfg = BASE.replace(positions=positions, control_heads=4)
  got = jax.jit(sinkjax.forward(cfg))(params, TOKENS).logits
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

  some = BASE.replace(positions=positions, control_heads=2)
  attn["null_key"] = attn["null_key"][:, :1]

  def first_layer(cfg):
    seen = {"p": ("pattern", lambda p: p)}
    return jax.jit(sinkjax.capture(sinkjax.forward(cfg), seen))(
      params, TOKENS
    ).trace["p"][0]

  plain = BASE.replace(positions=positions)
  mixed, without = first_layer(some), first_layer(plain)
  np.testing.assert_allclose(mixed[:, 2:], without[:, 2:], rtol=1e-5)
  assert (mixed[:, :2].sum(-1) < 0.999).mean() > 0.9


@pytest.mark.slow
def test_the_bound_holds_beside_softmax_heads():
  cfg = BASE.replace(control_heads=2)
  params = params_of(cfg)
  found = over_squashing(sinkjax.forward(cfg), params, TOKENS[0])
  assert found.violations("full") == 0


def test_the_config_and_the_folder_keep_them(tmp_path):
  cfg = BASE.replace(control_heads=2, normalizer="softpick")
  params = params_of(cfg)
  assert params["blocks"]["attn"]["null_key"].shape == (2, 1, 8)
  assert "control_heads" not in BASE.to_dict()
  orbax_io.save(tmp_path / "model", params, cfg)
  found = sinkjax.load(tmp_path / "model")
  assert found.cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, found.params, params)
  # Rows of softpick sum to less than one, too, and for another reason.
  assert not cfg.learned_sink
  assert BASE.replace(control_heads=2).learned_sink


def test_who_refuses_them(tmp_path):
  for count in (1, 6):
    with pytest.raises(ValueError, match="whole groups of 2 query heads"):
      BASE.replace(control_heads=count)
  with pytest.raises(ValueError, match="control_heads must be a positive int"):
    BASE.replace(control_heads=-2)
  for more, words in (
    ({"sink_logit": True}, "go with neither sink_logit"),
    ({"attn_bias": "v"}, "nor attn_bias"),
    ({"positions": "learned"}, "have no positions"),
    ({"attention": "fused"}, "attention='fused' has no control_heads"),
  ):
    with pytest.raises(ValueError, match=words):
      BASE.replace(control_heads=2, **more)
  cfg = BASE.replace(control_heads=2)
  params = params_of(cfg)
  with pytest.raises(ValueError, match="roles by their places"):
    prune.remove_heads(params, cfg, np.zeros((2, 4), bool))
  with pytest.raises(ValueError, match="control_heads are not rotated"):
    quantize.before_rotation(cfg, lambda x, layer: x, positions=range(3))
  with pytest.raises(ValueError, match="control_heads"):
    huggingface.save(tmp_path / "hf", params, cfg)
