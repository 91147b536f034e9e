"""Edits of single heads and keys: `knockout` and `ablate_heads`."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import check_leading, chosen, place_index
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class Knockout:
  """Hides key positions from all later queries, from a layer on.

  For the site "scores". A position still sees itself, so its own row stays a
  distribution and its own residual stream is what the other edits make it.

  Attributes:
    key: the hidden position, or several, indices or a bool mask [T].
    from_layer: the first layer in which it is hidden; L for none.
    heads: the heads in which it is hidden, indices or a bool mask [H], or
      `None` for all.
  """

  key: Any
  from_layer: Any = 0
  heads: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its key, layer and heads checked against the sizes."""
    return dataclasses.replace(
      self,
      key=place_index("position", self.key, length),
      from_layer=place_index(
        "layer", self.from_layer, cfg.n_layers, boundary=True
      ),
      heads=place_index("head", self.heads, cfg.n_heads),
    )

  def __call__(
    self, scores: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The scores with the key's column switched off below the diagonal."""
    return self.rows(scores, layer, 0)

  def rows(
    self, scores: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    queries, keys = scores.shape[-2:]
    t, s = start + jnp.arange(queries)[:, None], jnp.arange(keys)[None]
    # t != s: the key sees itself, so that no row is left without a key.
    hidden = chosen(self.key, s) & (t != s) & (layer >= self.from_layer)
    # A traced layer below 0 is out of range, and touches nothing.
    hidden = hidden & (jnp.asarray(self.from_layer) >= 0)
    hidden = hidden[None, None]
    if self.heads is not None:
      heads = chosen(self.heads, jnp.arange(scores.shape[1]))
      hidden = hidden & heads[None, :, None, None]
    return jnp.where(hidden, jnp.asarray(MASKED, scores.dtype), scores)


@pytree_dataclass
class AblateHeads:
  """Replaces some heads' output by zero, or by a given mean. For site "z".

  Attributes:
    heads: [L, H] bool, True where ablated.
    mean: [L, H, K], or `None` for zero.
  """

  heads: Any
  mean: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, its arrays checked to have the model's layers and heads."""
    heads, shape = jnp.asarray(self.heads), (cfg.n_layers, cfg.n_heads)
    if heads.dtype != bool or heads.shape != shape:
      raise ValueError(
        f"heads must be a bool mask [L, H] = {list(shape)}, got {heads.dtype} "
        f"{list(heads.shape)}"
      )
    if self.mean is not None:
      check_leading("mean", self.mean, cfg.n_layers)
    return self

  def __call__(
    self, z: Float[Array, "B T H K"], layer: Layer
  ) -> Float[Array, "B T H K"]:
    """The heads' outputs with the chosen ones replaced."""
    hit = jnp.asarray(self.heads, bool)[layer][None, None, :, None]
    # Selected and not multiplied by 0, which would keep a NaN or infinity.
    if self.mean is None:
      return jnp.where(hit, jnp.zeros((), z.dtype), z)
    mean = jnp.asarray(self.mean, z.dtype)[layer][None, None]
    return jnp.where(hit, mean, z)


def knockout(key: Any, *, from_layer: Any = 0, heads: Any = None) -> Knockout:
  """Hides key position `key` from every other token, from a layer on.

  For site "scores". `vmap` over `from_layer` gives the whole sweep, and L as
  `from_layer` hides nothing. `heads` are indices or a bool mask [H], `None`
  for all.

  >>> import jax, sinkjax
  >>> edit = sinkjax.knockout(0, from_layer=2)
  >>> edit(jax.numpy.zeros((1, 1, 2, 2)), 1)[0, 0].tolist()
  [[0.0, 0.0], [0.0, 0.0]]
  >>> bool(edit(jax.numpy.zeros((1, 1, 2, 2)), 2)[0, 0, 1, 0] < -1e29)
  True
  """
  return Knockout(key, from_layer, heads)


def ablate_heads(heads: Any, *, mean: Any = None) -> AblateHeads:
  """Silences heads: their output becomes zero, or `mean`. For site "z".

  Args:
    heads: [L, H] bool.
    mean: [L, H, K] their average output over some data, `None` for zero.

  Raises:
    ValueError: for concrete `heads` that are not [L, H].
  """
  # A JAX array is not checked: it may have an axis that vmap takes away.
  if isinstance(heads, (list, np.ndarray)) and np.ndim(heads) != 2:
    raise ValueError(f"heads must be [L, H] bool, got {np.shape(heads)}")
  return AblateHeads(heads, mean)
