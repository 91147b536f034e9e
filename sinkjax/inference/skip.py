"""Edits that skip a head at single queries: where it rests on the sink.

`SkipResting` knows the pattern; `SkipForetold` has only the score with the
first key, as a kernel that is to save the others would.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.models.normalizers import MASKED
from sinkjax.taps import Layer
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class SkipResting:
  """Queries that rest read the first value alone. For the site "pattern".

  Where a row has more than `threshold` on the first key, its other weights
  are set to zero, and that on the first key to `weight`, or left as it is.
  Its own row, the first, has nothing else. With `p_0` kept,

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

  def __call__(
    self, pattern: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The pattern with resting rows cut."""
    return self.rows(pattern, layer, 0)

  def rows(
    self, pattern: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    first = pattern[..., :1]
    rests = first > self.threshold
    if self.chosen is not None:
      mine = jnp.asarray(self.chosen)[layer]
      rests = jax.lax.dynamic_slice_in_dim(mine, start, pattern.shape[2], 2)
      rests = rests[..., None]
    place = start + jnp.arange(pattern.shape[2])[None, None, :, None]
    rests = rests & (place > 0)
    weight = jnp.asarray(self.weight, pattern.dtype)
    left = jnp.where(jnp.isnan(weight), first, weight)
    keys = jnp.arange(pattern.shape[-1])[None, None, None]
    only = jnp.where(keys == 0, left, 0)
    return jnp.where(rests, only, pattern)


@pytree_dataclass
class SkipForetold:
  """As `SkipResting` of weight 1, foretold without the other scores.

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

  def __call__(
    self, scores: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The scores with all other keys hidden where the head should rest."""
    return self.rows(scores, layer, 0)

  def rows(
    self, scores: Float[Array, "B H T S"], layer: Layer, start: Any
  ) -> Float[Array, "B H T S"]:
    """The same for query rows from `start` on."""
    rests = self.rests(scores[..., 0], layer, start)[..., None]
    other = jnp.arange(scores.shape[-1])[None, None, None] > 0
    return jnp.where(rests & other, jnp.asarray(MASKED, scores.dtype), scores)

  def rests(
    self, first: Float[Array, "B H T"], layer: Layer, start: Any = 0
  ) -> Bool[Array, "B H T"]:
    """Which queries are skipped, from their scores with the first key."""
    t = start + jnp.arange(first.shape[-1])[None, None]
    level = jnp.asarray(self.level)[layer][None, :, None]
    odds = first - level - jnp.log(jnp.maximum(t, 1).astype(first.dtype))
    return (jax.nn.sigmoid(odds) > self.threshold) & (t > 0)
