"""How one layer maps tangents: folded where that saves work, else as it is.

The exact Jacobian pushes thousands of tangents through every layer. A token's
output depends on what enters at that token, and on the other tokens only
through what its heads mix; the rest of the layer acts on each token alone. So
the derivative is two matrices a token around a mixing of keys and values,

    d y_t = O_t [d x_t, d z_t],   d z_t = mix over s of K_s d x_s

and `fold_layer` forms O and K once for every tangent: 2 D^2 + 2 N K D products
a tangent instead of the layer's own, of which the MLP alone is 3 D F.
`push_directly` is the layer's own linearisation and assumes nothing.

Every derivative comes from `jax.vjp` and `jax.linearize` of the block's own
methods with the edits in place. What the folding assumes of an edit (that it
acts on tokens and heads alone where it stands between token-local steps) is
not trusted: `fold_layer` compares with the layer's own derivative in a random
direction and says how far off it is.

Layout: tangents are [W, D, X], W the last tokens of the sequence, X tangents.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.layerwise import Params
from sinkjax.taps import MLP_SITES, Layer
from sinkjax.transforms.layer_steps import (
  MID,
  PRE,
  WHOLE,
  LayerSteps,
  Segment,
  columns_of,
)


class Fold(NamedTuple):
  """One segment's derivative. Without attention in it only `out` is there.

  Attributes:
    out: [T, D, D + H W] of the target by what enters the same token and by
      what the heads mix; [T, D, D] without attention.
    keys: [T, N K + N W, D] of keys, then values, by what enters.
    queries: [N, G, T, K] that multiply a key's tangent.
    by_score: [N, G, T, W, S] of z by its scores.
    by_value: [N, G, T, S] of z by the values.
    error: how far this is from the segment's derivative, relative, at the
      token where it is worst.
  """

  out: Float[Array, "T D M"]
  keys: Float[Array, "T C D"] | None
  queries: Float[Array, "N G T K"] | None
  by_score: Float[Array, "N G T W S"] | None
  by_value: Float[Array, "N G T S"] | None
  error: Float[Array, ""]


def _kernel(linear: Callable, shape: tuple[int, ...], dtype: Any) -> Any:
  """A linear map's outputs for every unit input: [1, 1, ..., M] each."""
  _, push = jax.linearize(linear, jnp.zeros((1, 1, *shape), dtype))
  many = math.prod(shape)
  units = jnp.eye(many, dtype=dtype).reshape(1, 1, *shape, many)
  return columns_of(push)(units)


def _everywhere(columns: Array, like: Array) -> Array:
  """[*like.shape, M], the same columns at every token."""
  return jnp.broadcast_to(columns, (*like.shape, columns.shape[-1]))


def _product(a: Array, b: Array) -> Array:
  return jnp.einsum("tij,tjk->tik", a, b)


def _each_token(
  fn: Callable, matrices: list[Array], first: int, *operands: Array
) -> Array:
  """`fn(*matrices[first + i], *operands[i])` for every i, stacked.

  Batched, or a loop where batched products and copies of slices are slow.
  """
  if jax.default_backend() != "cpu":
    return jax.vmap(fn)(*(m[first:] for m in matrices), *operands)

  def one(inputs: tuple) -> Array:
    at, *mine = inputs
    taken = (
      jax.lax.dynamic_index_in_dim(m, first + at, 0, keepdims=False)
      for m in matrices
    )
    return fn(*taken, *mine)

  return jax.lax.map(one, (jnp.arange(operands[0].shape[0]), *operands))


@jax.jit
def token_errors(got: ArrayLike, want: ArrayLike) -> Array:
  """How far [T, D] is from what it should be, relative, at each token."""
  # At each token, so that a small row is not hidden by a large one.
  scale = jnp.linalg.norm(want, axis=-1)
  gap = jnp.linalg.norm(got - want, axis=-1)
  return gap / jnp.where(scale > 0, scale, 1)


