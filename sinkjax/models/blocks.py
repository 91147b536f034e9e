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
  mask_of,
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

  The steps are methods: `project` and `transform` act on each token alone,
  `mix` on all of them, and `attend` and `finish` add to the residual.
  """

  cfg: ModelConfig

  def setup(self):
    cfg = self.cfg
    self.attn_norm, self.attn = Norm(cfg), Attention(cfg)
    self.mlp_norm, self.mlp = Norm(cfg), Mlp(cfg)
    if cfg.post_norms:
      self.attn_post_norm, self.mlp_post_norm = Norm(cfg), Norm(cfg)

  def project(self, pre, layer, ctx):
    """`resid_pre` -> (q, k, v), each token alone."""
    return self.attn.project(self.attn_norm(pre), ctx, layer)

  def mix(self, q, k, v, mask, tap):
    """(q, k, v) -> z [B, T, H, K]: the only step between tokens."""
    return self.attn.mix(q, k, v, mask, tap)

  def attend(self, pre, z, tap):
    """(`resid_pre`, z) -> `resid_mid`."""
    attn_out = self.attn.write(z)
    if self.cfg.post_norms:
      attn_out = self.attn_post_norm(attn_out)
    return tap("resid_mid", pre + tap("attn_out", attn_out))

  def transform(self, x):
    """What the MLP reads -> its raw output, each token alone."""
    return self.mlp(self.mlp_norm(x))

  def finish(self, mid, mlp_out, tap):
    """(`resid_mid`, the MLP's raw output) -> `resid_post`."""
    if self.cfg.post_norms:
      mlp_out = self.mlp_post_norm(mlp_out)
    return tap("resid_post", mid + tap("mlp_out", mlp_out))

  def __call__(
    self, x: Float[Array, "B T D"], layer: Array, ctx: Context, taps: Taps
  ) -> tuple[Float[Array, "B T D"], Trace]:
    cfg, tap = self.cfg, Tapper(taps, layer)
    pre = tap("resid_pre", x)
    q, k, v = self.project(pre, layer, ctx)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    z = self.mix(q, k, v, mask_of(cfg, ctx, layer), tap)
    mid = self.attend(pre, z, tap)
    mlp_out = self.transform(pre if cfg.parallel_residual else mid)
    post = self.finish(mid, mlp_out, tap)
    return post, tap.trace()
