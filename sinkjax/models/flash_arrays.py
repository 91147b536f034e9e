"""The arrays that the kernels of accelerators take, in whole blocks.

Heads come before tokens, tokens fill the last block, and entries fill what a
device's products take.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCKS = {"gpu": (64,), "tpu": (512, 256, 128)}
"""Queries and keys of a block, the largest of which no eighth is padding.

A step of a TPU's grid costs a third of a microsecond, whatever it does, which
asks for large blocks. A GPU's program keeps its block in registers and shared
memory: 64 by 64 scores in float32, with queries and keys 256 wide, fit there.
"""

SQUARE = 256
"""Rows of a block at most whose weights are added up along diagonals: the
squares of all distances have T times as many numbers a head."""

LARGEST = 1 << 29
"""Bytes of these squares; of more, key heads come one after the other."""

KEY_WEIGHTS = 16
"""Weights of a key at most, and rows of the product with them: what devices
need at least."""


def _fitting(where: str, width: int) -> int:
  """A width that a device's products take: of Triton powers of two."""
  if where == "tpu":
    return width
  return max(16, 1 << (width - 1).bit_length())


def _block(where: str, length: int) -> int:
  sizes = [
    n for n in BLOCKS[where] if math.ceil(length / n) * n * 8 <= 9 * length
  ]
  return max(sizes, default=min(BLOCKS[where]))


def _walk(where: str, length: int, most: int, **form: Any) -> tuple[Any, int]:
  """(a kernel's walk, tokens that fill its last block)."""
  from sinkjax.models.flash_kernels import Walk

  block = min(_block(where, length), most)
  count = math.ceil(length / block)
  interpret = jax.default_backend() != where
  walk = Walk(block, count, device=where, interpret=interpret, **form)
  return walk, count * block - length


def _window(window: Any, length: int) -> Array:
  window = length if window is None else jnp.minimum(window, length)
  return jnp.asarray(window, jnp.int32).reshape(1)


def _filled(x: Array, more: int, width: int, value: float = 0) -> Array:
  """[B, H, T, K] with more tokens and entries."""
  wider = [(0, 0), (0, 0), (0, more), (0, width - x.shape[3])]
  return jnp.pad(x, wider, constant_values=value)


def rows(
  where: str,
  scale: float,
  scores: Callable | None,
  q: Array,
  k: Array,
  v: Array,
  *,
  sinks: Array | None,
  window: Any,
  valid: Array | None,
  of_keys: Array | None = None,
) -> dict[str, Array]:
  """The first kernel's results, [B, H, T] each, "z" [B, H, T, W].

  Of `of_keys`, [B, N, M, T], comes "weighted", [B, H, M, T].
  """
  from sinkjax.models.flash_kernels import rows_kernel

  (batch, heads, length, _), width = q.shape, v.shape[-1]
  group = heads // k.shape[1]
  form = {"heads": heads, "group": group, "scale": scale, "scores": scores}
  walk, more = _walk(where, length, max(BLOCKS[where]), **form)
  q, k, v = (_filled(x, more, _fitting(where, x.shape[3])) for x in (q, k, v))
  arrays = {"q": q, "k": k, "v": jnp.swapaxes(v, 2, 3)}
  if sinks is not None:
    sinks = jnp.broadcast_to(sinks, (batch, heads, length))[:, :, None]
    arrays["sinks"] = _filled(
      jnp.swapaxes(sinks.astype(jnp.float32), 2, 3), more, 1
    ).reshape(batch, heads, 1, -1)
  if valid is not None:
    arrays["valid"] = _filled(
      valid[:, None, :, None].astype(jnp.int32), more, 1
    )
  if of_keys is not None:
    wider = [(0, 0), (0, 0), (0, KEY_WEIGHTS - of_keys.shape[2]), (0, more)]
    arrays["weights"] = jnp.pad(of_keys, wider)

  def kernel(window: Array, arrays: dict[str, Array]) -> dict[str, Array]:
    flat = {n: x.reshape(-1, *x.shape[2:]) for n, x in arrays.items()}
    given = dict.fromkeys(("sinks", "valid", "weights")) | flat
    found = rows_kernel(walk, window=window, **given)
    return {n: x.reshape(-1, heads, *x.shape[1:]) for n, x in found.items()}

  found = _merged(kernel)(_window(window, length), arrays)
  found = {n: x[..., :length] for n, x in found.items()}
  z = jnp.swapaxes(found.pop("z")[:, :, :width], 2, 3)
  weighted = found.pop("weighted", None)
  found = {n: x[:, :, 0] for n, x in found.items()}
  if weighted is not None:
    found["weighted"] = weighted[:, :, : of_keys.shape[2]]
  return {"z": z, **found}


