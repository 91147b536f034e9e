"""Half precision is too coarse to add up in: metrics widen what they get."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def wide(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """Half precision as float32; other inputs keep theirs.

  >>> wide(jnp.ones(2, jnp.bfloat16)).dtype.name
  'float32'
  """
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
