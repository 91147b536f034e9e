"""Ready-made edits for `intervene`: callable pytrees, arrays as leaves.

Each has optional `layers`: `None` for all, an integer, a sequence of integers
or a bool mask [L]; elsewhere the edit is the identity. Because fields are
leaves, one compiled function serves every value of them, and `vmap` over a
leaf sweeps it.

How layers, heads and positions are given is said in `edit_indices`; edits that
name heads and keys are in `attention_edits`.

At "scores" and "pattern" some also work on a block of query rows, which is
all that `sinkjax.transforms.streaming` ever has: `edit.rows(value, layer,
start)` is what the edit makes of rows start, start + 1, ... and of the keys
from 0 on. Those that would have to know all of T and S refuse. For caches,
whose slots hold any tokens, `edit.at(value, layer, queries, keys)` is given
which token of the text stands in each row, [B, T], and column, [B, S].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sinkjax.config import ModelConfig
from sinkjax.model_edits import in_turn, method_of, reads_of
from sinkjax.taps import Layer, placed
from sinkjax.transforms.edit_indices import (
  OfLayers,
  check_leading,
  chosen,
  place_index,
)


def pytree_dataclass(cls: type) -> type:
  """A frozen dataclass that is a pytree, every field a leaf."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  return jax.tree_util.register_dataclass(cls, names, [])


def _select(layers: Any, layer: Layer, edited: Array, value: Array) -> Array:
  if layers is None:  # no select: an edit of all layers costs nothing extra
    return edited
  return jnp.where(chosen(layers, layer), edited, value)


def _rows(edit: Any, operand: Any, value: Array, layer: Layer) -> Array:
  """The edit of a block of rows, if its operand is the same for all."""
  shape = jnp.shape(operand)
  if any(size != 1 for size in shape[-2:]):
    raise ValueError(
      f"{type(edit).__name__} of a block of rows needs the same number for "
      f"every query and key, a scalar or [..., 1, 1], got shape {shape}"
    )
  return edit(value, layer)


@pytree_dataclass
class Scale(OfLayers):
  """`value * factor`; `factor=1` is the identity."""

  factor: Any
  layers: Any = None

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The scaled value where the layer is chosen."""
    edited = value * jnp.asarray(self.factor, value.dtype)
    return _select(self.layers, layer, edited, value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return _rows(self, self.factor, value, layer)

  def at(self, value: Array, layer: Layer, queries: Any, keys: Any) -> Array:
    """The same for any tokens."""
    return _rows(self, self.factor, value, layer)


@pytree_dataclass
class Add(OfLayers):
  """`value + shift`, the shift broadcast; `shift=0` is the identity."""

  shift: Any
  layers: Any = None

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The shifted value where the layer is chosen."""
    edited = value + jnp.asarray(self.shift, value.dtype)
    return _select(self.layers, layer, edited, value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return _rows(self, self.shift, value, layer)


@pytree_dataclass
class Replace(OfLayers):
  """A fixed value, broadcast to the site's shape."""

  value: Any
  layers: Any = None

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The fixed value where the layer is chosen."""
    new = jnp.broadcast_to(jnp.asarray(self.value, value.dtype), value.shape)
    return _select(self.layers, layer, new, value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return _rows(self, self.value, value, layer)


@pytree_dataclass
class Hold(OfLayers):
  """The value itself with derivative zero: a constant to what follows."""

  layers: Any = None

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The value, held where the layer is chosen."""
    return _select(self.layers, layer, jax.lax.stop_gradient(value), value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return self(value, layer)

  def at(self, value: Array, layer: Layer, queries: Any, keys: Any) -> Array:
    """The same for any tokens."""
    return self(value, layer)


@pytree_dataclass
class Patch(OfLayers):
  """Activations of another run, as an identity observer returned them.

  Attributes:
    activations: [L, ...site], one slice for each layer.
    positions: token positions (axis 1 of a [B, T, ...] site) to patch,
      indices or a bool mask [T], or `None` for the whole value.
    layers: as everywhere.
  """

  activations: Any
  positions: Any = None
  layers: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its layers and positions checked against the sizes."""
    check_leading("activations", self.activations, cfg.n_layers)
    positions = place_index("position", self.positions, length)
    new = dataclasses.replace(self, positions=positions)
    return OfLayers.placed(new, cfg, length, site)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The other run's value where layer and position are chosen."""
    new = jnp.asarray(self.activations, value.dtype)[layer]
    if self.positions is not None:
      hit = chosen(self.positions, jnp.arange(value.shape[1]))
      new = jnp.where(hit.reshape(1, -1, *[1] * (value.ndim - 2)), new, value)
    return _select(self.layers, layer, new, value)


@pytree_dataclass
class Chain:
  """Edits of one site, applied in order."""

  edits: tuple

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """Every edit with its indices checked against the sizes."""
    return Chain(tuple(placed(edit, cfg, length, site) for edit in self.edits))

  @property
  def reads(self) -> tuple[str, ...]:
    """What any of them reads."""
    return reads_of(*self.edits)

  def __call__(self, value: Array, layer: Layer, *read: Array) -> Array:
    """Every edit's result handed to the next."""
    return in_turn(self.edits, value, layer, read)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """Every edit's result for a block of query rows handed to the next.

    Raises:
      ValueError: for an edit without `rows`, naming it.
    """
    for edit in self.edits:
      value = rows_of(edit)(value, layer, start)
    return value

  def at(self, value: Array, layer: Layer, queries: Any, keys: Any) -> Array:
    """Every edit's result for the tokens of a cache handed to the next."""
    for edit in self.edits:
      value = method_of(edit, "at")(value, layer, queries, keys)
    return value


def rows_of(edit: Any) -> Callable:
  """The edit's method for a block of query rows.

  Raises:
    ValueError: for an edit that has none, naming it.
  """
  return method_of(edit, "rows")


def scale(factor: Any, *, layers: Any = None) -> Scale:
  """Multiplies a site by `factor`.

  >>> scale(2.0)(jax.numpy.ones(3), 0).tolist()
  [2.0, 2.0, 2.0]
  """
  return Scale(factor, layers)


def add(shift: Any, *, layers: Any = None) -> Add:
  """Adds `shift` to a site.

  >>> add(1.0, layers=[1, 2])(jax.numpy.zeros(2), 0).tolist()
  [0.0, 0.0]
  """
  return Add(shift, layers)


def replace(value: Any, *, layers: Any = None) -> Replace:
  """Puts `value` in a site's place.

  >>> replace(5.0)(jax.numpy.zeros(2), 0).tolist()
  [5.0, 5.0]
  """
  return Replace(value, layers)


def hold(*, layers: Any = None) -> Hold:
  """Lets a site keep its value and lose its derivative.

  At "pattern" it gives the Jacobian for frozen attention, as bounds on
  over-squashing assume it.

  >>> jax.grad(lambda x: hold()(x, 0) * x)(jax.numpy.array(3.0)).tolist()
  3.0
  """
  return Hold(layers)


def patch(
  activations: Any, *, positions: Any = None, layers: Any = None
) -> Patch:
  """Puts another run's activations in a site's place.

  Args:
    activations: [L, ...], what an identity observer at that site returned.
    positions: which token positions, indices or a bool mask, `None` for all.
    layers: which layers, `None` for all.
  """
  return Patch(activations, positions, layers)


def chain(*edits: Any) -> Chain:
  """Several edits of one site as one, applied left to right.

  >>> chain(add(1.0), scale(3.0))(jax.numpy.zeros(1), 0).tolist()
  [3.0]
  """
  return Chain(edits)
