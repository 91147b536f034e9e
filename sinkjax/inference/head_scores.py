"""How much each head does, to rank heads for removal.

Observers take sums inside the forward pass, so that no pattern is kept;
`scores_of` turns them into scores. Position 0, which sees only itself, is
left out everywhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax import sharding
from sinkjax.metrics.precision import wide
from sinkjax.models.layerwise import Params
from sinkjax.models.normalizers import MASKED


class HeadScores(NamedTuple):
  """[L, H] each; a head of a lower score does less.

  Attributes:
    nonsink_update: mean over queries of `sum_{s>0} p_ts ||v_s||`: what the
      head reads from tokens other than the first, over the mean of `||v_s||`
      at s > 0 and over the layer's heads. Layers differ in scale: by raw norms
      those with a small residual stream come first, whatever they do.
    value_mass: mean over queries of `sum_s p_ts ||v_s||`, likewise: with the
      first token, whose value is small where it is a sink.
    off_sink: mean over queries of `1 - p_t0`.
    output: `sqrt(mean ||z_t U||^2)`, what the head writes to the residual
      stream, over `sqrt(mean ||x_t||^2)` of the residual stream after it.
    nonsink_norm: `nonsink_update` as a norm, not divided.
    output_norm: `output` likewise.
    dormant: `sqrt(mean ||z_t||^2)` over its mean over the layer's heads: the
      criterion of arXiv 2504.03889 in our reading. The paper defines dormant
      heads by the norm of their output; its formula was not at hand.
    weights: `sqrt(||W_q||^2 + ||W_o||^2)`, of no text.
  """

  nonsink_update: np.ndarray
  value_mass: np.ndarray
  off_sink: np.ndarray
  output: np.ndarray
  nonsink_norm: np.ndarray
  output_norm: np.ndarray
  dormant: np.ndarray
  weights: np.ndarray


class Seen(NamedTuple):
  """Means over texts and queries.

  Attributes:
    off_sink: [L, H] of `1 - p_t0`.
    nonsink: [L, H] of `sum_{s>0} p_ts ||v_s||`.
    mass: [L, H] of `sum_s p_ts ||v_s||`.
    size: [L, H] of `||v_s||` at s > 0.
    second: [L, H, K, K] of `z_t z_t^T`.
    mean: [L, H, K] of `z_t`.
    level: [L, H] of `logsumexp_{1<=j<=t} s_tj - log t`, for `SkipPredicted`.
    square: [L] of `||x_t||^2`, the residual after the attention.
  """

  off_sink: Any
  nonsink: Any
  mass: Any
  size: Any
  second: Any
  mean: Any
  level: Any
  square: Any


def observers() -> dict[str, tuple[Any, Callable]]:
  """For `capture`: each field of `Seen` but for its mean over texts, [L, B]."""
  return {
    "pattern": (("pattern", "v"), _reads),
    "z": ("z", _moments),
    "level": ("scores", _level),
    "square": ("resid_mid", _square),
  }


def _reads(
  pattern: Float[Array, "B H T S"], v: Float[Array, "B S N K"]
) -> tuple[Array, Array, Array, Array]:
  """[B, H] of mass off the sink, read off it, read in all, norm of values."""
  pattern, v = wide(pattern), wide(v)
  size = jnp.sqrt(jnp.sum(v * v, axis=-1))
  size = jnp.repeat(size, pattern.shape[1] // v.shape[2], axis=2)
  # Position 0 can only attend to itself, whatever the head does.
  rows = pattern[:, :, 1:]
  read = rows * jnp.swapaxes(size, 1, 2)[:, :, None]
  nonsink = jnp.mean(jnp.sum(read[..., 1:], axis=-1), axis=-1)
  mass = jnp.mean(jnp.sum(read, axis=-1), axis=-1)
  off = jnp.mean(1 - rows[..., 0], axis=-1)
  return off, nonsink, mass, jnp.mean(size[:, 1:], axis=1)


def _moments(z: Float[Array, "B T H K"]) -> tuple[Array, Array]:
  """(second moments [B, H, K, K], means [B, H, K])."""
  z = wide(z[:, 1:])
  count = z.shape[1]
  return jnp.einsum("bthk,bthj->bhkj", z, z) / count, jnp.mean(z, axis=1)


def _level(scores: Float[Array, "B H T S"]) -> Float[Array, "B H"]:
  """The logarithm of the other keys' mean weight, before normalising."""
  t = jnp.arange(scores.shape[2])[:, None]
  s = jnp.arange(scores.shape[3])[None]
  seen = ((s > 0) & (s <= t))[None, None]
  scores = jnp.where(seen, wide(scores), MASKED)
  total = jax.nn.logsumexp(scores, axis=-1)[:, :, 1:]
  return jnp.mean(total - jnp.log(t[1:, 0])[None, None], axis=-1)


def _square(x: Float[Array, "B T D"]) -> Float[Array, "B"]:
  """Mean squared norm."""
  return jnp.mean(jnp.sum(jnp.square(wide(x[:, 1:])), axis=-1), axis=-1)


def seen_of(trace: dict[str, Any]) -> Seen:
  """Means over texts of what the observers found."""
  every = *trace["pattern"], *trace["z"], trace["level"], trace["square"]
  return Seen(*(sharding.to_host(x, np.float64).mean(axis=1) for x in every))


def scores_of(params: Params, seen: Seen) -> HeadScores:
  """The scores by which heads are ranked.

  Args:
    params: of the model.
    seen: on calibration texts.

  Raises:
    ValueError: where `seen` is of another model's shape.
  """
  out = sharding.to_host(params["blocks"]["attn"]["o"]["kernel"], np.float64)
  if out.shape[:3] != seen.mean.shape:
    raise ValueError(
      f"seen has heads [L, H, K] = {seen.mean.shape}, the parameters have "
      f"{out.shape[:3]}"
    )
  # ||z U||^2 = z U U^T z^T, so second moments of z suffice: [K, K], not [D].
  gram = np.einsum("lhkd,lhjd->lhkj", out, out)
  written = np.sqrt(np.einsum("lhkj,lhkj->lh", gram, seen.second))
  norm = np.sqrt(np.einsum("lhkk->lh", seen.second))
  # Over the layer, not the head: a head of small values does little.
  size = seen.size.mean(axis=1, keepdims=True)
  resid = np.sqrt(seen.square)[:, None]
  return HeadScores(
    seen.nonsink / size,
    seen.mass / size,
    seen.off_sink,
    written / resid,
    seen.nonsink,
    written,
    norm / norm.mean(axis=1, keepdims=True),
    weight_norms(params),
  )


def weight_norms(params: Params) -> np.ndarray:
  """[L, H] `sqrt(||W_q||^2 + ||W_o||^2)` of what each head has for itself."""
  attn = params["blocks"]["attn"]
  q = np.square(sharding.to_host(attn["q"]["kernel"], np.float64)).sum(
    axis=(1, 3)
  )
  o = np.square(sharding.to_host(attn["o"]["kernel"], np.float64)).sum(
    axis=(2, 3)
  )
  return np.sqrt(q + o)
