"""Long texts some tokens at a time, where tokens do not meet each other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.models.layerwise import Layers
from sinkjax.models.transformer import Columns, logits_of_columns
from sinkjax.taps import Layer

CHUNK = 1024
"""Tokens that the MLP or the unembedding sees at a time.

Products of that many rows run at the full rate, and the [T, F] and [T, V]
arrays of a long text never exist.
"""


def in_chunks(fn: Callable, x: Any) -> Any:
  """`fn` of [B, T, ...] leaves, `CHUNK` tokens at a time."""
  length = jax.tree.leaves(x)[0].shape[1]
  count, rest = divmod(length, CHUNK)
  # A loop of one turn would only copy.
  if not count or length == CHUNK:
    return fn(x)

  def split(x: Array) -> Array:
    parts = x[:, : count * CHUNK].reshape(
      x.shape[0], count, CHUNK, *x.shape[2:]
    )
    return jnp.moveaxis(parts, 1, 0)

  def join(parts: Array) -> Array:
    x = jnp.moveaxis(parts, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])

  done = jax.tree.map(join, jax.lax.map(fn, jax.tree.map(split, x)))
  if not rest:
    return done
  last = fn(jax.tree.map(lambda x: x[:, count * CHUNK :], x))
  return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), done, last)


def streamed_nll(
  cfg: ModelConfig,
  layers: Layers,
  x: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
) -> Float[Array, "B"]:
  """Mean negative log-likelihood, some logits at a time."""
  if x.shape[1] == 1:
    return jnp.full(x.shape[:1], jnp.nan)
  x, targets, first = x[:, :-1], tokens[:, 1:], 0
  wide = jnp.zeros(targets.shape, jnp.promote_types(x.dtype, jnp.float32))
  state = (wide - jnp.inf, wide, wide)
  for columns in layers.unembedding():
    state = _add_logits(state, x, targets, columns, first, cfg=cfg)
    first += columns.kernel.shape[1]
    # Dispatch is asynchronous: without this, pieces of the unembedding would
    # pile up in memory.
    jax.block_until_ready(state)
    del columns  # before the next is read
  top, total, picked = state
  return jnp.mean(top + jnp.log(total) - picked, axis=-1)


@functools.partial(jax.jit, static_argnames="cfg")
def _add_logits(
  state: tuple[Array, Array, Array],
  x: Float[Array, "B T D"],
  targets: Array,
  columns: Columns,
  first: Layer,
  *,
  cfg: ModelConfig,
) -> tuple[Array, Array, Array]:
  """The online log-sum-exp with some more columns of the logits."""

  def add(args: tuple) -> tuple[Array, Array, Array]:
    (top, total, picked), x, targets = args
    logits = logits_of_columns(cfg, x, columns).astype(top.dtype)
    new = jnp.maximum(top, jnp.max(logits, axis=-1))
    more = jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
    total = total * jnp.exp(top - new) + more
    at = targets - first
    here = (at >= 0) & (at < logits.shape[-1])
    # The index must lie in this piece even where the target does not; the value
    # is discarded there.
    at = jnp.clip(at, 0, logits.shape[-1] - 1)[..., None]
    value = jnp.take_along_axis(logits, at, axis=-1)[..., 0]
    return new, total, jnp.where(here, value, picked)

  return in_chunks(add, (state, x, targets))
