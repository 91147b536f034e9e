"""One layer's carriers of the exact map: rows of the target pulled back to what
each carrier writes, and their products with the tangents that enter.

Rows are [N, T, D] with N = R D: of R target tokens, all D coordinates, by the
residual stream at every token. Tangents are as in `layer_jacobian`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.layerwise import Params, apply_final_norm
from sinkjax.taps import MLP_SITES, Layer, Tapper, Taps
from sinkjax.transforms.layer_jacobian import fold_mlp
from sinkjax.transforms.layer_steps import PRE, LayerSteps, columns_of

Edits = Mapping[str, Any]

CARRIERS = ("residual", "mlp", "values", "scores", "mlp_of_head")
"""The parts of every layer that together are the map; the last three have one
entry a head."""

WHOLES = ("head", "attention", "mlp_of_attention")
"""Sums of them: all of a head, one entry each; and over heads, of values and
scores, and of what the MLP makes of both."""

OF_HEADS = ("values", "scores", "mlp_of_head", "head")
"""Those with one entry a head."""


class Ways(NamedTuple):
  """Rows of the target by what each carrier writes at one layer, N = R D.

  Attributes:
    residual: [N, T, D] by resid_pre, past attention and MLP.
    mlp: [N, T, D] by resid_pre through the MLP, past the attention.
    heads: [N, T, H, W] by what the heads mix, past the MLP.
    mlp_of_heads: [N, T, H, W] by what the heads mix, through the MLP.
  """

  residual: Float[Array, "N T D"]
  mlp: Float[Array, "N T D"]
  heads: Float[Array, "N T H W"]
  mlp_of_heads: Float[Array, "N T H W"]


@functools.partial(jax.jit, static_argnames="cfg")
def pull_final(
  cfg: ModelConfig, params: Params, x: Array, edits: Edits, rows: Array
) -> Array:
  """Rows by what leaves the last layer, through the final norm."""

  def fn(x: Array) -> Array:
    tap = Tapper(Taps(edits), cfg.n_layers - 1)
    return tap("final", apply_final_norm(cfg, params, x))

  return _rows_of(fn, x)(rows)[0]


def _rows_of(fn: Callable, *primals: Array) -> Callable:
  """`f(rows [N, T, ...])` -> rows by each input of fn, [N, T, ...] each."""
  _, pull = jax.vjp(fn, *primals)
  back = jax.vmap(lambda row: pull(row[None]))
  return lambda rows: tuple(x[:, 0] for x in back(rows))


@functools.partial(jax.jit, static_argnames="cfg")
def pull_layer(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  layer: Layer,
  ctx: Context,
  edits: Edits,
  rows: Float[Array, "N T D"],
) -> tuple[Float[Array, "N T D"], Ways]:
  """Rows by what enters a layer, and by what its carriers write."""
  with jax.default_matmul_precision(cfg.precision):
    run = LayerSteps(cfg, params, layer, ctx, edits)
    pre, back_in = _primal_and_rows(run.enter, x)
    qkv = run.qkv(pre)
    z = run.outputs(None, *qkv)
    raw, back_write = _primal_and_rows(lambda z: run.project_out(pre, z), z)
    mid, back_join = _primal_and_rows(run.join, pre, raw)
    read = pre if cfg.parallel_residual else mid
    finish = functools.partial(run.finish, pre)
    by_mid, by_out = _rows_of(finish, mid, run.mlp_output(read))(rows)
    by_read = _rows_of_mlp(run, read, by_out)
    residual, by_raw = back_join(by_mid)
    (heads,) = back_write(by_raw)
    if cfg.parallel_residual:
      mlp, mlp_of_heads = by_read, jnp.zeros_like(heads)
    else:
      mlp, by_raw = back_join(by_read)
      (mlp_of_heads,) = back_write(by_raw)
    through = _rows_of(lambda pre: run.outputs(None, *run.qkv(pre)), pre)
    (by_pre,) = through(heads + mlp_of_heads)
    (entering,) = back_in(residual + mlp + by_pre)
    return entering, Ways(residual, mlp, heads, mlp_of_heads)


def _primal_and_rows(fn: Callable, *primals: Array) -> tuple[Array, Callable]:
  return fn(*primals), _rows_of(fn, *primals)


def _rows_of_mlp(run: LayerSteps, read: Array, rows: Array) -> Array:
  """Rows by what the MLP reads."""
  # An edit inside may mix tokens, which one matrix a token cannot say.
  if set(MLP_SITES) & set(run.edits):
    return _rows_of(run.mlp_output, read)(rows)[0]
  return jnp.einsum("ntd,tde->nte", rows, fold_mlp(run, read))


class Parts(NamedTuple):
  """Of one layer and block, sums over coordinates and directions.

  Attributes:
    squares: {carrier: [(H,) R, S]} of squares.
    products: {carrier: [(H,) R, S]} of products with the map.
    gap: [R, S] of squares of what the sum of the carriers leaves.
    whole: [R, S] of squares of the map.
  """

  squares: dict[str, Array]
  products: dict[str, Array]
  gap: Array
  whole: Array


@functools.partial(jax.jit, static_argnames=("cfg", "first"))
def carry(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  layer: Layer,
  ctx: Context,
  edits: Edits,
  ways: Ways,
  d_x: Float[Array, "W D S M"],
  whole: Float[Array, "R D S M"],
  *,
  first: int,
) -> Parts:
  """What every carrier of a layer contributes to a block of the map."""
  with jax.default_matmul_precision(cfg.precision):
    run = LayerSteps(cfg, params, layer, ctx, edits)
    d_x = jnp.pad(d_x, [(first, 0)] + [(0, 0)] * 3)
    d_pre, by_values, by_scores = _written(run, x, d_x)
    ways = jax.tree.map(lambda rows: rows[:, first:], ways)

    def carried(rows: Array, columns: Array) -> Array:
      """[N, W, K] by [T, K, X] -> [R, D, S, M]."""
      kept = columns[first:].reshape(-1, columns.shape[-1])
      return (rows.reshape(len(rows), -1) @ kept).reshape(whole.shape)

    def summed(part: Array) -> tuple[Array, Array]:
      axes = (1, 3)
      return jnp.sum(part * part, axes), jnp.sum(part * whole, axes)

    def head(sums: tuple[Array, Array], of: tuple[Array, ...]) -> tuple:
      direct, through, d_v, d_s = of
      values, scores = carried(direct, d_v), carried(direct, d_s)
      mlp = carried(through, d_v + d_s)
      sums = sums[0] + values + scores, sums[1] + mlp
      parts = values, scores, mlp, values + scores + mlp
      return sums, tuple(map(summed, parts))

    residual = carried(ways.residual, d_pre)
    mlp = carried(ways.mlp, d_pre)
    zero = jnp.zeros_like(whole)
    (attention, of_mlp), of_heads = jax.lax.scan(
      head,
      (zero, zero),
      (
        jnp.moveaxis(ways.heads, 2, 0),
        jnp.moveaxis(ways.mlp_of_heads, 2, 0),
        jnp.moveaxis(by_values, 1, 0),
        jnp.moveaxis(by_scores, 1, 0),
      ),
    )
    found = [summed(residual), summed(mlp), *of_heads]
    found += [summed(attention), summed(of_mlp)]
    squares, products = (
      dict(zip(CARRIERS + WHOLES, x, strict=True))
      for x in zip(*found, strict=True)
    )
    gap = residual + mlp + attention + of_mlp - whole
    return Parts(squares, products, summed(gap)[0], summed(whole)[0])


def _written(
  run: LayerSteps, x: Array, d_x: Float[Array, "T D S M"]
) -> tuple[Array, Array, Array]:
  """Tangents [T, D, X] of resid_pre and [T, H, W, X] of what heads mix.

  By their values with the pattern held, and by their scores with the values
  held: one token's values and scores move what later ones mix.
  """
  length, width = d_x.shape[:2]
  columns = d_x.reshape(1, length, width, -1)
  pre, push = jax.linearize(run.enter, x)
  d_pre = columns_of(push)(columns) if PRE in run.edits else columns
  (q, k, v), push = jax.linearize(run.qkv, pre)
  d_q, d_k, d_v = columns_of(push)(d_pre)
  _, push = jax.linearize(lambda v: run.outputs(None, q, k, v), v)
  by_values = columns_of(push)(d_v)
  _, push = jax.linearize(lambda q, k: run.outputs(None, q, k, v), q, k)
  by_scores = columns_of(push)(d_q, d_k)
  return d_pre[0], by_values[0], by_scores[0]
