"""How edits name layers, heads and positions, and how these are checked.

Indices of layers, heads and positions follow one rule. A concrete index that
is negative counts from the end, and one out of range raises a ValueError when
the model is called, where the sizes are known. A traced index (a leaf under
`jit` or `vmap`) cannot be looked at: it must count from 0, and one that is out
of range touches nothing. An array of dtype bool is a mask with one entry for
each layer, head or position; an array of integers is a list of indices.

`sinkjax.taps.placed` calls an edit's method `placed(cfg, length, site)` before
the model runs; what is here is for these methods.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax.config import ModelConfig


class OfLayers:
  """An edit with a field `layers` and no other index."""

  layers: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its layers checked against the model's."""
    layers = place_index("layer", self.layers, cfg.n_layers)
    return dataclasses.replace(self, layers=layers)


def chosen(which: Any, at: Any) -> Array:
  """Whether a mask or a list of indices chooses each index of `at`."""
  which = jnp.asarray(which)
  if which.dtype == bool:
    return which[at]
  # A comparison and not `in`: the layer is traced within the scan.
  at = jnp.asarray(at)[..., None]
  which = which.reshape(*[1] * (at.ndim - 1), -1)
  return jnp.any(at == which, axis=-1)


def chosen_heads(heads: Any, layer: Any, size: int) -> Array:
  """[H] whether each head is chosen in a layer.

  Args:
    heads: indices or a bool mask [H], or a bool mask [L, H]; `None` for all.
    layer: traced or not.
    size: H.
  """
  if heads is None:
    return jnp.ones(size, bool)
  heads = jnp.asarray(heads)
  if heads.ndim == 2:
    return heads[layer]
  return chosen(heads, jnp.arange(size))


def place_heads(heads: Any, cfg: ModelConfig) -> Any:
  """Heads as `chosen_heads` takes them, checked against the model's.

  Raises:
    ValueError: as `place_index`, or for another mask than [H] and [L, H].
  """
  if heads is None or jnp.asarray(heads).ndim != 2:
    return place_index("head", heads, cfg.n_heads)
  array, shape = jnp.asarray(heads), (cfg.n_layers, cfg.n_heads)
  if array.dtype != bool or array.shape != shape:
    raise ValueError(
      f"a mask of heads by layer must be bool [L, H] = {list(shape)}, got "
      f"{array.dtype} {list(array.shape)}"
    )
  return heads


def place_index(
  name: str, index: Any, size: int, *, boundary: bool = False
) -> Any:
  """Concrete indices counted from the start; a mask or a tracer stays.

  Args:
    name: of what is counted, for the message.
    index: an integer, a list of them, a bool mask [size], or `None` for all.
    size: how many there are.
    boundary: one index, where a range starts; it may be its end, `size`.

  Raises:
    ValueError: for an index out of range, naming it, a mask of another length
      or anything that is neither integer nor bool.

  >>> place_index("layer", [0, -1], 12).tolist()
  [0, 11]
  """
  if index is None:
    return None
  traced = any(isinstance(i, jax.core.Tracer) for i in jax.tree.leaves(index))
  array = jnp.asarray(index) if traced else np.asarray(index)
  if boundary and (array.dtype == bool or array.ndim):
    raise ValueError(
      f"the first {name} must be one integer, got {array.dtype} "
      f"{list(array.shape)}"
    )
  if array.dtype == bool:
    if array.shape != (size,):
      raise ValueError(
        f"a bool mask of {name}s must have shape [{size}], got "
        f"{list(array.shape)}"
      )
    return array
  if array.size == 0:  # an empty list has the dtype of floats
    return array.astype(np.int32)
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise ValueError(
      f"a {name} must be an integer or a bool mask, got {array.dtype}"
    )
  if traced:
    return array
  most = size if boundary else size - 1
  wrong = array[(array < -size) | (array > most)]
  if wrong.size:
    raise ValueError(
      f"{name} {wrong.flat[0]} is out of range: there are {size}, so an index "
      f"must be from {-size} to {most}"
    )
  return np.where(array < 0, array + size, array).astype(np.int32)


def check_leading(name: str, array: Any, n_layers: int) -> None:
  """An array with another number of layers would be clamped silently."""
  shape = jnp.shape(array)
  if not shape or shape[0] != n_layers:
    raise ValueError(
      f"{name} must have the model's {n_layers} layers on its first axis, got "
      f"shape {list(shape)}"
    )
