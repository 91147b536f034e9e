"""Norms of the Jacobian's blocks, from whole blocks or piece by piece."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sinkjax import sharding
from sinkjax.transforms.jacobian_plan import Block

NORMS = ("fro", "spectral", "max")


@jax.jit
def _spectral(jac: Float[Array, "T D M"]) -> Float[Array, "T"]:
  return jax.lax.map(lambda j: jnp.linalg.svd(j, compute_uv=False)[0], jac)


def block_norms(jac: Float[Array, "T D M"], norm: str) -> Float[Array, "T"]:
  """A norm of each [D, M] block."""
  if norm == "fro":
    return jnp.sqrt(jnp.sum(jac * jac, axis=(1, 2)))
  if norm == "max":
    return jnp.max(jnp.abs(jac), axis=(1, 2))
  return _spectral(jac)


class NormMap:
  """Reduces pieces of tangents to a map of norms, whatever their order.

  A spectral norm needs all directions of a source at once. Where a piece has
  only some of them, J J^T is summed, and its largest eigenvalue is taken when
  the last piece is there.

  Args:
    norm: one of `NORMS`.
    length: T.
    many: directions of each source token.
  """

  def __init__(self, norm: str, length: int, many: int):
    self.norm, self.many = norm, many
    # In float64, so that the sum of many pieces hardly depends on how they were
    # cut.
    self._values = np.zeros((length, length))  # squares but for "max"
    self._gram: dict[int, Array] = {}

  def add(self, block: Block, tangents: Float[Array, "W D S M"]) -> None:
    """Takes the tangents of a block's sources."""
    if self.norm == "spectral":
      self._add_gram(block, tangents)
      return
    piece = sharding.to_host(_REDUCERS[self.norm](tangents), np.float64)
    for at, source in enumerate(block.sources[: block.real]):
      column = self._values[block.first :, source]
      if self.norm == "fro":
        column += piece[:, at]
      else:
        np.maximum(column, piece[:, at], out=column)

  def _add_gram(self, block: Block, tangents: Float[Array, "W D S M"]) -> None:
    last = block.start + tangents.shape[-1] == self.many
    for at, source in enumerate(block.sources[: block.real]):
      gram = _gram(tangents[source - block.first :, :, at])
      if source in self._gram:
        gram = gram + self._gram.pop(source)
      if last:
        self._values[source:, source] = sharding.to_host(_tops(gram))
      else:
        self._gram[source] = gram

  def values(self, rows: list[int], columns: list[int]) -> np.ndarray:
    """[R, C] norms of what was added."""
    values = self._values[np.ix_(rows, columns)]
    return values if self.norm == "max" else np.sqrt(values)


@jax.jit
def _gram(tangents: Float[Array, "T D M"]) -> Float[Array, "T D D"]:
  return jnp.einsum("tdm,tem->tde", tangents, tangents)


@jax.jit
def _tops(gram: Float[Array, "T D D"]) -> Float[Array, "T"]:
  """The largest eigenvalue of each; rounding may make that of 0 negative."""
  top = jax.lax.map(lambda g: jnp.linalg.eigvalsh(g)[-1], gram)
  return jnp.maximum(top, 0)


_REDUCERS = {
  "fro": jax.jit(lambda x: jnp.sum(x * x, axis=(1, 3))),
  "max": jax.jit(lambda x: jnp.max(jnp.abs(x), axis=(1, 3))),
}