@functools.partial(jax.jit, static_argnames=("cfg", "segment"))
def fold_layer(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  layer: Layer,
  ctx: Context,
  edits: Mapping[str, Any],
  *,
  segment: Segment = WHOLE,
) -> Fold:
  """Forms the matrices of a layer at the residual stream that enters it.

  Args:
    cfg: the model.
    params: one block's parameters.
    x: [1, T, D], what enters the layer, before the edit at resid_pre.
    layer: its index.
    ctx: from `context_of`.
    edits: `{site: edit}`.
    segment: which part of the layer.

  Cost: T D^2 (F + 3 D) products, of which T D^2 F for the MLP; memory
  T D (2 D + 2 N K) + T^2 H K numbers.
  """
  with jax.default_matmul_precision(cfg.precision):
    run = LayerSteps(cfg, params, layer, ctx, edits, x)
    fold = _fold(run, x, segment)
    fn, at = run.split(x, segment)
    # Any fixed key will do: a wrong matrix is wrong in a random direction.
    probe = jax.random.normal(jax.random.key(7), at.shape, at.dtype)
    want = jax.jvp(fn, (at,), (probe,))[1]
    got = _apply(fold, probe[0][..., None], 0)[..., 0]
    return fold._replace(error=jnp.max(token_errors(got, want[0])))


def _fold(run: LayerSteps, x: Array, segment: Segment) -> Fold:
  width = x.shape[-1]
  units = _everywhere(jnp.eye(width, dtype=x.dtype), x)
  pre = run.enter(x)
  if segment.start == MID:
    out = _fold_tail(run, pre, run.middle(pre), units, None)
    return Fold(out[0], None, None, None, None, 0.0)
  entering = None
  if segment.start == "in" and PRE in run.edits:
    entering = columns_of(jax.linearize(run.enter, x)[1])(units)[0]
  if segment.stop == PRE:
    out = units[0] if entering is None else entering
    return Fold(out, None, None, None, None, 0.0)
  by_mid, keys, mixing = _fold_attention(run, pre, units)
  out = by_mid[0]
  if segment.stop != MID:
    out = _fold_tail(run, pre, run.middle(pre), by_mid, units)[0]
  if entering is not None:
    keys, own = _product(keys, entering), _product(out[..., :width], entering)
    out = jnp.concatenate([own, out[..., width:]], axis=-1)
  return Fold(out, keys, *mixing, 0.0)


def _fold_attention(
  run: LayerSteps, pre: Array, units: Array
) -> tuple[Array, Array, tuple]:
  """As far as resid_mid.

  Returns:
    [1, T, D, D + H W] of resid_mid by resid_pre and by what the heads mix,
    [T, N K + N W, D] of keys and values by resid_pre, and the mixing.
  """
  cfg, (length, width) = run.cfg, pre.shape[1:]
  normed = run.read(pre)
  raw = run.project_qkv(normed)
  (q, k, v), push = jax.linearize(run.norm_and_rotate_qk, *raw)
  # Gated or clipped values, and what is made of a normed latent vector, are not
  # linear: another matrix at each token.
  if cfg.gate == "value" or cfg.qkv_clip is not None or cfg.kv_rank:
    columns = columns_of(jax.linearize(run.project_qkv, normed)[1])(units)
  else:
    kernels = _kernel(run.project_qkv, (width,), pre.dtype)
    columns = [_everywhere(c, x) for c, x in zip(kernels, raw, strict=True)]
  by_q, by_k, by_v = columns_of(push)(*columns)

  mixed, push_q = jax.linearize(lambda q: run.mix(q, k, v), q)
  z, push_heads = jax.linearize(run.heads, normed, mixed, v)

  def own(directions: tuple[Array, Array, Array]) -> Array:
    """z by what enters the same token, but for its keys and mixed values."""
    d_normed, d_q, d_v = directions
    return push_heads(d_normed, push_q(d_q), d_v)

  # In batches: all D directions at once would need D T^2 H numbers.
  directions = tuple(jnp.moveaxis(x, -1, 0) for x in (units, by_q, by_v))
  z_rows = jax.lax.map(own, directions, batch_size=64)
  write = functools.partial(run.project_out, pre)
  attn_out, push_write = jax.linearize(write, z)
  written = jnp.moveaxis(jax.vmap(push_write)(z_rows), 0, -1)
  parts = [part.reshape(1, length, -1, width) for part in (written, by_k, by_v)]
  by_normed = jnp.concatenate(parts, axis=2)
  pulled = _rows_through(run, "attn_in", run.read, pre, by_normed)
  own, keys = jnp.split(pulled, [width], axis=2)

  heads = (cfg.n_heads, cfg.value_dim)
  if cfg.gates_heads:  # likewise, and open by what is read
    _, push_gate = jax.linearize(lambda pre: run.project_out(pre, z), pre)
    own = own + columns_of(push_gate)(units)
    many = math.prod(heads)
    unit_z = jnp.eye(many, dtype=z.dtype).reshape(*heads, many)
    kernel = columns_of(push_write)(_everywhere(unit_z, z))
  else:
    kernel = _kernel(write, heads, pre.dtype)
  d_attn = jnp.concatenate([own, _everywhere(kernel, pre)], axis=-1)
  _, push_join = jax.linearize(run.join, pre, attn_out)
  by_mid = columns_of(push_join)(_widen(units, d_attn), d_attn)
  return by_mid, keys[0], _fold_mixing(run, normed, q, k, v)


