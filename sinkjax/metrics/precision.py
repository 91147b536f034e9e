"""What metrics share: enough precision to add up in, and gradients at zero."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def wide(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """Half precision as float32; other inputs keep theirs.

  >>> wide(jnp.ones(2, jnp.bfloat16)).dtype.name
  'float32'
  """
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def summed(x: Array, axis: int | tuple[int, ...]) -> Array:
  """The sum over axes, added up in float32 at least."""
  return jnp.sum(x, axis=axis, dtype=jnp.promote_types(x.dtype, jnp.float32))


def root(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """The square root, with gradient 0 at 0 where that of `jnp.sqrt` is inf.

  >>> root(jnp.array([0.0, 4.0])).tolist()
  [0.0, 2.0]
  """
  # Both branches of `where` are differentiated: the one that is not taken must
  # not be infinite either, or its gradient times 0 is NaN.
  zero = x == 0
  return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def divide(x: Float[Array, "..."], y: Float[Array, "..."]) -> Array:
  """x / y, and 0 with gradient 0 where y is 0.

  >>> divide(jnp.array([3.0, 3.0]), jnp.array([2.0, 0.0])).tolist()
  [1.5, 0.0]
  """
  # The divisor is replaced too, for the same reason as in `root`.
  zero = y == 0
  return jnp.where(zero, 0, x / jnp.where(zero, 1, y))
