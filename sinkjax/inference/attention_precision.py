"""Attention in 16 or 8 bits, simulated, with some keys in full precision.

What a kernel of low precision rounds, by the formula

    s_ij = scale r(q_i) r(k_j),  p_i = softmax(s_i),  z_i = sum_j r(p_ij) r(v_j)

is its operands; sums are in float32, as those of tensor cores are. `r` rounds
to one of `FORMATS`. "int8" and "float8_e4m3" have a step for each token and
head, max |x| over the format's greatest number, for queries, keys and values;
weights p, which lie in [0, 1], have a fixed one, as in SageAttention
(2410.02367) and FlashAttention-3 (2407.08608). In "bfloat16" scores are stored
in bfloat16 too, as attention that forms its pattern in 16 bits stores them.

A key j that is kept has s_ij, p_ij and p_ij v_j as they are: for one of T keys
that is 2 / (T + 1) of a causal pattern's products in float32. To keep single
keys is our own proposal; we know of no kernel that does it.

Sharp edges:
  A simulation: it measures what rounding does, and is slower than float32.
  Rounding has derivative zero.
  The row's sum is taken before p is rounded, as online kernels do, so that
  rounded rows sum to about one only.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.products import products
from sinkjax.taps import Layer

FORMATS = ("bfloat16", "float8_e4m3", "int8")
"""Names of formats, the finest first."""

TOP = {"float8_e4m3": 448.0, "int8": 127.0}
"""The greatest number of the formats that need a step: e4m3 without infinities,
as accelerators have it (2209.05433, table 1), and symmetric int8."""

NORMALIZERS = ("softmax", "softmax1")
"""Those whose weights lie in [0, 1], which the fixed step of weights takes."""


def rounded(
  x: Float[Array, "... C"], kind: str, *, top: float | None = None
) -> Float[Array, "... C"]:
  """`x` rounded to a format, in its own dtype.

  Args:
    x: any array.
    kind: one of `FORMATS`.
    top: the number that the format's greatest stands for; `None` for the
      greatest |x| of the last axis. Numbers beyond it become it. "bfloat16",
      whose range is float32's, needs none.

  Raises:
    ValueError: for an unknown format.

  >>> rounded(jnp.array([127.0, 1.4, -0.6]), "int8").tolist()
  [127.0, 1.0, -1.0]
  """
  if kind not in FORMATS:
    raise ValueError(f"unknown format {kind!r}; valid: {', '.join(FORMATS)}")
  if kind == "bfloat16":
    # Not a cast there and back, which compilers may leave out.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
  most = jnp.max(jnp.abs(x), axis=-1, keepdims=True) if top is None else top
  step = jnp.asarray(most, x.dtype) / TOP[kind]
  unit = x / jnp.where(step > 0, step, 1)
  unit = jnp.clip(unit, -TOP[kind], TOP[kind])
  grid = jnp.ones((), x.dtype) if kind == "int8" else _e4m3_spacing(unit)
  return jnp.round(unit / grid) * grid * step


def _e4m3_spacing(x: Array) -> Array:
  """The distance of neighbours in e4m3: 3 bits behind the leading one."""
  _, exponent = jnp.frexp(x)  # |x| = m 2^e, m in [1/2, 1)
  # Normal numbers begin at 2^-6; below them the spacing stays 2^-9.
  return jnp.ldexp(jnp.ones((), x.dtype), jnp.maximum(exponent - 1, -6) - 3)


def low_precision(
  cfg: ModelConfig, kind: str, keep: Any = None, weights: Any = None
) -> dict[str, Any]:
  """Edits for `intervene`: attention in a format, some keys in full precision.

  Args:
    cfg: the model.
    kind: one of `FORMATS`.
    keep: [T] bool, keys whose scores stay as they are; `None` for none.
    weights: [T] bool, keys whose weights and values do; `None` for `keep`.

  Raises:
    ValueError: for an unknown format, or a model whose scores or weights are
      more than the formula's.

  Cost: the products of queries and keys three times.
  """
  rounded(jnp.zeros(1), kind)
  if cfg.normalizer not in NORMALIZERS:
    raise ValueError(
      f"low precision is of attention weights in [0, 1], by a normalizer of "
      f"{', '.join(NORMALIZERS)}; this model has {cfg.normalizer!r}"
    )
  if cfg.attn_softcap is not None:
    raise ValueError(
      "low precision of scores is of plain products, and this model has a soft "
      f"cap of {cfg.attn_softcap:g} on them"
    )
  scores = jnp.zeros(1, bool) if keep is None else jnp.asarray(keep)
  values = scores if weights is None else jnp.asarray(weights)
  return {
    "v": LowValues(values, kind),
    "scores": LowScores(scores, jnp.asarray(cfg.score_scale), kind),
    "pattern": LowWeights(values, kind),
  }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowValues:
  """Values [B, S, N, W] rounded, but for those of kept keys [S]."""

  keep: Array
  kind: str = dataclasses.field(metadata={"static": True})

  def __call__(self, v: Array, layer: Layer) -> Array:
    """The values as the product with the weights has them."""
    return jnp.where(self.keep[:, None, None], v, rounded(v, self.kind))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowScores:
  """Scores [B, H, T, S] of rounded queries and keys, but for kept keys [S].

  The difference that rounding makes is added, so that what a model adds to its
  scores (ALiBi) stays.
  """

  keep: Array
  scale: Array
  kind: str = dataclasses.field(metadata={"static": True})
  reads = ("q", "k")

  def __call__(self, scores: Array, layer: Layer, *read: Array) -> Array:
    """The scores as the softmax has them.

    Raises:
      ValueError: in a pass that does not hand over queries and keys.
    """
    if not read:
      raise ValueError(
        "low precision of scores needs the queries and keys of a whole pass; "
        "streamed, cached and layer-by-layer passes do not hand them over"
      )
    q, k = read
    low = _scores(rounded(q, self.kind), rounded(k, self.kind))
    low = scores + self.scale.astype(scores.dtype) * (low - _scores(q, k))
    if self.kind == "bfloat16":
      low = rounded(low, self.kind)
    return jnp.where(self.keep, scores, low)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowWeights:
  """The pattern [B, H, T, S] rounded, but for the weights of kept keys [S]."""

  keep: Array
  kind: str = dataclasses.field(metadata={"static": True})

  def __call__(self, pattern: Array, layer: Layer) -> Array:
    """The weights as the product with the values has them."""
    low = rounded(pattern, self.kind, top=1.0)
    return jnp.where(self.keep, pattern, low)


def _scores(q: Array, k: Array) -> Array:
  """Products [B, H, T, S] of queries [B, T, H, K] and keys [B, S, N, K]."""
  batch, length, heads, width = q.shape
  grouped = q.reshape(batch, length, k.shape[2], -1, width)
  return products(grouped, k).reshape(batch, heads, length, -1)
