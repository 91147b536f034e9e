"""The definition of the Jacobian by plain `jax.jacfwd`, one token at a time.

Slow, and with no assumption about the model: what the engine is tested with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sinkjax import sharding
from sinkjax.transforms.block_norms import block_norms
from sinkjax.transforms.residual import Point, residual_map


def reference_norms(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  points: tuple[Point, Point],
  *,
  norm: str,
  columns: Sequence[int],
  budget: int,
  positions: Array | None = None,
  finished: Callable[[list[int], np.ndarray], Any],
  progress: Callable[[int, int], Any],
) -> np.ndarray:
  """[T, T] norms in some columns, zero in the others.

  In pieces of directions that fit the budget; every layer acts on all tokens.

  Args:
    fn: as for `jacobian_norms`, as are all but the following.
    params: its parameters, in memory.
    tokens: one text.
    points: source and target.
    norm: one of `block_norms.NORMS`.
    columns: source tokens.
    budget: bytes beside the weights.
    positions: as for `forward`.
    finished: called with [source] and its column [T, 1].
    progress: called with (columns done, columns in all).
  """
  cfg, length = fn.cfg, tokens.shape[0]
  # Of one direction at one token, and 4 of them alive at the same time: the
  # residual stream, three arrays of the MLP, three of the heads' scores.
  numbers = cfg.d_model + 3 * cfg.mlp_width + 3 * cfg.n_heads * length
  column = 4 * jnp.dtype(cfg.dtype).itemsize * length * numbers
  most = max(1, budget // column)
  piece = max(
    n for n in range(1, cfg.d_model + 1) if cfg.d_model % n == 0 and n <= most
  )
  jacobian = jax.jit(reference_block(fn, tokens, *points, piece, positions))
  values = np.zeros((length, length))
  pieces = cfg.d_model // piece
  for done, source in enumerate(columns):
    parts = [
      jacobian(params, source, at * piece) for at in range(pieces)
    ]  # each [T, D, piece]
    jac_TxDxD = jnp.concatenate(parts, axis=-1)
    fn.taps.require_numbers(jac_TxDxD, "the derivatives")
    values[:, source] = sharding.to_host(block_norms(jac_TxDxD, norm))
    finished([source], values[:, [source]])
    progress(done + 1, len(columns))
  return values


def reference_block(
  fn: Callable,
  tokens: Int[Array, "T"],
  source: Point,
  target: Point,
  piece: int,
  positions: Array | None = None,
) -> Callable:
  """`f(params, token, start) -> [T, D, piece]` by plain `jax.jacfwd`.

  The derivative of the target at all tokens by `piece` coordinates of one
  source token, from coordinate `start` on.
  """
  length, width = tokens.shape[0], fn.cfg.d_model

  def block(params: Any, token: Array | int, start: Array | int) -> Array:
    y = residual_map(
      fn,
      params,
      tokens[None],
      source=source,
      target=target,
      positions=positions,
    )
    unit = jnp.eye(width, dtype=fn.cfg.dtype)
    basis = jax.lax.dynamic_slice_in_dim(unit, start, piece)

    def of_token(amount: Array) -> Array:
      shift = jnp.zeros((1, length, width), basis.dtype)
      return y(shift.at[0, token].set(amount @ basis))[0]

    return jax.jacfwd(of_token)(jnp.zeros(piece, basis.dtype))

  return block
