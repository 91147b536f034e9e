"""Edits of heads, keys and queries: `knockout`, `graded`, `sees_only` and
`ablate_heads`."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import wide
from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import (
  check_leading,
  chosen,
  chosen_heads,
  place_heads,
  place_index,
)
from sinkjax.transforms.edits import pytree_dataclass

SOFTMAXES = ("softmax", "softmax1")
"""Normalisers under which adding log g to a score multiplies its weight by g,
before the row is normalised."""


def _of_others(
  key: Any, queries: Int[Array, "#B T"], keys: Int[Array, "#B S"]
) -> Bool[Array, "#B 1 T S"]:
  """Where another token looks at a key; itself it sees in any case."""
  # Not its own row: where it is hidden, that row would have no key left.
  other = queries[:, :, None] != keys[:, None]
  return (chosen(key, keys)[:, None] & other)[:, None]


class OfKeys:
  """An edit of scores that knows which tokens queries and keys are."""

  at: Any

  def __call__(
    self, scores: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The scores with those on the keys changed."""
    return self.rows(scores, layer, 0)

  def rows(
    self, scores: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    queries, keys = (jnp.arange(size)[None] for size in scores.shape[-2:])
    return self.at(scores, layer, start + queries, keys)


@pytree_dataclass
class Knockout(OfKeys):
  """Hides key positions from all later queries, from a layer on.

  For the site "scores". A position still sees itself, so its own row stays a
  distribution and its own residual stream is what the other edits make it.

  Attributes:
    key: the hidden position, or several, indices or a bool mask [T].
    from_layer: the first layer in which it is hidden; L for none.
    heads: the heads in which it is hidden, indices or a bool mask [H] or
      [L, H], or `None` for all.
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
      heads=place_heads(self.heads, cfg),
    )

  def at(
    self, scores: Float[Array, "B H T S"], layer: Layer, queries: Any, keys: Any
  ) -> Float[Array, "B H T S"]:
    """The same where rows and columns are any tokens, [B, T] and [B, S]."""
    hidden = _of_others(self.key, queries, keys) & (layer >= self.from_layer)
    # A traced layer below 0 is out of range, and touches nothing.
    hidden = hidden & (jnp.asarray(self.from_layer) >= 0)
    if self.heads is not None:
      heads = chosen_heads(self.heads, layer, scores.shape[1])
      hidden = hidden & heads[None, :, None, None]
    return jnp.where(hidden, jnp.asarray(MASKED, scores.dtype), scores)


@pytree_dataclass
class Graded(OfKeys):
  """Multiplies the attention on keys, and normalises; see `graded`.

  Attributes:
    key: the position, or several, indices or a bool mask [T].
    by: g, a number of at least 0, or one of each head, [L, H].
    layers: as everywhere.
    heads: indices or a bool mask [H] or [L, H], or `None` for all.
  """

  key: Any
  by: Any
  layers: Any = None
  heads: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its indices checked against the sizes.

    Raises:
      ValueError: for an index out of range, or a model whose weights are no
        softmax of the scores.
    """
    if cfg.normalizer not in SOFTMAXES:
      raise ValueError(
        f"graded adds log g to scores, which is a factor g on weights only "
        f"under {' and '.join(SOFTMAXES)}; this model has {cfg.normalizer!r}"
      )
    shape = (cfg.n_layers, cfg.n_heads)
    if jnp.shape(self.by) not in ((), shape):
      raise ValueError(
        f"graded: by must be a number or [L, H] = {list(shape)}, got "
        f"{list(jnp.shape(self.by))}"
      )
    return dataclasses.replace(
      self,
      key=place_index("position", self.key, length),
      layers=place_index("layer", self.layers, cfg.n_layers),
      heads=place_heads(self.heads, cfg),
    )

  def at(
    self, scores: Float[Array, "B H T S"], layer: Layer, queries: Any, keys: Any
  ) -> Float[Array, "B H T S"]:
    """The same where rows and columns are any tokens, [B, T] and [B, S]."""
    touched = _of_others(self.key, queries, keys)
    if self.layers is not None:
      touched = touched & chosen(self.layers, layer)
    if self.heads is not None:
      heads = chosen_heads(self.heads, layer, scores.shape[1])
      touched = touched & heads[None, :, None, None]
    high = wide(scores)
    by = jnp.asarray(self.by, high.dtype)
    if by.ndim:
      by = by[layer][None, :, None, None]
    # Not the logarithm of 0, whose slope is no number even where not taken.
    shift = jnp.log(jnp.where(by > 0, by, 1))
    raised = jnp.where(by > 0, high + shift, MASKED).astype(scores.dtype)
    return jnp.where(touched, raised, scores)


@pytree_dataclass
class SeesOnly(OfKeys):
  """Lets some queries see one key and nothing else; see `sees_only`.

  Attributes:
    query: the position, or several, indices or a bool mask [T].
    back: how many positions before the query the key stands.
    layers: as everywhere.
  """

  query: Any
  back: Any = 0
  layers: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same with its positions and layers checked against the sizes."""
    return dataclasses.replace(
      self,
      query=place_index("position", self.query, length),
      layers=place_index("layer", self.layers, cfg.n_layers),
    )

  def at(
    self, scores: Float[Array, "B H T S"], layer: Layer, queries: Any, keys: Any
  ) -> Float[Array, "B H T S"]:
    """The same where rows and columns are any tokens, [B, T] and [B, S]."""
    only = jnp.maximum(queries - jnp.asarray(self.back), 0)
    other = keys[:, None] != only[:, :, None]
    hidden = (chosen(self.query, queries)[:, :, None] & other)[:, None]
    if self.layers is not None:
      hidden = hidden & chosen(self.layers, layer)
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
  `from_layer` hides nothing. `heads` are indices or a bool mask [H] or [L, H],
  `None` for all.

  >>> import jax, sinkjax
  >>> edit = sinkjax.knockout(0, from_layer=2)
  >>> edit(jax.numpy.zeros((1, 1, 2, 2)), 1)[0, 0].tolist()
  [[0.0, 0.0], [0.0, 0.0]]
  >>> bool(edit(jax.numpy.zeros((1, 1, 2, 2)), 2)[0, 0, 1, 0] < -1e29)
  True
  """
  return Knockout(key, from_layer, heads)


def graded(
  key: Any, by: Any, *, layers: Any = None, heads: Any = None
) -> Graded:
  """Makes later tokens attend to position `key` by g times as much.

  For site "scores", to which it adds log g, so that a weight a becomes

      a' = g a / ((g - 1) a + 1)

  and the others of its row a / ((g - 1) a_key + 1): g = 1 is the identity,
  g = 0 is `knockout`, and where g grows the whole row goes to the key. Source:
  arXiv 2505.11739, of the first token; our reading. A learned sink, or the 1 of
  softmax1, is one of the others. How a position attends to itself is left, so
  that its own row at g = 0 is what it is at g near 0.

  The derivative by g is right for g > 0; at 0, where a score is hidden, it
  is 0.

  Args:
    key: the position, or several, indices or a bool mask [T].
    by: g, at least 0, or one of each head, [L, H]; a leaf, so that `vmap`
      sweeps it.
    layers: which layers, `None` for all.
    heads: indices or a bool mask [H], or a bool mask [L, H]; `None` for all.

  Raises:
    ValueError: for a number below 0 or one that is not finite; where the model
      is called, as `Graded.placed`.

  >>> import jax
  >>> scores = jax.numpy.log(jax.numpy.array([[[[1.0, 9], [0.25, 0.75]]]]))
  >>> edited = graded(0, 9.0)(scores, 0)[0, 0, 1]
  >>> [f"{weight:.2f}" for weight in jax.nn.softmax(edited)]
  ['0.75', '0.25']
  """
  # A JAX array is not checked: it may be traced.
  if isinstance(by, (int, float)) and not (math.isfinite(by) and by >= 0):
    raise ValueError(f"graded: by must be a number of at least 0, got {by}")
  if isinstance(by, np.ndarray) and not (np.isfinite(by) & (by >= 0)).all():
    raise ValueError("graded: by must hold numbers of at least 0")
  return Graded(key, by, layers, heads)


def sees_only(query: Any, *, back: Any = 0, layers: Any = None) -> SeesOnly:
  """Lets the token at `query` see one key alone: by default itself.

  For site "scores". A token that sees nothing but itself in every layer is in
  the state of a text's first token: with rotary or no positions its residual
  stream is exactly that of a text which it alone makes up.

  Args:
    query: the position, or several, indices or a bool mask [T].
    back: how many positions before the query the one key stands that it sees;
      the first one where there are fewer.
    layers: which layers, `None` for all.

  >>> import jax
  >>> edited = sees_only(2)(jax.numpy.zeros((1, 1, 3, 3)), 0)
  >>> (edited[0, 0] > -1).tolist()
  [[True, True, True], [True, True, True], [False, False, True]]
  """
  return SeesOnly(query, back, layers)


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
