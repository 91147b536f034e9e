"""What attention and MLP are made of: projections, and norms of vectors."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide


def softcapped(x: Array, cap: float) -> Array:
  """`cap tanh(x / cap)`, computed in float32 at least."""
  return (cap * jnp.tanh(wide(x) / cap)).astype(x.dtype)


def rms_normalize(x: Array, eps: float) -> Array:
  """`x / sqrt(mean(x^2) + eps)` over the last axis, in float32 at least."""
  x = wide(x)
  # The mean of squares in half precision would lose small entries.
  square = jnp.mean(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(square + eps)


def align(vector: Array, x: Array) -> Array:
  """`vector` with leading axes of size 1, to the rank of `x`."""
  return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)


class HeadNorm(nn.Module):
  """RMS norm of each head with one scale for all, or of all heads together."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x: Float[Array, "B T N K"]) -> Float[Array, "B T N K"]:
    # Fresh norms multiply by one, also where an offset is added to the scale.
    init = nn.initializers.constant(1.0 - self.cfg.norm_offset)
    axes = 2 if self.cfg.qk_norm_over == "all" else 1
    scale = self.param("scale", init, x.shape[-axes:])
    flat = x.reshape(*x.shape[:-axes], -1)
    normed = rms_normalize(flat, self.cfg.norm_eps).reshape(x.shape)
    scale = align(wide(scale) + self.cfg.norm_offset, x)
    return (normed * scale).astype(x.dtype)


LATENT_EPS = 1e-6
"""Of the norms of latent vectors, whatever a config's `norm_eps` is: the code
of the models that have them does not set it."""


class Latent(nn.Module):
  """A latent vector of each token: a projection and its RMS norm.

  Attributes:
    cfg: the model.
    rank: its width.
  """

  cfg: ModelConfig
  rank: int

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T R"]:
    cfg, outer = self.cfg, (self.rank,)
    down = Projection(
      (cfg.d_model,), outer, cfg.qkv_bias, cfg.init_std, name="down"
    )
    normed = rms_normalize(down(x), LATENT_EPS)
    scale = wide(self.param("scale", nn.initializers.ones, outer))
    return (normed * align(scale, normed)).astype(x.dtype)


def random_kernel(fan_in: int, std: float | None) -> Callable:
  """The initialiser of a matrix, see `ModelConfig.init_std`."""
  if std is None:
    return nn.initializers.truncated_normal(fan_in**-0.5)
  return nn.initializers.normal(std)


class Projection(nn.Module):
  """[B, T, *inner] -> [B, T, *outer]: `x kernel + bias`.

  One product of two matrices: XLA's CPU backend is slow at the gradient of
  any other.

  Attributes:
    inner: axes of a token that are summed over.
    outer: axes of a token that come out.
    bias: whether there is one, [*outer].
    std: of the random kernel; `None` for 1 / sqrt(fan in), truncated.
  """

  inner: tuple[int, ...]
  outer: tuple[int, ...]
  bias: bool
  std: float | None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    fan_in, lead = math.prod(self.inner), x.shape[:2]
    init = random_kernel(fan_in, self.std)
    kernel = self.param("kernel", init, (*self.inner, *self.outer))
    matrix = kernel.astype(x.dtype).reshape(fan_in, -1)
    out = (x.reshape(-1, fan_in) @ matrix).reshape(*lead, *self.outer)
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, self.outer)
      out = out + align(bias, out).astype(x.dtype)
    return out
