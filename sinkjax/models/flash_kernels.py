"""Pallas kernels of causal attention and of sums over its pattern.

A GPU's program takes a block of queries and loops over the keys that it sees;
Pallas lowers it through Triton, whose products of float32 keep all 24 bits,
and Mosaic GPU has none that do. A TPU's walks are axes of its grid, along which
what was gathered stays in fast memory; Mosaic lowers them. The blocks are those
of `models.flash_blocks`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array

from sinkjax.models import flash_blocks
from sinkjax.models.flash_blocks import Walk, first_key, last_row

ROW_SUMS = ("entropy", "largest", "lse")
"""What the first kernel knows of each query without weights of keys."""


def rows_kernel(
  walk: Walk,
  q: Array,
  k: Array,
  v: Array,
  window: Array,
  sinks: Array | None,
  valid: Array | None,
  weights: Array | None,
) -> dict[str, Array]:
  """Attention, the logarithm of each row's divisor, and the row's own sums.

      z_t = sum_s p_ts v_s,  p_ts = exp(s_ts - lse_t)
      lse_t = log(exp(sink_t) + sum_s exp(s_ts))
      entropy_t = - sum_s p_ts log p_ts      largest_t = max_s p_ts
      weighted_tm = sum_s p_ts w_ms

  in one walk. Of m_t the largest logit so far,
  u_t = sum_s exp(s_ts - m_t) (s_ts - m_t) is kept beside the exponentials'
  sum, and moves with m_t as they do: m_t -> m'_t takes u_t to exp(m_t - m'_t)
  (u_t + (m_t - m'_t) sum_s exp(s_ts - m_t)). The entropy, log(l_t) sum_s p_ts -
  u_t / l_t for l_t = exp(lse_t - m_t), is then a difference of small numbers,
  whatever the scores are. The softmax on line is that of Milakov and
  Gimelshein (arXiv 1805.02867), by blocks that of Dao et al. (arXiv
  2205.14135).

  Args:
    walk: its form; T is `count` blocks.
    q: [B H, T, K] queries.
    k: [B N, T, K] keys.
    v: [B N, W, T] values, with their tokens last.
    window: [1] how many keys a query sees, itself included.
    sinks: [B H, 1, T] logits that take weight and have no value.
    valid: [B, T, 1] 0 at padding, which sees and is seen by itself alone.
    weights: [B N, M, T] of keys, for "weighted".

  Returns:
    "z" [B H, W, T] in the dtype of `q`, each of `ROW_SUMS` [B H, 1, T] and
    "weighted" [B H, M, T] in float32.

  Cost: products of the causal half, B H T^2 (K + W + M) operations and as many
  additions; the memory of its inputs and outputs.
  """
  many, length, width = q.shape[0], q.shape[1], v.shape[1]

  def key(i: Array, j: Array, window: Any) -> Array:
    # A block that is not visited is not loaded: it is the one before or after.
    return jnp.clip(j, first_key(walk, i, window[0]), i)

  own = functools.partial(_own, walk)
  walked = functools.partial(_walked, walk, key)
  inputs = {"q": (q, own(q, 1)), "k": (k, walked(k, 1, walk.group))}
  inputs["v"] = v, walked(v, 2, walk.group)
  if sinks is not None:
    inputs["sinks"] = sinks, own(sinks, 2)
  if valid is not None:
    inputs["valid"] = valid, walked(valid, 1, walk.heads)
  sizes = {"z": (width, q.dtype), **dict.fromkeys(ROW_SUMS, (1, jnp.float32))}
  kept = [1, 1, 1, width]
  if weights is not None:
    inputs["weights"] = weights, walked(weights, 2, walk.group)
    sizes["weighted"] = weights.shape[1], jnp.float32
    kept.append(weights.shape[1])
  shapes = {
    name: jax.ShapeDtypeStruct((many, size, length), dtype)
    for name, (size, dtype) in sizes.items()
  }
  outputs = {name: (x, own(x, 2)) for name, x in shapes.items()}
  body = flash_blocks.rows_on_gpu
  if walk.device == "tpu":
    body = flash_blocks.rows_on_tpu
  scratch = [(size, walk.block) for size in kept]
  return _call(walk, body, many, window, inputs, outputs, scratch)


def squares_kernel(
  walk: Walk,
  q: Array,
  k: Array,
  lse: Array,
  window: Array,
  valid: Array | None,
  *,
  diagonals: bool,
) -> Array:
  """Sums over blocks of weights that share their keys, or their distance.

      columns_s = sum_t p_ts,  p_ts = exp(s_ts - lse_t)

  A second walk, over scores alone: the logarithm of each row's divisor is
  known. Blocks of the same keys, and for `diagonals` those at the same
  distance in blocks, lie on each other and add up entry by entry.

  Args:
    walk: its form; T is `count` blocks of C.
    q: [B H, T, K] queries.
    k: [B N, T, K] keys.
    lse: [B H, 1, T] of `rows_kernel`; infinite where a row has no weights.
    window: [1] how many keys a query sees, itself included.
    valid: [B, T, 1] as there.
    diagonals: whether blocks at the same distance are added up.

  Returns:
    [B H, 1, T] the columns, or [B H, T, C]: for each distance in blocks the sum
    of its blocks [C, C], keys first.

  Cost: the products of scores, B H T^2 K / 2 multiplications; the diagonals'
  squares have B H T C numbers.
  """
  many, length, block = q.shape[0], q.shape[1], walk.block

  def row(p: Array, i: Array, window: Any) -> Array:
    last = last_row(walk, p, window[0], diagonals)
    return jnp.clip(i, p, jnp.maximum(last, p))

  def key(p: Array, i: Array, window: Any) -> Array:
    return row(p, i, window) - p

  walked = functools.partial(_walked, walk)
  of_keys = functools.partial(_own, walk)
  if diagonals:
    of_keys = functools.partial(_walked, walk, key)
  inputs = {
    "q": (q, walked(row, q, 1)),
    "k": (k, of_keys(k, 1, walk.group)),
    "lse": (lse, walked(row, lse, 2)),
  }
  if valid is not None:
    inputs["valid"] = valid, of_keys(valid, 1, walk.heads)
  if diagonals:
    shape = (many, walk.count * block, block)
    place = (None, block, block), lambda h, p, *_: (h, p, 0)
  else:
    shape = many, 1, length
    place = (None, 1, block), lambda h, p, *_: (h, 0, p)
  out = jax.ShapeDtypeStruct(shape, jnp.float32)
  outputs = {"sums": (out, pl.BlockSpec(*place))}
  body = flash_blocks.squares_on_gpu
  if walk.device == "tpu":
    body = flash_blocks.squares_on_tpu
  body = functools.partial(body, diagonals=diagonals)
  found = _call(walk, body, many, window, inputs, outputs, [(block, block)])
  return found["sums"]


# Which part of an array a program gets, and the call.


def _own(walk: Walk, x: Any, axis: int, share: int = 1) -> pl.BlockSpec:
  """The program's own block of tokens, of an array that `share` heads have."""
  shape = [None, *x.shape[1:]]
  shape[axis] = walk.block

  def index(h: Array, i: Array, *_: Any) -> tuple:
    place = [jax.lax.div(h, np.int32(share)), 0, 0]
    place[axis] = i
    return tuple(place)

  return pl.BlockSpec(tuple(shape), index)


def _walked(
  walk: Walk, at: Callable, x: Any, axis: int, share: int = 1
) -> pl.BlockSpec:
  """Tokens that a program walks over: all, on a TPU the block `at` a step."""
  shape = [None, *x.shape[1:]]
  if walk.device == "tpu":
    shape[axis] = walk.block

  def index(h: Array, *step: Any) -> tuple:
    place = [jax.lax.div(h, np.int32(share)), 0, 0]
    if walk.device == "tpu":
      place[axis] = at(*step)
    return tuple(place)

  return pl.BlockSpec(tuple(shape), index)


def _call(
  walk: Walk,
  body: Callable,
  many: int,
  window: Array,
  inputs: Mapping[str, tuple[Array, pl.BlockSpec]],
  outputs: Mapping[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
  scratch: list[tuple[int, int]],
) -> dict[str, Array]:
  """The kernel of a device's kind, over heads and blocks."""
  arrays, in_specs = ({n: x[i] for n, x in inputs.items()} for i in (0, 1))
  shapes, out_specs = ({n: x[i] for n, x in outputs.items()} for i in (0, 1))
  kernel, grid = functools.partial(body, walk), (many, walk.count)
  if walk.device == "tpu":
    from jax.experimental.pallas import tpu

    how = {
      "grid_spec": tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(*grid, walk.count),
        in_specs=[in_specs],
        out_specs=out_specs,
        scratch_shapes=[tpu.VMEM(shape, jnp.float32) for shape in scratch],
      ),
      "compiler_params": tpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary")
      ),
    }
  else:
    from jax.experimental.pallas import triton

    how = {
      "grid": grid,
      "in_specs": [pl.BlockSpec((1,), lambda *_: (0,)), in_specs],
      "out_specs": out_specs,
      "compiler_params": triton.CompilerParams(num_warps=4, num_stages=1),
    }
  return pl.pallas_call(
    kernel, out_shape=shapes, interpret=walk.interpret, **how
  )(window, arrays)
