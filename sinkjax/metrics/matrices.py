"""Decompositions of many matrices."""

from collections.abc import Callable

import jax
from jax import Array
from jaxtyping import Float


def each_matrix(
  function: Callable[[Array], Array], x: Float[Array, "... m n"]
) -> Array:
  """A decomposition of every matrix of an array, also on a CPU's devices.

  LAPACK cuts a batch into tasks and waits for them in a thread of the pool that
  does them. All devices of a CPU share that pool: where each of its threads
  waits in the program of another device, none is left for the tasks. So with a
  mesh in context a CPU takes matrices one by one.

  Args:
    function: of matrices [..., M, N] to [..., *rest].
    x: the matrices.
  """
  if jax.sharding.get_abstract_mesh().size <= 1:
    return function(x)

  def one_by_one(x: Array) -> Array:
    out = jax.lax.map(function, x.reshape(-1, *x.shape[-2:]))
    return out.reshape(*x.shape[:-2], *out.shape[1:])

  return jax.lax.platform_dependent(x, cpu=one_by_one, default=function)
