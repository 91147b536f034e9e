"""Edits of single neurons of an MLP: `ScaleNeurons`."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import chosen, place_index
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class ScaleNeurons:
  """Hidden activations of one layer's MLP times a gain each.

  For the site "mlp_act". A gain of 0 ablates a neuron and 1 leaves it; gains
  are leaves, so one compiled program serves every ablation, and the gradient by
  a gain at 1 is the derivative by the logarithm of that neuron's output.

  Attributes:
    gains: [F], or [B, F] for gains of every row.
    layer: the layer.
    positions: of the tokens it is done to, indices or a bool mask [T], or
      `None` for all.
  """

  gains: Any
  layer: Any
  positions: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its layer, positions and width checked."""
    width = jnp.shape(self.gains)[-1:]
    if cfg.n_experts or width != (cfg.d_ff,):
      raise ValueError(
        f"gains must be of the {cfg.d_ff} neurons of a model without experts, "
        f"got shape {list(jnp.shape(self.gains))} and {cfg.n_experts} experts"
      )
    return dataclasses.replace(
      self,
      layer=place_index("layer", self.layer, cfg.n_layers),
      positions=place_index("position", self.positions, length),
    )

  def __call__(
    self, value: Float[Array, "B T F"], layer: Layer
  ) -> Float[Array, "B T F"]:
    """The activations, scaled where layer and position are chosen."""
    gains = jnp.asarray(self.gains, value.dtype)
    if gains.ndim == 1:
      gains = gains[None]
    here = jnp.asarray(layer == self.layer)[None]
    if self.positions is not None:
      here = here & chosen(self.positions, jnp.arange(value.shape[1]))
    # Selected and not multiplied by 1: what is not chosen keeps its digits.
    return jnp.where(here[None, :, None], value * gains[:, None], value)
