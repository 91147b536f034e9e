"""An edit that takes a direction out of some tokens, or moves them as far."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import divide, root, wide
from sinkjax.metrics.tags import coefficient
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import check_leading
from sinkjax.transforms.edits import pytree_dataclass


@pytree_dataclass
class TakeOut:
  """Tokens without their part along a direction.

  For sites of [B, T, D]. With r and w of length one,

      x_t -> x_t - (<x_t, r> - c) w    for t in Q

  which with w = r and c = 0 projects r out, and with c the mean of <x_t, r>
  takes out what tokens differ in along r and leaves what they have in common.
  With another w every token moves as far, but elsewhere: the control.
  Directions of length 0 change nothing where c = 0, so that one compiled
  program serves all conditions.

  Attributes:
    read: [L, B, D] r, of any length.
    write: [L, B, D] w, of any length.
    queries: [B, T] bool, the set Q of each text.
    level: [L, B] c, or a number.
  """

  read: Any
  write: Any
  queries: Any
  level: Any = 0.0

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, its arrays checked to have the model's layers and the text's
    tokens."""
    for name in ("read", "write"):
      check_leading(name, getattr(self, name), cfg.n_layers)
    if jnp.shape(self.queries)[-1] != length:
      raise ValueError(
        f"queries must have one entry for each of the {length} tokens, got "
        f"shape {jnp.shape(self.queries)}"
      )
    return dataclasses.replace(self)

  def __call__(
    self, value: Float[Array, "B T D"], layer: Layer
  ) -> Float[Array, "B T D"]:
    """The tokens moved."""
    read, write = (jnp.asarray(x)[layer] for x in (self.read, self.write))
    write = wide(write)
    length = root(jnp.sum(write * write, axis=-1, keepdims=True))
    write = divide(write, length)[:, None]
    level = jnp.asarray(self.level, write.dtype)
    level = level[layer][:, None, None] if level.ndim else level
    size = coefficient(value, read)[..., None] - level
    moved = wide(value) - size * write
    hit = jnp.asarray(self.queries)[..., None]
    return jnp.where(hit, moved.astype(value.dtype), value)
