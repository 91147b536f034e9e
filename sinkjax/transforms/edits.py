"""Ready-made edits for `intervene`: callable pytrees, arrays as leaves.

Each has optional `layers`: `None` for all, an integer, a sequence of integers
or a bool mask [L]; elsewhere the edit is the identity. Because fields are
leaves, one compiled function serves every value of them, and `vmap` over a
leaf sweeps it.

Indices of layers, heads and positions follow one rule. A concrete index that
is negative counts from the end, and one out of range raises a ValueError when
the model is called, where the sizes are known. A traced index (a leaf under
`jit` or `vmap`) cannot be looked at: it must count from 0, and one that is out
of range touches nothing. An array of dtype bool is a mask with one entry for
each layer or head; an array of integers is a list of indices.

At "scores" and "pattern" some also work on a block of query rows, which is
all that `sinkjax.transforms.streaming` ever has: `edit.rows(value, layer,
start)` is what the edit makes of rows start, start + 1, ... and of the keys
from 0 on. Those that would have to know all of T and S refuse.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Layer, placed


def pytree_dataclass(cls: type) -> type:
  """A frozen dataclass that is a pytree, every field a leaf."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  return jax.tree_util.register_dataclass(cls, names, [])


def _chosen(which: Any, at: Any) -> Array:
  """Whether a mask or a list of indices chooses each index of `at`."""
  which = jnp.asarray(which)
  if which.dtype == bool:
    return which[at]
  # A comparison and not `in`: the layer is traced within the scan.
  at = jnp.asarray(at)[..., None]
  which = which.reshape(*[1] * (at.ndim - 1), -1)
  return jnp.any(at == which, axis=-1)


def _select(layers: Any, layer: Layer, edited: Array, value: Array) -> Array:
  if layers is None:  # no select: an edit of all layers costs nothing extra
    return edited
  return jnp.where(_chosen(layers, layer), edited, value)


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
class Scale:
  """`value * factor`; `factor=1` is the identity."""

  factor: Any
  layers: Any = None

  def placed(self, cfg: ModelConfig, length: int) -> "Scale":
    """The same with its layers checked against the model's."""
    layers = place_index("layer", self.layers, cfg.n_layers)
    return dataclasses.replace(self, layers=layers)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The scaled value where the layer is chosen."""
    edited = value * jnp.asarray(self.factor, value.dtype)
    return _select(self.layers, layer, edited, value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return _rows(self, self.factor, value, layer)


@pytree_dataclass
class Add:
  """`value + shift`, the shift broadcast; `shift=0` is the identity."""

  shift: Any
  layers: Any = None

  def placed(self, cfg: ModelConfig, length: int) -> "Add":
    """The same with its layers checked against the model's."""
    layers = place_index("layer", self.layers, cfg.n_layers)
    return dataclasses.replace(self, layers=layers)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The shifted value where the layer is chosen."""
    edited = value + jnp.asarray(self.shift, value.dtype)
    return _select(self.layers, layer, edited, value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return _rows(self, self.shift, value, layer)


@pytree_dataclass
class Replace:
  """A fixed value, broadcast to the site's shape."""

  value: Any
  layers: Any = None

  def placed(self, cfg: ModelConfig, length: int) -> "Replace":
    """The same with its layers checked against the model's."""
    layers = place_index("layer", self.layers, cfg.n_layers)
    return dataclasses.replace(self, layers=layers)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The fixed value where the layer is chosen."""
    new = jnp.broadcast_to(jnp.asarray(self.value, value.dtype), value.shape)
    return _select(self.layers, layer, new, value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return _rows(self, self.value, value, layer)


@pytree_dataclass
class Hold:
  """The value itself with derivative zero: a constant to what follows."""

  layers: Any = None

  def placed(self, cfg: ModelConfig, length: int) -> "Hold":
    """The same with its layers checked against the model's."""
    layers = place_index("layer", self.layers, cfg.n_layers)
    return dataclasses.replace(self, layers=layers)

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The value, held where the layer is chosen."""
    return _select(self.layers, layer, jax.lax.stop_gradient(value), value)

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """The same for a block of query rows."""
    return self(value, layer)


@pytree_dataclass
class Patch:
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

  def placed(self, cfg: ModelConfig, length: int) -> "Patch":
    """The same with its layers and positions checked against the sizes."""
    _check_layers_first("activations", self.activations, cfg.n_layers)
    return dataclasses.replace(
      self,
      positions=place_index("position", self.positions, length),
      layers=place_index("layer", self.layers, cfg.n_layers),
    )

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The other run's value where layer and position are chosen."""
    new = jnp.asarray(self.activations, value.dtype)[layer]
    if self.positions is not None:
      hit = _chosen(self.positions, jnp.arange(value.shape[1]))
      new = jnp.where(hit.reshape(1, -1, *[1] * (value.ndim - 2)), new, value)
    return _select(self.layers, layer, new, value)


