"""Edits that part what a sink adds from what it takes by normalisation.

Both have two switches, numbers that may be traced, so that one compiled program
serves all four conditions: `adds` keeps what the sink writes itself, `rescales`
keeps what its presence takes from the rest. Both at 1 are the identity.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sink_parts import norm_without
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import check_leading, chosen, place_index
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class SplitSink:
  """Key 0 of the pattern without its value, its normalisation or both.

  For the site "pattern". With p the weights of a row of sum c,

      p_0 -> adds p_0,
      p_s -> p_s                    with rescales = 1,
             p_s c / (c - p_0)      with rescales = 0, for s > 0

  Row 0, which sees nothing else, stays. A row without weight beside the sink
  has no other to give it to: there p_s stay 0.

  Attributes:
    adds: whether the sink's value is mixed in, 1 or 0.
    rescales: whether the others stay as small as the sink made them, 1 or 0.
  """

  adds: Any = 1.0
  rescales: Any = 1.0

  def __call__(
    self, pattern: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The pattern with key 0's part changed."""
    return self.rows(pattern, layer, 0)

  def rows(
    self, pattern: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    p = wide(pattern)
    first = p[..., :1]
    others = jnp.sum(p[..., 1:], axis=-1, keepdims=True)
    factor = (first + others) / jnp.where(others > 0, others, 1)
    factor = jnp.where(jnp.asarray(self.rescales) > 0, 1.0, factor)
    kept = first * jnp.asarray(self.adds, p.dtype)
    edited = jnp.concatenate([kept, p[..., 1:] * factor], axis=-1)
    late = (start + jnp.arange(p.shape[-2]) > 0)[None, None, :, None]
    return jnp.where(late, edited, p).astype(pattern.dtype)


@pytree_dataclass
class SplitNorm:
  """Some dimensions of a norm's input without their content or their size.

  For the sites "attn_in" and "mlp_in" of models that norm what these read. With
  u the norm's output before scale and bias, S the dimensions,

      u_d -> adds u_d   for d in S,
      u_d -> f u_d      with rescales = 0, f of `norm_without`,

  so that adds = rescales = 0 is exactly the norm of an input with these
  dimensions at zero, while the residual stream itself stays. For a layer norm
  this is said of the centred input.

  Attributes:
    dims: [L, D] bool, S in every layer.
    scale: [L, D] of the norm, its offset included.
    bias: [L, D] of the norm, zeros where it has none.
    adds: whether the dimensions are read, 1 or 0.
    rescales: whether they count in the norm, 1 or 0.
    positions: of the tokens it is done to, indices or a bool mask [T], or
      `None` for all.
  """

  dims: Any
  scale: Any
  bias: Any
  adds: Any = 1.0
  rescales: Any = 1.0
  positions: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, its arrays checked to have the model's layers."""
    if not cfg.pre_norms:
      raise ValueError(
        "SplitNorm needs a model that norms what its layers read"
      )
    for name in ("dims", "scale", "bias"):
      check_leading(name, getattr(self, name), cfg.n_layers)
    positions = place_index("position", self.positions, length)
    return dataclasses.replace(self, positions=positions)

  def __call__(
    self, value: Float[Array, "B T D"], layer: Layer
  ) -> Float[Array, "B T D"]:
    """What the layer reads, with the dimensions' part changed."""
    x = wide(value)
    dims, scale, bias = (
      jnp.asarray(a)[layer][None, None]
      for a in (self.dims, self.scale, self.bias)
    )
    some = scale != 0
    # A dimension of scale 0 is read by nothing; its size is not known here.
    unit = jnp.where(some, (x - bias) / jnp.where(some, scale, 1), 0)
    factor = norm_without(unit, dims)[..., None]
    factor = jnp.where(jnp.asarray(self.rescales) > 0, 1.0, factor)
    kept = jnp.where(dims, jnp.asarray(self.adds, x.dtype) * unit, unit)
    edited = (kept * factor * scale + bias).astype(value.dtype)
    # What is asked to change nothing changes no digit either.
    same = (jnp.asarray(self.rescales) > 0) & (jnp.asarray(self.adds) == 1)
    same = same | ~jnp.any(dims)
    if self.positions is not None:
      hit = chosen(self.positions, jnp.arange(value.shape[1]))
      same = same | ~hit[None, :, None]
    return jnp.where(same, value, edited)


def split_norms(
  cfg: ModelConfig,
  params: Any,
  dims: Any,
  *,
  adds: Any,
  rescales: Any,
  positions: Any = None,
) -> dict[str, SplitNorm]:
  """`SplitNorm` at both sites of a block, for `intervene`.

  Args:
    cfg: the model.
    params: its parameters, in memory.
    dims: [L, D] bool.
    adds: see `SplitNorm`.
    rescales: likewise.
    positions: likewise.

  Raises:
    ValueError: for a model without norms before its layers.
  """
  if not cfg.pre_norms:
    raise ValueError("SplitNorm needs a model that norms what its layers read")
  blocks, edits = params["blocks"], {}
  shape = (cfg.n_layers, cfg.d_model)
  for site, name in (("attn_in", "attn_norm"), ("mlp_in", "mlp_norm")):
    of = blocks.get("attn_norm" if cfg.shared_norm else name, {})
    scale = jnp.ones(shape)
    if cfg.norm_scale:
      scale = wide(of["scale"]) + cfg.norm_offset
    bias = wide(of["bias"]) if "bias" in of else jnp.zeros(shape)
    edits[site] = SplitNorm(dims, scale, bias, adds, rescales, positions)
  return edits