def _rows_through(
  run: LayerSteps, site: str, fn: Callable, x: Array, rows: Array
) -> Array:
  """[1, T, R, D] rows by what a token-local fn gives, by what it takes.

  An edit in it, at `site`, may count tokens, so it must see the whole row.
  """
  if site in run.edits:
    _, pull = jax.vjp(fn, x)
    return jax.vmap(lambda row: pull(row)[0], in_axes=2, out_axes=2)(rows)

  def one(of: tuple[Array, Array]) -> Array:
    x_D, rows_RxD = of
    _, pull = jax.vjp(fn, x_D[None, None])
    return jax.vmap(lambda row: pull(row[None, None])[0][0, 0])(rows_RxD)

  return jax.lax.map(one, (x[0], rows[0]))[None]


def _widen(columns: Array, like: Array) -> Array:
  """Columns of zeros at the end, until there are as many as `like` has."""
  rest = like.shape[-1] - columns.shape[-1]
  return jnp.pad(columns, [(0, 0)] * (columns.ndim - 1) + [(0, rest)])


def _fold_mixing(
  run: LayerSteps, normed: Array, q: Array, k: Array, v: Array
) -> tuple[Array, Array, Array]:
  """Queries, and z by scores and by the values that are mixed."""
  cfg, length = run.cfg, q.shape[1]
  scores = run.score(q, k)
  sinks = run.sink_logits(q)

  def outputs(scores: Array, values: Array) -> Array:
    # What a head keeps of its own value is no mixing.
    return run.heads(normed, run.attend(scores, values, sinks), v)

  _, push = jax.linearize(outputs, scores, v)
  no_scores, no_v = jnp.zeros_like(scores), jnp.zeros_like(v)
  columns = jnp.arange(length)
  by_score_Sx1xTxHxW = jax.lax.map(
    lambda s: push(no_scores.at[..., s].set(1), no_v), columns
  )
  by_value_Sx1xTxHxW = jax.lax.map(
    lambda s: push(no_scores, no_v.at[:, s].set(1)), columns
  )
  heads = (cfg.n_kv_heads, cfg.group_size)
  by_score = by_score_Sx1xTxHxW.reshape(length, length, *heads, -1)
  by_value = by_value_Sx1xTxHxW.reshape(length, length, *heads, -1)[..., 0]
  queries = q[0].reshape(length, *heads, -1) * cfg.score_scale
  return (
    jnp.transpose(queries, (1, 2, 0, 3)),
    jnp.transpose(by_score, (2, 3, 1, 4, 0)),
    jnp.transpose(by_value, (2, 3, 1, 0)),
  )


