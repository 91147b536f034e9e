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

      x_t -> x_t - <x_t, r> w    for t in Q

  which with w = r projects r out; with another w every token moves as far, but
  elsewhere: the control. Directions of length 0 change nothing, so that one
  compiled program serves all conditions.

  Attributes:
    read: [L, B, D] r, of any length.
    write: [L, B, D] w, of any length.
    queries: [B, T] bool, the set Q of each text.
  """

  read: Any
  write: Any
  queries: Any

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
    moved = wide(value) - coefficient(value, read)[..., None] * write
    hit = jnp.asarray(self.queries)[..., None]
    return jnp.where(hit, moved.astype(value.dtype), value)
