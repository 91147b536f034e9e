"""The two products of attention, arranged for what the device is fast at."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.models import attention_form


def products(
  q: Float[Array, "B T N G K"], k: Float[Array, "B S N K"]
) -> Float[Array, "B N G T S"]:
  """Of every query of a group with its head's keys."""
  batch, length, heads, group, _ = q.shape
  if length >= attention_form.LONG:
    return jnp.einsum("bngtk,bsnk->bngts", jnp.moveaxis(q, 1, 3), k)
  if not _one_by_one(batch, length, heads):
    return jnp.einsum("btngk,bsnk->bngts", q, k)
  each = [q[b, 0, n] @ k[b, :, n].T for b in range(batch) for n in range(heads)]
  return jnp.stack(each).reshape(batch, heads, group, 1, -1)


def mixture(
  pattern: Float[Array, "B N G T S"], v: Float[Array, "B S N W"]
) -> Float[Array, "B T N G W"]:
  """What every query of a group reads of its head's values."""
  batch, heads, group, length, _ = pattern.shape
  if length >= attention_form.LONG:
    z = jnp.einsum(
      "bngts,bsnk->bngtk", jax.lax.optimization_barrier(pattern), v
    )
    return jnp.moveaxis(z, 3, 1)
  if not _one_by_one(batch, length, heads):
    return jnp.einsum("bngts,bsnk->btngk", pattern, v)
  each = [
    pattern[b, n, :, 0] @ v[b, :, n] for b in range(batch) for n in range(heads)
  ]
  return jnp.stack(each).reshape(batch, 1, heads, group, -1)


def _one_by_one(batch: int, length: int, heads: int) -> bool:
  """Whether heads are worked through one by one, each a product of matrices.

  For a single query XLA's batched product on a CPU is four times as slow.
  """
  # Each product is compiled: beyond 64 of them the program gets too large.
  few = length == 1 and batch * heads <= 64
  return few and jax.default_backend() == "cpu"