def squares(
  where: str,
  scale: float,
  scores: Callable | None,
  q: Array,
  k: Array,
  lse: Array,
  *,
  window: Any,
  valid: Array | None,
  diagonals: bool,
) -> Float[Array, "B H T"]:
  """Sums over columns or diagonals; `lse` [B, H, T]."""
  from sinkjax.models.flash_kernels import squares_kernel

  (batch, heads, length, _), kv_heads = q.shape, k.shape[1]
  most = SQUARE if diagonals else max(BLOCKS[where])
  form = {"scale": scale, "scores": scores, "group": heads // kv_heads}
  walk, more = _walk(where, length, most, heads=heads, **form)
  squares = batch * heads * (length + more) * walk.block
  apart = diagonals and squares * 4 > LARGEST
  if apart:
    walk = walk._replace(heads=walk.group)
  q, k = (_filled(x, more, _fitting(where, x.shape[3])) for x in (q, k))
  # Rows that fill the last block have no weight on anything.
  lse = _filled(lse[..., None].astype(jnp.float32), more, 1, jnp.inf)
  arrays = {"q": q, "k": k, "lse": jnp.swapaxes(lse, 2, 3)}
  rest = {}
  if valid is not None:
    rest["valid"] = _filled(valid[:, None, :, None].astype(jnp.int32), more, 1)

  def kernel(window: Array, arrays: dict[str, Array]) -> Array:
    flat = {n: x.reshape(-1, *x.shape[2:]) for n, x in arrays.items()}
    given = {"valid": None, **flat}
    sums = squares_kernel(walk, window=window, diagonals=diagonals, **given)
    return sums.reshape(-1, walk.heads, *sums.shape[1:])

  def summed(arrays: dict[str, Array]) -> Float[Array, "B H T"]:
    sums = _merged(kernel)(_window(window, length), {**arrays, **rest})
    if diagonals:
      shape = *sums.shape[:2], walk.count, walk.block, walk.block
      sums = _lined(sums.reshape(shape))
    return sums.reshape(*sums.shape[:2], -1)[..., :length]

  if not apart:
    return summed(arrays)
  split = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(batch, kv_heads, -1, *x.shape[2:]), 1, 0),
    arrays,
  )
  sums = jnp.moveaxis(jax.lax.map(summed, split), 0, 1)
  return sums.reshape(batch, heads, length)


def _lined(squares: Float[Array, "B H P C R"]) -> Float[Array, "B H P R"]:
  """Sums along the diagonals of the squares at each distance in blocks.

  Entry (c, r) of square p lies p C + r - c tokens back: those with r < c are
  of the tokens between this square and the one before.
  """
  size = squares.shape[-1]
  # Keys in reverse order, and each one entry later than the one before: then
  # the columns are the distances, C - 1 before p C first.
  x = jnp.pad(squares[..., ::-1, :], [(0, 0)] * 4 + [(0, size)])
  x = x.reshape(*x.shape[:3], -1)[..., :-size]
  x = x.reshape(*x.shape[:3], size, 2 * size - 1).sum(-2)
  before, own = x[..., : size - 1], x[..., size - 1 :]
  before = jnp.pad(before[:, :, 1:], [(0, 0), (0, 0), (0, 1), (1, 0)])
  return own + before


def _merged(kernel: Callable) -> Callable:
  """`kernel(window, arrays)`, for which an axis of `vmap` is one of its batch.

  A GPU's grid has no more than three axes.
  """
  fn = jax.custom_batching.custom_vmap(kernel)

  @fn.def_vmap
  def _(size: int, batched: Sequence, window: Array, arrays: dict) -> tuple:
    window_batched, arrays_batched = batched
    arrays = jax.tree.map(
      lambda x, is_batched: (
        x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
      ),
      arrays,
      arrays_batched,
    )
    if window_batched:
      out = jax.lax.map(lambda both: fn(*both), (window, arrays))
    else:
      flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays)
      out = _merged(kernel)(window, flat)
      out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out)
    return out, jax.tree.map(lambda _: True, out)

  return fn