def _fold_tail(
  run: LayerSteps, pre: Array, mid: Array, by_mid: Array, by_pre: Array | None
) -> Array:
  """What follows resid_mid: [1, T, D, M] by M things of resid_post.

  Args:
    run: the layer.
    pre: [1, T, D].
    mid: [1, T, D].
    by_mid: [1, T, D, M] of resid_mid by the M things.
    by_pre: [1, T, D, D] of resid_pre by the first D of them; `None` if it
      does not depend on them.
  """
  parallel = run.cfg.parallel_residual
  read = pre if parallel else mid
  if not parallel:
    by_out = _product(fold_mlp(run, read), by_mid[0])[None]
  elif by_pre is None:
    by_out = jnp.zeros_like(by_mid)
  else:
    by_out = _product(fold_mlp(run, read), by_pre[0])[None]
    by_out = _widen(by_out, by_mid)
  raw = run.mlp_output(read)
  if run.cfg.depth == "none":
    _, push = jax.linearize(functools.partial(run.finish, pre), mid, raw)
    return columns_of(push)(by_mid, by_out)
  # What is added is weighed by what enters.
  _, push = jax.linearize(run.finish, pre, mid, raw)
  first = jnp.zeros_like(by_mid) if by_pre is None else _widen(by_pre, by_mid)
  return columns_of(push)(first, by_mid, by_out)


def fold_mlp(run: LayerSteps, read: Array) -> Array:
  """[T, D, D] of the MLP's raw output by what it reads.

  With an edit inside, one output at a time for all tokens, and more work.
  """
  if set(MLP_SITES) & set(run.edits):
    _, pull = jax.vjp(run.mlp_output, read)
    units = jnp.eye(read.shape[-1], dtype=read.dtype)

    def row(unit: Array) -> Array:
      return pull(jnp.broadcast_to(unit, read.shape))[0][0]

    return jnp.swapaxes(jax.lax.map(row, units, batch_size=16), 0, 1)

  kernels = _kernel(run.mlp_linear, read.shape[-1:], read.dtype)

  def one(x_D: Array) -> Array:
    normed, pull = jax.vjp(run.mlp_read, x_D[None, None])
    _, push = jax.linearize(run.mlp_activate, *run.mlp_linear(normed))
    out_DxD = columns_of(push)(*kernels)[0, 0]
    rows = jax.vmap(lambda row: pull(row[None, None])[0])(out_DxD)
    return rows[:, 0, 0]

  return jax.lax.map(one, read[0])


@functools.partial(
  jax.jit, static_argnames=("cfg", "first"), donate_argnames="d_x"
)
def push_folded(
  cfg: ModelConfig, fold: Fold, d_x: Array, *, first: int
) -> Array:
  """Tangents through one segment by its folded matrices.

  Args:
    cfg: the model.
    fold: from `fold_layer`.
    d_x: [W, D, X] tangents of the tokens `first` to T - 1; earlier tokens
      have none. The buffer is given up.
    first: T - W.

  Returns:
    [W, D, X].

  Cost: W X (2 N K D + D^2 + H K D + 3 H K W) products, for values as wide as
  keys.
  """
  with jax.default_matmul_precision(cfg.precision):
    return _apply(fold, d_x, first)


def _apply(fold: Fold, d_x: Array, first: int) -> Array:
  if fold.keys is None:
    return _each_token(jnp.dot, [fold.out], first, d_x)
  # Keys and values once for each source token, whatever the queries do.
  moved = _each_token(jnp.dot, [fold.keys], first, d_x)
  kv, _, _, head_dim = fold.queries.shape
  window, _, many = d_x.shape
  d_k, d_v = (
    part.reshape(window, kv, -1, many)
    for part in jnp.split(moved, [kv * head_dim], axis=1)
  )
  queries = fold.queries[:, :, first:]
  d_scores = jnp.einsum("ngtk,snkx->ngtsx", queries, d_k)
  by_value = fold.by_value[:, :, first:, first:]
  from_values = jnp.einsum("ngts,snkx->ngtkx", by_value, d_v)
  by_score = jnp.moveaxis(fold.by_score[:, :, first:, :, first:], 2, 0)

  def one(out: Array, at: Array, by_score: Array, d_x: Array) -> Array:
    d_z = jax.lax.dynamic_index_in_dim(from_values, at, 2, keepdims=False)
    scores = jax.lax.dynamic_index_in_dim(d_scores, at, 2, keepdims=False)
    d_z = d_z + jnp.einsum("ngks,ngsx->ngkx", by_score, scores)
    return out @ jnp.concatenate([d_x, d_z.reshape(-1, many)])

  return _each_token(one, [fold.out], first, jnp.arange(window), by_score, d_x)
