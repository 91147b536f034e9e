"""Where tokens stand: rotary tables, and ALiBi's slopes and distances.

Tables are made of frequencies in float64 on the host, and are float32 on the
device.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig, RopeScaling


def inverse_frequencies(
  dim: int, base: float, scaling: RopeScaling | None = None
) -> np.ndarray:
  """Angle per position of each rotated pair, `base ** (-2 i / dim)`, scaled.

  Args:
    dim: rotated dimensions, even.
    base: rotary base.
    scaling: how frequencies are stretched, or `None`.

  Returns:
    [dim / 2] float64, the fastest pair first.
  """
  # In float64: an error of a frequency grows with the position that it is
  # multiplied by.
  freq = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
  if scaling is None:
    return freq
  if scaling.kind == "linear":
    return freq / scaling.factor
  if scaling.kind == "dynamic":  # as in a text that needs no stretch
    return freq
  if scaling.kind in ("factors", "longrope"):
    return freq / np.asarray(scaling.factors, np.float64)
  if scaling.kind == "yarn":
    low, high = (
      dim
      * math.log(scaling.original_max_len / (turns * 2 * math.pi))
      / (2 * math.log(base))
      for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    # transformers has the same width of a ramp that would have none.
    ramp = (np.arange(dim // 2) - low) / (high - low or 0.001)
    slow = np.clip(ramp, 0.0, 1.0)
    return freq / scaling.factor * slow + freq * (1.0 - slow)
  wavelength = 2 * math.pi / freq
  ramp = (scaling.original_max_len / wavelength - scaling.low_freq) / (
    scaling.high_freq - scaling.low_freq
  )
  ramp = np.clip(ramp, 0.0, 1.0)
  return freq * ramp + freq / scaling.factor * (1.0 - ramp)


def rope_frequencies(cfg: ModelConfig) -> np.ndarray:
  """Frequencies of the layers that differ in them.

  Returns:
    [C, rotary_dim / 2], see `rope_row`: a row for each base of `rope_bases`,
    or row 0 for global layers and, where they differ, row 1 for local ones.
  """
  bases = sorted(set(cfg.rope_bases)) or [cfg.rope_base]
  rows = [
    inverse_frequencies(cfg.rotary_dim, base, cfg.rope_scaling)
    for base in bases
  ]
  if cfg.rope_local_base is not None:
    rows.append(inverse_frequencies(cfg.rotary_dim, cfg.rope_local_base))
  return np.stack(rows)


def rope_row(cfg: ModelConfig) -> tuple[int, ...]:
  """Which row of `rope_frequencies` each layer has."""
  if cfg.rope_bases:
    bases = sorted(set(cfg.rope_bases))
    return tuple(bases.index(base) for base in cfg.rope_bases)
  if cfg.rope_local_base is not None and cfg.local_layers:
    return tuple(map(int, cfg.local_layers))
  return (0,) * cfg.n_layers


def rotary_tables(
  cfg: ModelConfig, positions: Int[Array, "B T"], length: int | None = None
) -> tuple[Float[Array, "C B T R"], Float[Array, "C B T R"]]:
  """Cosines and sines of every angle; axis C is `rope_frequencies`' rows.

  Args:
    cfg: the model.
    positions: position of each token.
    length: of the text, where frequencies depend on it; by default as far as
      the positions go.

  Returns:
    (cos, sin), float32, or float64 for a float64 model.
  """
  # bfloat16 has 8 significant bits: it confuses positions beyond 256.
  dtype = jnp.promote_types(cfg.dtype, jnp.float32)
  freq = jnp.asarray(rope_frequencies(cfg), dtype)
  if cfg.rope_scaling is not None:
    whole = jnp.max(positions) + 1 if length is None else jnp.asarray(length)
    freq = grown(cfg, freq, whole)
  angles = positions[None, :, :, None].astype(dtype) * freq[:, None, None]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  larger = cfg.rope_scaling.attention if cfg.rope_scaling else 1.0
  if larger != 1.0:
    # Local layers with a base of their own, the last row, are not scaled.
    rows = np.full(len(freq), larger)
    rows[1:] = larger if cfg.rope_local_base is None else 1.0
    factor = jnp.asarray(rows, dtype)[:, None, None, None]
    cos, sin = cos * factor, sin * factor
  return cos, sin


def grown(
  cfg: ModelConfig, freq: Float[Array, "C R"], length: Int[Array, ""]
) -> Float[Array, "C R"]:
  """Frequencies in a text of some length, where they depend on it.

  With a longer text all positions turn at another rate, the first ones, too:

      dynamic:   f_i g ** (-2 i / (dim - 2)),
                 g = max(1, factor length / original_max_len - factor + 1)
      longrope:  those of `short_factors` up to `original_max_len`

  Args:
    cfg: the model.
    freq: of `rope_frequencies`.
    length: tokens, the longest of a batch.
  """
  scaling = cfg.rope_scaling
  if scaling.kind == "dynamic":
    more = scaling.factor * (length / scaling.original_max_len - 1)
    step = np.arange(0, cfg.rotary_dim, 2) / (cfg.rotary_dim - 2)
    base = jnp.maximum(1.0, more + 1.0).astype(freq.dtype)
    return freq * base ** jnp.asarray(-step[None], freq.dtype)
  if scaling.kind == "longrope":
    short = RopeScaling("factors", factors=scaling.short_factors)
    short = rope_frequencies(cfg.replace(rope_scaling=short))
    short = jnp.asarray(short, freq.dtype)
    return jnp.where(length > scaling.original_max_len, freq, short)
  return freq


def alibi_slopes(cfg: ModelConfig) -> np.ndarray:
  """[H] how much a token of distance loses of each head's scores.

      m_h = 2 ** (-8 h / H),  h = 1, ..., H

  for H a power of two (arXiv 2108.12409, section 3); else those of the next
  smaller one, and then every other of twice as many. 0 for `control_heads`.
  """
  count = 1 << (cfg.n_heads.bit_length() - 1)
  first = -8.0 * np.arange(1, count + 1) / count
  more = -8.0 * np.arange(1, 2 * count + 1, 2) / (2 * count)
  powers = np.concatenate([first, more])[: cfg.n_heads]
  slopes = cfg.alibi_scale * 2.0**powers
  slopes[: cfg.control_heads] = 0.0
  return slopes


def placed_only(cfg: ModelConfig, x: Array, turned: Array, axis: int) -> Array:
  """`turned` for heads that have positions, else `x`; heads along an axis."""
  if not cfg.control_heads:
    return turned
  shape = [1] * x.ndim
  shape[axis] = heads = x.shape[axis]
  # Of query heads as of key heads, the first ones have none.
  placed = np.arange(heads) >= cfg.control_heads * heads // cfg.n_heads
  return jnp.where(placed.reshape(shape), turned, x)


def distances(
  queries: Int[Array, "B T"], keys: Int[Array, "B S"]
) -> Int[Array, "B 1 T S"]:
  """How many positions each key stands before each query."""
  return (queries[:, :, None] - keys[:, None])[:, None]


def rotate(
  x: Float[Array, "B T N K"],
  cos: Float[Array, "B T R"],
  sin: Float[Array, "B T R"],
) -> Float[Array, "B T N K"]:
  """Rotates the first 2 R dimensions of each head; pair i is (i, i + R).

  Args:
    x: queries or keys.
    cos: cosine of each angle.
    sin: sine of each angle.

  Returns:
    `x` rotated; dimensions beyond 2 R pass through. Norms are unchanged but
    where `RopeScaling.attention` is in the tables.
  """
  half = cos.shape[-1]
  cos, sin = cos[:, :, None], sin[:, :, None]
  a, b = x[..., :half], x[..., half : 2 * half]
  turned = [a * cos - b * sin, b * cos + a * sin]
  turned = [part.astype(x.dtype) for part in turned]
  return jnp.concatenate([*turned, x[..., 2 * half :]], axis=-1)
