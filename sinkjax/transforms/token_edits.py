"""Some dimensions of some tokens in some layers, scaled and shifted."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import check_leading, chosen, place_index
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class AtTokens:
  """`value * by + to` where layer, token and dimension are chosen.

  For sites [B, T, D]: the residual stream, and what attention and MLP read and
  write. All fields are leaves; masks in place of indices let one compiled
  program serve every choice, and a mask of nothing is the identity.

  Attributes:
    by: a number, or what broadcasts to [B, T, D]; with four axes, one for each
      layer on the first.
    to: likewise.
    layers: indices or a bool mask [L], or `None` for all.
    positions: of the tokens, indices or a bool mask [T], or `None` for all.
    dims: indices or a bool mask [D], or `None` for all.
  """

  by: Any = 1.0
  to: Any = 0.0
  layers: Any = None
  positions: Any = None
  dims: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its indices checked against the sizes."""
    for name in ("by", "to"):
      if jnp.ndim(getattr(self, name)) == 4:
        check_leading(name, getattr(self, name), cfg.n_layers)
    return dataclasses.replace(
      self,
      layers=place_index("layer", self.layers, cfg.n_layers),
      positions=place_index("position", self.positions, length),
      dims=place_index("dimension", self.dims, cfg.d_model),
    )

  def __call__(
    self, value: Float[Array, "B T D"], layer: Layer
  ) -> Float[Array, "B T D"]:
    """The value, changed where it is chosen."""
    hit = jnp.ones((1, 1, 1), bool)
    if self.layers is not None:
      hit = hit & chosen(self.layers, layer)
    if self.positions is not None:
      at = chosen(self.positions, jnp.arange(value.shape[1]))
      hit = hit & at[None, :, None]
    if self.dims is not None:
      at = chosen(self.dims, jnp.arange(value.shape[2]))
      hit = hit & at[None, None]
    by, to = (self._of_layer(x, layer, value.dtype) for x in (self.by, self.to))
    # Selected and not multiplied by 1: what is not chosen keeps its digits. A
    # factor of 0 puts 0 even where an infinity or NaN stood.
    changed = jnp.where(by == 0, to, value * by + to)
    return jnp.where(hit, changed, value)

  @staticmethod
  def _of_layer(number: Any, layer: Layer, dtype: Any) -> Array:
    """By or to in three axes."""
    array = jnp.asarray(number, dtype)
    if array.ndim == 4:
      return array[layer]
    return array.reshape((1,) * (3 - array.ndim) + array.shape)


def at_tokens(
  *,
  by: Any = 1.0,
  to: Any = 0.0,
  layers: Any = None,
  positions: Any = None,
  dims: Any = None,
) -> AtTokens:
  """Scales and shifts some dimensions of some tokens in some layers.

      x_td -> by x_td + to

  so that by = 0 sets to a value, and to = 0 scales.

  Args:
    by: a number, or what broadcasts to [B, T, D]; with four axes, one for each
      layer on the first.
    to: likewise.
    layers: which layers, `None` for all.
    positions: which tokens, indices or a bool mask, `None` for all.
    dims: which dimensions, likewise.

  >>> edit = at_tokens(by=0.0, to=5.0, positions=[0], dims=[1])
  >>> edit(jnp.ones((1, 2, 2)), 0).tolist()
  [[[1.0, 5.0], [1.0, 1.0]]]
  """
  return AtTokens(by, to, layers, positions, dims)
