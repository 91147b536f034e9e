"""What each head does, by which heads can be ranked for removal.

Observers and sums of squares inside the forward pass, so that no pattern is
kept; `scores_of` makes numbers of them. Position 0, which sees only itself, is
left out everywhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.models.layerwise import Params
from sinkjax.models.normalizers import MASKED


class HeadScores(NamedTuple):
  """[L, H] each; the less, the less a head does.

  Attributes:
    beside_sink: mean over queries of `sum_{s>0} p_ts ||v_s||`: what the head
      reads elsewhere than at the first token, over the mean of `||v_s||` at
      s > 0 and over the layer's heads. Layers differ in scale: by raw norms
      those with a small residual stream come first, whatever they do.
    value_mass: mean over queries of `sum_s p_ts ||v_s||`, likewise: with the
      first token, whose value is small where it is a sink.
    off_sink: mean over queries of `1 - p_t0`.
    output: `sqrt(mean ||z_t U||^2)`, what it writes to the residual, over
      `sqrt(mean ||x_t||^2)` of the residual after it.
    beside_norm: `beside_sink` as a norm, not divided.
    output_norm: `output` likewise.
    dormant: `sqrt(mean ||z_t||^2)` over its mean over the layer's heads: the
      criterion of arXiv 2504.03889 in our reading. The paper defines dormant
      heads by the norm of their output; its formula was not at hand.
    weights: `sqrt(||W_q||^2 + ||W_o||^2)`, of no text.
  """

  beside_sink: np.ndarray
  value_mass: np.ndarray
  off_sink: np.ndarray
  output: np.ndarray
  beside_norm: np.ndarray
  output_norm: np.ndarray
  dormant: np.ndarray
  weights: np.ndarray


class Seen(NamedTuple):
  """Means over texts and queries.

  Attributes:
    off_sink: [L, H] of `1 - p_t0`.
    beside: [L, H] of `sum_{s>0} p_ts ||v_s||`.
    mass: [L, H] of `sum_s p_ts ||v_s||`.
    size: [L, H] of `||v_s||` at s > 0.
    second: [L, H, K, K] of `z_t z_t^T`.
    mean: [L, H, K] of `z_t`.
    level: [L, H] of `logsumexp_{1<=j<=t} s_tj - log t`, for `SkipForetold`.
    square: [L] of `||x_t||^2`, the residual after the attention.
  """

  off_sink: Any
  beside: Any
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
  """(off the sink, read beside it, read in all, norm of values) [B, H]."""
  size = jnp.sqrt(jnp.sum(v * v, axis=-1))
  size = jnp.repeat(size, pattern.shape[1] // v.shape[2], axis=2)
  rows = pattern[:, :, 1:]
  read = rows * jnp.swapaxes(size, 1, 2)[:, :, None]
  beside = jnp.mean(jnp.sum(read[..., 1:], axis=-1), axis=-1)
  mass = jnp.mean(jnp.sum(read, axis=-1), axis=-1)
  off = jnp.mean(1 - rows[..., 0], axis=-1)
  return off, beside, mass, jnp.mean(size[:, 1:], axis=1)


def _moments(z: Float[Array, "B T H K"]) -> tuple[Array, Array]:
  """(second moments [B, H, K, K], means [B, H, K])."""
  z = z[:, 1:]
  count = z.shape[1]
  return jnp.einsum("bthk,bthj->bhkj", z, z) / count, jnp.mean(z, axis=1)


def _level(scores: Float[Array, "B H T S"]) -> Float[Array, "B H"]:
  """How much the scores of the other keys sum to, per key."""
  t = jnp.arange(scores.shape[2])[:, None]
  s = jnp.arange(scores.shape[3])[None]
  seen = ((s > 0) & (s <= t))[None, None]
  total = jax.nn.logsumexp(jnp.where(seen, scores, MASKED), axis=-1)[:, :, 1:]
  return jnp.mean(total - jnp.log(t[1:, 0])[None, None], axis=-1)


def _square(x: Float[Array, "B T D"]) -> Float[Array, "B"]:
  """Mean squared norm."""
  return jnp.mean(jnp.sum(jnp.square(x[:, 1:]), axis=-1), axis=-1)


def seen_of(trace: dict[str, Any]) -> Seen:
  """Means over texts of what the observers found."""
  every = *trace["pattern"], *trace["z"], trace["level"], trace["square"]
  return Seen(*(np.asarray(x, np.float64).mean(axis=1) for x in every))


def scores_of(params: Params, seen: Seen) -> HeadScores:
  """Numbers to rank heads by.

  Args:
    params: of the model.
    seen: on calibration texts.

  Raises:
    ValueError: where `seen` is of another model's shape.
  """
  out = np.asarray(params["blocks"]["attn"]["o"]["kernel"], np.float64)
  if out.shape[:3] != seen.mean.shape:
    raise ValueError(
      f"seen has heads [L, H, K] = {seen.mean.shape}, the parameters have "
      f"{out.shape[:3]}"
    )
  gram = np.einsum("lhkd,lhjd->lhkj", out, out)
  written = np.sqrt(np.einsum("lhkj,lhkj->lh", gram, seen.second))
  norm = np.sqrt(np.einsum("lhkk->lh", seen.second))
  size = seen.size.mean(axis=1, keepdims=True)
  resid = np.sqrt(seen.square)[:, None]
  return HeadScores(
    seen.beside / size,
    seen.mass / size,
    seen.off_sink,
    written / resid,
    seen.beside,
    written,
    norm / norm.mean(axis=1, keepdims=True),
    weight_norms(params),
  )


def weight_norms(params: Params) -> np.ndarray:
  """[L, H] `sqrt(||W_q||^2 + ||W_o||^2)` of what each head has for itself."""
  attn = params["blocks"]["attn"]
  q = np.square(np.asarray(attn["q"]["kernel"], np.float64)).sum(axis=(1, 3))
  o = np.square(np.asarray(attn["o"]["kernel"], np.float64)).sum(axis=(2, 3))
  return np.sqrt(q + o)