@pytree_dataclass
class Knockout:
  """Hides one key position from all later queries, from a layer on.

  For the site "scores". The position still sees itself, so its own row stays
  a distribution and its own residual stream is what the other edits make it.

  Attributes:
    key: the hidden position.
    from_layer: the first layer in which it is hidden; L for none.
    heads: the heads in which it is hidden, indices or a bool mask [H], or
      `None` for all.
  """

  key: Any
  from_layer: Any = 0
  heads: Any = None

  def placed(self, cfg: ModelConfig, length: int) -> "Knockout":
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
    hidden = (s == self.key) & (t != s) & (layer >= self.from_layer)
    # A traced layer below 0 is out of range, and touches nothing.
    hidden = hidden & (jnp.asarray(self.from_layer) >= 0)
    hidden = hidden[None, None]
    if self.heads is not None:
      chosen = _chosen(self.heads, jnp.arange(scores.shape[1]))
      hidden = hidden & chosen[None, :, None, None]
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

  def placed(self, cfg: ModelConfig, length: int) -> "AblateHeads":
    """The same, its arrays checked to have the model's layers and heads."""
    heads, shape = jnp.asarray(self.heads), (cfg.n_layers, cfg.n_heads)
    if heads.dtype != bool or heads.shape != shape:
      raise ValueError(
        f"heads must be a bool mask [L, H] = {list(shape)}, got {heads.dtype} "
        f"{list(heads.shape)}"
      )
    if self.mean is not None:
      _check_layers_first("mean", self.mean, cfg.n_layers)
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


@pytree_dataclass
class Chain:
  """Edits of one site, applied in order."""

  edits: tuple

  def placed(self, cfg: ModelConfig, length: int) -> "Chain":
    """Every edit with its indices checked against the sizes."""
    return Chain(tuple(placed(edit, cfg, length) for edit in self.edits))

  def __call__(self, value: Array, layer: Layer) -> Array:
    """Every edit's result handed to the next."""
    for edit in self.edits:
      value = edit(value, layer)
    return value

  def rows(self, value: Array, layer: Layer, start: Any) -> Array:
    """Every edit's result for a block of query rows handed to the next.

    Raises:
      ValueError: for an edit without `rows`, naming it.
    """
    for edit in self.edits:
      value = rows_of(edit)(value, layer, start)
    return value


def place_index(
  name: str, index: Any, size: int, *, boundary: bool = False
) -> Any:
  """Concrete indices counted from the start; a mask or a tracer stays.

  Args:
    name: of what is counted, for the message.
    index: an integer, a list of them, a bool mask [size], or `None` for all.
    size: how many there are.
    boundary: the index is where a range starts, which may be its end, `size`.

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


def _check_layers_first(name: str, array: Any, n_layers: int) -> None:
  """An array with another number of layers would be clamped silently."""
  shape = jnp.shape(array)
  if not shape or shape[0] != n_layers:
    raise ValueError(
      f"{name} must have the model's {n_layers} layers on its first axis, got "
      f"shape {list(shape)}"
    )


def rows_of(edit: Any) -> Callable:
  """The edit's method for a block of query rows.

  Raises:
    ValueError: for an edit that has none, naming it.
  """
  rows = getattr(edit, "rows", None)
  if rows is None:
    name = getattr(edit, "__name__", type(edit).__name__)
    raise ValueError(
      f"the edit {name} cannot act on a block of query rows: it has no method "
      "rows(value, layer, start)"
    )
  return rows


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


def knockout(key: Any, *, from_layer: Any = 0, heads: Any = None) -> Knockout:
  """Hides key position `key` from every other token, from a layer on.

  For site "scores". `vmap` over `from_layer` gives the whole sweep. `heads`
  are indices or a bool mask [H], `None` for all.

  >>> import sinkjax
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


def chain(*edits: Any) -> Chain:
  """Several edits of one site as one, applied left to right.

  >>> chain(add(1.0), scale(3.0))(jax.numpy.zeros(1), 0).tolist()
  [3.0]
  """
  return Chain(edits)
