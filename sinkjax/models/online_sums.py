"""Sums over a causal pattern that is never written: its second walk.

`models.online` leaves the logarithm `lse` of what every row is divided by, with
which each weight is known by its own score,

    p_ts = exp(s_ts - lse_t)

so that a second walk over the scores alone gives every sum of weights exactly.
Blocks go by along the pattern's diagonals: those at one distance lie on each
other, and sums by distance add up block on block.
"""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Optional

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.models import flash_statistics
from sinkjax.models.online import online_attention
from sinkjax.models.online_blocks import (
  Form,
  Inputs,
  arranged,
  block_of,
  scores_of,
  seen_of,
  where_seen,
  whole,
)

SUMS = ("columns", "diagonals", "entropy", "rows", "written")
"""What the walk can gather, see `online_sums`; and `("cells", n)`."""


def online_sums(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  lse: Float[Array, "B T H"],
  norms: Float[Array, "B T N"] | None = None,
  window: int | Int[Array, ""] | None = None,
  mask: Bool[Array, "#B 1 T T"] | None = None,
  valid: Bool[Array, "B T"] | None = None,
  *,
  wanted: Collection[Any],
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> dict[str, Float[Array, "B H ..."]]:
  """Sums of the weights of causal attention, [B, H, T] each.

      columns_s   = sum_t p_ts              rows_t    = sum_s p_ts
      diagonals_d = sum_t p_t,t-d           written_t = sum_s p_ts norms_s
      entropy_t   = - sum_s p_ts log p_ts

  and "cells", for `("cells", n)`, [B, H, c, c] between cells of ceil(T / n)
  tokens,

      cells_ij = sum of p_ts over the queries of cell i and the keys of cell j

  Args:
    q: queries.
    k: keys.
    lse: of `online_attention` for the same queries, keys and masks.
    norms: of the values, for "written".
    window: as in `online_attention`.
    mask: as there.
    valid: as there.
    wanted: of `SUMS`, or one `("cells", n)`; what is not wanted costs nothing.
    scale: as there.
    scores: as there.
    weights: as there.

  On a GPU or TPU the sums over columns and diagonals come from a kernel where
  it serves (`models.flash_statistics`).

  Cost: the products of scores once more, which are half of those of a plain
  pass's attention; memory of two blocks of all heads.
  """
  rest = {"scale": scale, "scores": scores, "weights": weights}

  def walked(names: Collection[Any], *arrays: Any) -> dict[str, Array]:
    return _walked(*arrays, wanted=names, **rest)

  def squares(q: Array, k: Array, lse: Array, window: Any, valid: Any) -> dict:
    names = flash_statistics.OF_SQUARES & set(wanted)
    return walked(names, q, k, lse, None, window, None, valid)

  found = flash_statistics.square_sums(
    squares, q, k, lse, window, mask, valid, wanted=wanted, **rest
  )
  others = [name for name in wanted if name not in found]
  if others:
    found |= walked(others, q, k, lse, norms, window, mask, valid)
  return found


def attention_with_sums(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  v: Float[Array, "B T N W"],
  norms: Float[Array, "B T N"] | None = None,
  sinks: Float[Array, "#B H #T"] | None = None,
  window: int | Int[Array, ""] | None = None,
  mask: Bool[Array, "#B 1 T T"] | None = None,
  valid: Bool[Array, "B T"] | None = None,
  *,
  wanted: Collection[Any],
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T H W"], Array, dict[str, Float[Array, "B T H"]]]:
  """`online_attention`, and what an accelerator's kernel sums on the way.

  Args:
    q: queries.
    k: keys.
    v: values.
    norms: of the values, for "written".
    sinks: as in `online_attention`, and so the rest.
    window: as there.
    mask: as there.
    valid: as there.
    wanted: as in `online_sums`, which gives what is missing here.
    scale: as there.
    scores: as there.
    weights: as there.

  Returns:
    (z, lse, sums [B, T, H] of each row); on a CPU there are no sums.
  """
  rest = {"scale": scale, "scores": scores, "weights": weights}
  names = flash_statistics.OF_ROWS & set(wanted)

  def plain(q, k, v, norms, sinks, window, valid):
    z, lse = online_attention(q, k, v, sinks, window, None, valid, **rest)
    sums = _walked(q, k, lse, norms, window, None, valid, wanted=names, **rest)
    return z, lse, {n: jnp.swapaxes(x, 1, 2) for n, x in sums.items()}

  if names:
    found = flash_statistics.attention_statistics(
      plain, q, k, v, norms, sinks, window, mask, valid, wanted=names, **rest
    )
    if found is not None:
      return found
  return *online_attention(q, k, v, sinks, window, mask, valid, **rest), {}


def _walked(
  q: Array,
  k: Array,
  lse: Array,
  norms: Array | None,
  window: int | Array | None,
  mask: Array | None,
  valid: Array | None,
  *,
  wanted: Collection[Any],
  scale: float,
  scores: Callable[[Array], Array] | None,
  weights: Callable[[Array], Array] | None,
) -> dict[str, Array]:
  """`online_sums` in plain JAX."""
  batch, length, heads, _ = q.shape
  form, inputs, (q, k) = arranged(
    (q, k),
    window=window,
    mask=mask,
    valid=valid,
    scale=scale,
    scores=scores,
    weights=weights,
  )
  kv_heads, rows, group = k.shape[1], form.rows, form.group
  more = k.shape[2] - length
  # Rows that fill the last block have no weight on anything.
  level = jnp.pad(lse, [(0, 0), (0, more), (0, 0)], constant_values=jnp.inf)
  level = level.reshape(batch, -1, kv_heads, group)
  level = jnp.moveaxis(level, 2, 1).reshape(batch, kv_heads, -1)
  if norms is not None:
    norms = jnp.pad(norms, [(0, 0), (0, more), (0, 0)]).astype(level.dtype)
    norms = jnp.moveaxis(norms, 2, 1)

  many, dtype = length + more, level.dtype
  per_row = (batch, kv_heads, many * group)
  shapes = {
    "columns": (batch, kv_heads, group, many),
    "diagonals": (batch, kv_heads, group, many + rows - 1),
    **dict.fromkeys(("entropy", "rows", "written"), per_row),
  }
  cells = _Cells.of(wanted, length, rows)
  if cells is not None:
    shapes["cells"] = (batch, kv_heads, group, cells.room, cells.room)
  names = {name if isinstance(name, str) else name[0] for name in wanted}
  sums = {name: jnp.zeros(shapes[name], dtype) for name in names}
  visit = functools.partial(_visit, form, inputs, q, k, level, norms, cells)

  def diagonal(masked: bool, back: Array | int, sums: dict) -> dict:
    """The blocks that lie `back` blocks of keys behind their queries."""
    square = None
    if "diagonals" in sums:
      square = jnp.zeros((batch, kv_heads, rows * group, rows), dtype)

    def block(i: Array, carry: tuple) -> tuple:
      return visit(masked, i, i - back, *carry)

    start = sums, square
    sums, square = jax.lax.fori_loop(back, many // rows, block, start)
    if square is not None:
      lined = _by_distance(square.reshape(batch, kv_heads, rows, group, rows))
      sums["diagonals"] = _added(sums["diagonals"], lined, back * rows)
    return sums

  sums = diagonal(True, 0, sums)
  for masked, first, last in _distances(form, inputs, many // rows):
    step = functools.partial(diagonal, masked)
    sums = jax.lax.fori_loop(first, last, step, sums)
  if "diagonals" in sums:  # before these the keys would come after the query
    sums["diagonals"] = sums["diagonals"][..., rows - 1 :]
  if cells is not None:
    found = sums.pop("cells")[..., : cells.count, : cells.count]
    found = found.reshape(batch, heads, *found.shape[3:])
  by_head = {
    name: _by_head(x, name, (batch, heads, group))[..., :length]
    for name, x in sums.items()
  }
  return by_head if cells is None else {**by_head, "cells": found}


def weight_on(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  lse: Float[Array, "B T H"],
  window: int | Int[Array, ""] | None = None,
  *,
  key: int,
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> Float[Array, "B H T"]:
  """Every query's weight on one key, [B, H, T]; arguments as `online_sums`.

  Cost: T products.
  """
  batch, length, heads, width = q.shape
  q = q.reshape(batch, length, k.shape[2], -1, width)
  s = jnp.einsum(
    "btngk,bnk->bngt", q, k[:, key], preferred_element_type=lse.dtype
  )
  s = s.reshape(batch, heads, length) * scale
  s = s if scores is None else scores(s)
  if weights is None:
    p = jnp.exp(s - jnp.swapaxes(lse, 1, 2))
  else:
    p = weights(s)
  back = jnp.arange(length) - key
  seen = (back >= 0) & (True if window is None else back < window)
  return jnp.where(seen, p, 0)


class _Cells(NamedTuple):
  """How blocks of keys and queries lie on the cells of a coarse map.

  Attributes:
    size: tokens of a cell.
    count: cells.
    local: cells that a block can touch.
    room: cells, and room for the last block's.
  """

  size: int
  count: int
  local: int
  room: int

  @classmethod
  def of(
    cls, wanted: Collection[Any], length: int, rows: int
  ) -> Optional["_Cells"]:
    most = [name[1] for name in wanted if isinstance(name, tuple)]
    if not most:
      return None
    size = -(-length // most[0])
    count, local = -(-length // size), (rows - 1) // size + 2
    return cls(size, count, local, count + local)

  def first(self, block: Array, rows: int) -> Array:
    return block * rows // self.size

  def members(self, block: Array, rows: int, dtype: Any) -> Array:
    """[rows, local] 1 where a token of the block is in a cell."""
    at = (block * rows + jnp.arange(rows)) // self.size
    cells = self.first(block, rows) + jnp.arange(self.local)
    return (at[:, None] == cells[None]).astype(dtype)


def _visit(
  form: Form,
  inputs: Inputs,
  q: Array,
  k: Array,
  level: Array,
  norms: Array | None,
  cells: _Cells | None,
  masked: bool,
  i: Array,
  j: Array,
  sums: dict[str, Array],
  square: Array | None,
) -> tuple[dict[str, Array], Array | None]:
  """One block's weights, added to everything that is gathered."""
  rows, group = form.rows, form.group
  level_block = block_of(level, i, rows * group)[..., None]
  s = scores_of(form, block_of(q, i, rows * group), block_of(k, j, rows))
  if form.weights is None:
    logs = s - level_block
    p = jnp.exp(logs)
  else:
    p = jnp.where(jnp.isfinite(level_block), form.weights(s), 0)
  if masked:
    seen = seen_of(form, inputs, i * rows, rows, j)
    p = where_seen(seen, p, 0.0, group)
  p = whole(p)
  if form.weights is not None:
    logs = jnp.log(jnp.where(p > 0, p, 1))
  sums, at = dict(sums), i * rows * group

  def add(name: str, more: Array, at: Array) -> None:
    sums[name] = _added(sums[name], more, at)

  if "columns" in sums:
    by_row = p.reshape(*p.shape[:2], rows, group, rows)
    add("columns", by_row.sum(2), j * rows)
  if "rows" in sums:
    add("rows", p.sum(-1), at)
  if "entropy" in sums:
    add("entropy", -jnp.where(p > 0, p * logs, 0).sum(-1), at)
  if "written" in sums:
    share = p * block_of(norms, j, rows)[:, :, None]
    add("written", share.sum(-1), at)
  if cells is not None:
    of_keys = jnp.einsum(
      "bnrc,cm->bnrm", p, cells.members(j, rows, p.dtype)
    ).reshape(*p.shape[:2], rows, group, -1)
    more = jnp.einsum(
      "bnrgm,rl->bnglm", of_keys, cells.members(i, rows, p.dtype)
    )
    corner = (0, 0, 0, cells.first(i, rows), cells.first(j, rows))
    total = sums["cells"]
    more += jax.lax.dynamic_slice(total, corner, more.shape)
    sums["cells"] = jax.lax.dynamic_update_slice(total, more, corner)
  return sums, None if square is None else square + p


def _distances(
  form: Form, inputs: Inputs, count: int
) -> list[tuple[bool, Array | int, Array | int]]:
  """(whether keys are hidden, first, last + 1) of the distances in blocks."""
  if inputs.mask is not None or inputs.valid is not None:
    return [(True, 1, count)]
  window = form.window if inputs.window is None else inputs.window
  if window is None:
    return [(False, 1, count)]
  # At b blocks back a row sees keys (b - 1) R + 1 to (b + 1) R - 1 behind it.
  whole = jnp.clip(window // form.rows, 1, count)
  last = jnp.clip((window + form.rows - 2) // form.rows + 1, whole, count)
  return [(False, 1, whole), (True, whole, last)]


def _by_distance(square: Float[Array, "B N R G C"]) -> Array:
  """[B, N, G, R + C - 1] sums along the diagonals, C - 1 keys ahead first."""
  x = jnp.moveaxis(square, 2, 3)[..., ::-1]
  rows, keys = x.shape[-2:]
  # Keys in reverse order, and each row one entry later than the one before:
  # then the columns are the distances.
  x = jnp.pad(x, [(0, 0)] * 4 + [(0, rows)])
  x = x.reshape(*x.shape[:3], -1)[..., :-rows]
  return x.reshape(*x.shape[:3], rows, keys + rows - 1).sum(-2)


def _added(total: Array, more: Array, at: Array | int) -> Array:
  """`total` with `more` added from `at` on, on the last axis."""
  last = total.ndim - 1
  old = jax.lax.dynamic_slice_in_dim(total, at, more.shape[-1], last)
  return jax.lax.dynamic_update_slice_in_dim(total, old + more, at, last)


def _by_head(x: Array, name: str, sizes: tuple[int, int, int]) -> Array:
  """[B, H, T] of sums by column, [B, N, G, T], or by row, [B, N, T G]."""
  batch, heads, group = sizes
  if name in ("columns", "diagonals"):
    return x.reshape(batch, heads, -1)
  x = x.reshape(batch, heads // group, -1, group)
  return jnp.swapaxes(x, 2, 3).reshape(batch, heads, -1)
