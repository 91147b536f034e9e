"""Edits that skip a head at the queries where it attends to the sink.

A head is dormant at a query that puts nearly all of its attention on the first
token. `SkipDormant` reads that from the attention pattern; `SkipPredicted`
predicts it from the score of the first key alone, as a kernel must that is to
save the other scores.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.config import ModelConfig
from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import check_leading
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class SkipDormant:
  """Dormant queries read the first value alone. For the site "pattern".

  Where a row has more than `threshold` on the first key, its other weights
  are set to zero, and that on the first key to `weight`, or left as it is. The
  first row, which has nothing else, is never changed. With `p_0` kept,

      ||dz|| <= (1 - p_0) max_j>0 ||v_j||

  and with weight 1, `||dz|| <= (1 - p_0) max_j>0 ||v_j - v_0||`.

  Attributes:
    threshold: 1 or more is the identity.
    weight: on the first key afterwards: NaN for what it was, 1 for the sink's
      value alone, 0 for nothing.
    chosen: [L, B, H, T] bool, used in place of the threshold: rows that are
      skipped; or `None`.
  """

  threshold: Any
  weight: Any = float("nan")
  chosen: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, `chosen` checked to be a mask of the model's layers."""
    if self.chosen is not None:
      check_leading("chosen", self.chosen, cfg.n_layers)
      if jnp.asarray(self.chosen).dtype != bool:
        raise ValueError("chosen must be a bool mask [L, B, H, T]")
    return self

  def __call__(
    self, pattern: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The pattern with dormant rows cut to the first key."""
    return self.rows(pattern, layer, 0)

  def rows(
    self, pattern: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    first = pattern[..., :1]
    dormant = first > self.threshold
    if self.chosen is not None:
      mine = jnp.asarray(self.chosen)[layer]
      dormant = jax.lax.dynamic_slice_in_dim(mine, start, pattern.shape[2], 2)
      dormant = dormant[..., None]
    place = start + jnp.arange(pattern.shape[2])[None, None, :, None]
    dormant = dormant & (place > 0)
    weight = jnp.asarray(self.weight, pattern.dtype)
    # NaN, not None: a leaf that is traced can switch without recompiling.
    left = jnp.where(jnp.isnan(weight), first, weight)
    keys = jnp.arange(pattern.shape[-1])[None, None, None]
    only = jnp.where(keys == 0, left, 0)
    return jnp.where(dormant, only, pattern)


@pytree_dataclass
class SkipPredicted:
  """As `SkipDormant` of weight 1, predicted without the other scores.

  For the site "scores". A head's other scores are taken to sum to what they
  did on other texts, at the same number of keys:

      p_0 is about sigmoid(s_0 - c_h - log t),
      c_h = mean of (logsumexp_{1 <= j <= t} s_j - log t)

  Attributes:
    threshold: 1 or more is the identity.
    level: [L, H] c_h.
  """

  threshold: Any
  level: Any

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, `level` checked to have the model's layers."""
    check_leading("level", self.level, cfg.n_layers)
    return self

  def __call__(
    self, scores: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The scores, all other keys masked where the head is predicted dormant."""
    return self.rows(scores, layer, 0)

  def rows(
    self, scores: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    dormant = self.dormant(scores[..., 0], layer, start)[..., None]
    other = jnp.arange(scores.shape[-1])[None, None, None] > 0
    masked = jnp.asarray(MASKED, scores.dtype)
    return jnp.where(dormant & other, masked, scores)

  def dormant(
    self, first: Float[Array, "B H T"], layer: Layer, start: Any = 0
  ) -> Bool[Array, "B H T"]:
    """Which queries are skipped, from their scores with the first key."""
    t = start + jnp.arange(first.shape[-1])[None, None]
    level = jnp.asarray(self.level)[layer][None, :, None]
    # Position 0 sees no other key; it is excluded below, its log only must be
    # finite.
    odds = first - level - jnp.log(jnp.maximum(t, 1).astype(first.dtype))
    return (jax.nn.sigmoid(odds) > self.threshold) & (t > 0)
