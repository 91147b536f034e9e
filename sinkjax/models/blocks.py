"""Norm, MLP and the block that joins them to attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.attention import (
  Attention,
  Context,
  Projection,
  align,
  rms_normalize,
)
from sinkjax.taps import Tapper, Taps, Trace

_ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
}


class Norm(nn.Module):
  """RMS or layer norm over D; accumulates in float32 at least."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    cfg, width = self.cfg, (self.cfg.d_model,)
    init = nn.initializers.constant(1.0 - cfg.norm_offset)
    scale = align(self.param("scale", init, width) + cfg.norm_offset, x)
    if cfg.norm == "rms":
      return (rms_normalize(x, cfg.norm_eps) * scale).astype(x.dtype)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    bias = align(self.param("bias", nn.initializers.zeros, width), x)
    normed = rms_normalize(centred, cfg.norm_eps)
    return (normed * scale + bias).astype(x.dtype)


class Mlp(nn.Module):
  """`act(x W_gate) * (x W_up) W_down`, or without the gate."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    cfg = self.cfg
    act = _ACTIVATIONS[cfg.activation]

    def project(name, fan_in, fan_out):
      bias = (fan_out,) if cfg.mlp_bias else None
      return Projection(
        "bti,io->bto", (fan_in, fan_out), bias, fan_in, name=name
      )

    up = project("up", cfg.d_model, cfg.d_ff)(x)
    if cfg.gated_mlp:
      hidden = act(project("gate", cfg.d_model, cfg.d_ff)(x)) * up
    else:
      hidden = act(up)
    return project("down", cfg.d_ff, cfg.d_model)(hidden)


class Block(nn.Module):
  """One layer: [B, T, D] residual in, residual and trace out.

  `resid_mid = resid_pre + attn_out` and `resid_post = resid_mid + mlp_out` in
  every family; a parallel residual changes only what the MLP reads, and post
  norms only what "attn_out" and "mlp_out" are.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], layer: Array, ctx: Context, taps: Taps
  ) -> tuple[Float[Array, "B T D"], Trace]:
    cfg, tap = self.cfg, Tapper(taps, layer)
    pre = tap("resid_pre", x)
    normed = Norm(cfg, name="attn_norm")(pre)
    attn_out = Attention(cfg, name="attn")(normed, ctx, layer, tap)
    if cfg.post_norms:
      attn_out = Norm(cfg, name="attn_post_norm")(attn_out)
    mid = tap("resid_mid", pre + tap("attn_out", attn_out))
    mlp_in = pre if cfg.parallel_residual else mid
    mlp_out = Mlp(cfg, name="mlp")(Norm(cfg, name="mlp_norm")(mlp_in))
    if cfg.post_norms:
      mlp_out = Norm(cfg, name="mlp_post_norm")(mlp_out)
    post = tap("resid_post", mid + tap("mlp_out", mlp_out))
    return post, tap.trace()
