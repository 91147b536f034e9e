"""Causal multi-head attention by einsum, with a tap at every step.

The einsum path is the one that analysis uses: fused kernels have custom
derivatives and refuse forward mode.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models import normalizers
from sinkjax.models.positions import rotary_tables, rotate
from sinkjax.taps import Tapper


class Context(NamedTuple):
  """What every layer of one forward pass shares.

  Attributes:
    cos: [C, B, T, R] rotary cosines, or `None` without RoPE.
    sin: likewise.
    mask: [B or 1, 1, T, S] True where key s may be seen from t.
    local_mask: the same for local layers, or `None`.
  """

  cos: Array | None
  sin: Array | None
  mask: Bool[Array, "B 1 T S"]
  local_mask: Bool[Array, "B 1 T S"] | None


def causal_mask(
  length: int, valid: Bool[Array, "B S"] | None, window: int | None = None
) -> Bool[Array, "B 1 T S"]:
  """True where s <= t, s is no padding and t - s < window; the diagonal always.

  Args:
    length: T.
    valid: False at padding, or `None` for no padding.
    window: how many positions back a token sees, itself included.

  Returns:
    [B or 1, 1, T, S].
  """
  t, s = jnp.arange(length)[:, None], jnp.arange(length)[None, :]
  mask = s <= t
  if window is not None:
    mask &= t - s < window
  mask = mask[None, None]
  if valid is not None:
    mask = (mask & valid[:, None, None, :]) | (s == t)[None, None]
  return mask


def make_context(
  cfg: ModelConfig,
  positions: Int[Array, "B T"],
  valid: Bool[Array, "B T"] | None,
) -> Context:
  """Rotary tables and masks for one forward pass."""
  cos = sin = None
  if cfg.positions == "rope":
    cos, sin = rotary_tables(cfg, positions)
  length = positions.shape[1]
  local = None
  if any(cfg.local_layers):
    local = causal_mask(length, valid, cfg.window)
  return Context(cos, sin, causal_mask(length, valid), local)


def _for_layer(cfg: ModelConfig, ctx: Context, layer: Array):
  """Mask, cos and sin of this layer: local or global."""
  if not any(cfg.local_layers):
    cos, sin = (None if a is None else a[0] for a in (ctx.cos, ctx.sin))
    return ctx.mask, cos, sin
  local = jnp.asarray(cfg.local_layers)[layer]
  mask = jnp.where(local, ctx.local_mask, ctx.mask)
  if ctx.cos is None:
    return mask, None, None
  row = local.astype(jnp.int32) if ctx.cos.shape[0] == 2 else 0
  return mask, ctx.cos[row], ctx.sin[row]


def rms_normalize(x: Array, eps: float) -> Array:
  """`x / sqrt(mean(x^2) + eps)` over the last axis, in float32 at least."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  wide = x.astype(dtype)
  square = jnp.mean(wide * wide, axis=-1, keepdims=True)
  return wide * jax.lax.rsqrt(square + eps)


def align(vector: Array, x: Array) -> Array:
  """`vector` with leading axes of size 1, to the rank of `x`."""
  return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)


class HeadNorm(nn.Module):
  """RMS norm over each head's dimension, one scale for all heads."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T N K"]) -> Float[Array, "B T N K"]:
    init = nn.initializers.constant(1.0 - self.cfg.norm_offset)
    scale = self.param("scale", init, (x.shape[-1],))
    normed = rms_normalize(x, self.cfg.norm_eps)
    scale = align(scale + self.cfg.norm_offset, x)
    return (normed * scale).astype(x.dtype)


class Projection(nn.Module):
  """`einsum(equation, x, kernel) + bias`, the kernel of any shape.

  Attributes:
    equation: with the kernel second.
    shape: of the kernel.
    bias_shape: of the bias, or `None` for none.
    fan_in: how many kernel entries feed one output, for initialisation.
  """

  equation: str
  shape: tuple[int, ...]
  bias_shape: tuple[int, ...] | None
  fan_in: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.truncated_normal(self.fan_in**-0.5)
    kernel = self.param("kernel", init, self.shape)
    out = jnp.einsum(self.equation, x, kernel.astype(x.dtype))
    if self.bias_shape is not None:
      bias = self.param("bias", nn.initializers.zeros, self.bias_shape)
      out = out + align(bias, out).astype(x.dtype)
    return out


class Attention(nn.Module):
  """Grouped-query attention. Shapes: heads H, KV heads N, H = N G."""

  cfg: ModelConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    ctx: Context,
    layer: Array,
    tap: Tapper,
  ) -> Float[Array, "B T D"]:
    cfg = self.cfg
    mask, cos, sin = _for_layer(cfg, ctx, layer)
    q, k, v = self._qkv(x, cos, sin)
    q_BxTxHxK, k_BxSxNxK = tap("q", q), tap("k", k)
    v_BxSxNxK = tap("v", v)
    batch, length = x.shape[:2]
    grouped = (cfg.n_kv_heads, cfg.group_size)
    q_BxTxNxGxK = q_BxTxHxK.reshape(batch, length, *grouped, cfg.head_dim)
    scores = jnp.einsum("btngk,bsnk->bngts", q_BxTxNxGxK, k_BxSxNxK)
    scores = scores.reshape(batch, cfg.n_heads, length, -1) * cfg.score_scale
    if cfg.attn_softcap is not None:
      scores = cfg.attn_softcap * jnp.tanh(scores / cfg.attn_softcap)
    scores_BxHxTxS = tap("scores", scores)
    pattern = normalizers.softmax(scores_BxHxTxS, mask)
    pattern_BxHxTxS = tap("pattern", pattern)
    pattern = pattern_BxHxTxS.reshape(batch, *grouped, length, -1)
    z = jnp.einsum("bngts,bsnk->btngk", pattern, v_BxSxNxK)
    z_BxTxHxK = tap("z", z.reshape(batch, length, cfg.n_heads, cfg.head_dim))
    shape = (cfg.n_heads, cfg.head_dim, cfg.d_model)
    bias = (cfg.d_model,) if cfg.out_bias else None
    fan_in = cfg.n_heads * cfg.head_dim
    out = Projection("bthk,hkd->btd", shape, bias, fan_in, name="o")
    return out(z_BxTxHxK)

  def _qkv(self, x, cos, sin):
    cfg = self.cfg

    def project(name, heads):
      tail = (heads, cfg.head_dim)
      shape = (cfg.d_model, *tail)
      bias = tail if cfg.qkv_bias else None
      return Projection("btd,dnk->btnk", shape, bias, cfg.d_model, name=name)(x)

    q = project("q", cfg.n_heads)
    k, v = project("k", cfg.n_kv_heads), project("v", cfg.n_kv_heads)
    if cfg.qk_norm:
      q = HeadNorm(cfg, name="q_norm")(q)
      k = HeadNorm(cfg, name="k_norm")(k)
    if cos is not None:
      q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return q, k, v
