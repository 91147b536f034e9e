"""How one layer maps tangents: folded where that saves work, else as it is.

The exact Jacobian pushes thousands of tangents through every layer. Most of a
layer acts on each token alone, so its derivative there is one matrix a token;
`fold_layer` forms these matrices once and `push_folded` applies them to every
tangent. For a gated MLP of width F this is D^2 instead of 3 D F products a
tangent. `push_directly` is the layer's own linearisation and assumes nothing.

Every derivative comes from `jax.vjp` and `jax.linearize` of the block's own
methods with the edits in place. What the folding assumes of an edit (that it
acts on tokens and heads alone where it stands between token-local steps) is
not trusted: `fold_layer` compares with the layer's own derivative in a random
direction and says how far off it is.

Layout: tangents are [W, D, X], W the last tokens of the sequence, X tangents.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.models.attention import mask_of
from sinkjax.models.blocks import Block
from sinkjax.models.layerwise import apply_block, apply_final_norm
from sinkjax.taps import Tapper, Taps

PRE, MID, POST = "resid_pre", "resid_mid", "resid_post"


class Segment(NamedTuple):
  """Which part of a layer a tangent goes through; static.

  Attributes:
    start: where the tangents are given: "in" before the edit at resid_pre,
      "resid_pre" after it, or "resid_mid".
    stop: "resid_pre", "resid_mid" or "resid_post".
  """

  start: str
  stop: str


WHOLE = Segment("in", POST)


class Fold(NamedTuple):
  """One layer's token-local derivatives. C = H K + 2 N K.

  Attributes:
    into: [T, C, D] of (z through the queries, keys, values) by resid_pre.
    by_score: [N, G, T, S, K] of z by its scores.
    by_value: [N, G, T, S] of z by the values.
    queries: [T, N, G, K] that multiply a key's tangent.
    mlp: [T, D, D] of the MLP's raw output by what it reads.
    error: how far this is from the layer's derivative, relative.
  """

  into: Float[Array, "T C D"]
  by_score: Float[Array, "N G T S K"]
  by_value: Float[Array, "N G T S"]
  queries: Float[Array, "T N G K"]
  mlp: Float[Array, "T D D"]
  error: Float[Array, ""]


class _Layer:
  """A block's methods at one layer with its edits, on one row of tokens."""

  def __init__(self, cfg, params, layer, ctx, edits):
    self.cfg, self.layer, self.ctx = cfg, layer, ctx
    self.tap = Tapper(Taps(edits), layer)
    self.mask = mask_of(cfg, ctx, layer)
    block = Block(cfg)

    def method(unbound):
      return lambda *args: block.apply(
        {"params": params}, *args, method=unbound
      )

    self.read, self.linear = method(Block.read), method(Block.linear)
    self.score = method(Block.score)
    self.mlp_read, self.mlp_linear = (
      method(Block.mlp_read),
      method(Block.mlp_linear),
    )
    self.activate = method(Block.mlp_activate)
    turn, weigh = method(Block.turn), method(Block.weigh)
    attend, finish = method(Block.attend), method(Block.finish)
    qkv, mix = method(Block.qkv), method(Block.mix)
    tap = self.tap

    def turned(q, k, v):
      q, k = turn(q, k, ctx, layer)
      return tap("q", q), tap("k", k), tap("v", v)

    self.turned = turned
    self.qkv = lambda pre: qkv(pre, layer, ctx, tap)
    self.weigh = lambda scores, v: weigh(scores, v, self.mask, tap)
    self.mix = lambda q, k, v: mix(q, k, v, self.mask, tap)
    self.attend = lambda pre, z: attend(pre, z, tap)
    self.finish = lambda mid, out: finish(mid, out, tap)
    self.enter = lambda x: tap(PRE, x)

  def transform(self, x):
    return self.activate(*self.mlp_linear(self.mlp_read(x)))

  def middle(self, pre):
    return self.attend(pre, self.mix(*self.qkv(pre)))

  def tail(self, pre, mid):
    read = pre if self.cfg.parallel_residual else mid
    return self.finish(mid, self.transform(read))

  def split(self, x, segment: Segment):
    """(f, value at its start): the segment is f, [1, T, D] to [1, T, D]."""
    pre = self.enter(x)
    if segment.start == MID:
      return (lambda mid: self.tail(pre, mid)), self.middle(pre)

    def after(pre):
      if segment.stop == PRE:
        return pre
      mid = self.middle(pre)
      return mid if segment.stop == MID else self.tail(pre, mid)

    if segment.start == PRE:
      return after, pre
    return (lambda x: after(self.enter(x))), x


def _kernel(linear, width, dtype):
  """A linear map's outputs for every unit input: [D, 1, 1, ...] each."""
  point = jnp.zeros((1, 1, width), dtype)
  _, push = jax.linearize(linear, point)
  return jax.vmap(push)(jnp.eye(width, dtype=dtype)[:, None, None])


def _random_like(x):
  return jax.random.normal(jax.random.key(7), x.shape, x.dtype)


def _relative(got, want):
  scale = jnp.max(jnp.abs(want))
  gap = jnp.max(jnp.abs(got - want))
  return gap / jnp.where(scale > 0, scale, 1)


@functools.partial(jax.jit, static_argnames="cfg")
def fold_layer(cfg, params, x, layer, ctx, edits) -> Fold:
  """Forms the matrices of a layer at the residual stream that enters it.

  Args:
    cfg: the model.
    params: one block's parameters.
    x: [1, T, D], what enters the layer, before the edit at resid_pre.
    layer: its index.
    ctx: from `context_of`.
    edits: `{site: edit}`.

  Cost: time O(T D (D F + C D)), one product of D x F by F x D a token in
  front; memory T D (C + D) + T^2 H K numbers.
  """
  with jax.default_matmul_precision(cfg.precision):
    run = _Layer(cfg, params, layer, ctx, edits)
    pre = run.enter(x)
    into, by_score, by_value, q, error = _fold_attention(run, pre)
    read = pre if cfg.parallel_residual else run.middle(pre)
    mlp = _fold_mlp(run, read)
    probe = _random_like(read)
    want = jax.jvp(run.transform, (read,), (probe,))[1]
    got = jnp.einsum("tcd,btd->btc", mlp, probe)
    error = jnp.maximum(error, _relative(got, want))
  return Fold(into, by_score, by_value, q, mlp, error)


def _fold_attention(run: _Layer, pre):
  cfg, length = run.cfg, pre.shape[1]
  width = pre.shape[-1]
  normed, pull = jax.vjp(run.read, pre)
  raw = run.linear(normed)
  (q, k, v), push = jax.linearize(run.turned, *raw)
  kernels = _kernel(run.linear, width, pre.dtype)
  at_every_token = [
    jnp.broadcast_to(part, (width, *like.shape))
    for part, like in zip(kernels, raw, strict=True)
  ]
  q_rows, k_rows, v_rows = jax.vmap(push)(*at_every_token)
  _, push_q = jax.linearize(lambda q: run.mix(q, k, v), q)
  z_rows = jax.lax.map(push_q, q_rows, batch_size=64)
  rows = [part.reshape(width, length, -1) for part in (z_rows, k_rows, v_rows)]
  rows_DxTxC = jnp.concatenate(rows, axis=-1)
  cotangents = jnp.moveaxis(rows_DxTxC, 0, -1).swapaxes(0, 1)[:, None]
  into_Cx1xTxD = jax.vmap(lambda row: pull(row)[0])(cotangents)
  into = into_Cx1xTxD[:, 0].swapaxes(0, 1)

  scores = run.score(q, k)
  _, push_weigh = jax.linearize(run.weigh, scores, v)
  no_scores, no_v = jnp.zeros_like(scores), jnp.zeros_like(v)
  columns = jnp.arange(length)
  by_score_Sx1xTxHxK = jax.lax.map(
    lambda s: push_weigh(no_scores.at[..., s].set(1), no_v), columns
  )
  by_value_Sx1xTxHxK = jax.lax.map(
    lambda s: push_weigh(no_scores, no_v.at[:, s].set(1)), columns
  )
  heads = (cfg.n_kv_heads, cfg.group_size)
  grouped = (length, length, *heads, cfg.head_dim)
  by_score = jnp.transpose(by_score_Sx1xTxHxK.reshape(grouped), (2, 3, 1, 0, 4))
  by_value = jnp.transpose(
    by_value_Sx1xTxHxK.reshape(grouped)[..., 0], (2, 3, 1, 0)
  )
  queries = q[0].reshape(length, *heads, cfg.head_dim) * cfg.score_scale
  fold = Fold(into, by_score, by_value, queries, None, None)
  probe = _random_like(pre)
  want = jax.jvp(lambda pre: run.mix(*run.qkv(pre)), (pre,), (probe,))[1]
  got = _mix(cfg, fold, probe[0][..., None], 0)[..., 0]
  return into, by_score, by_value, queries, _relative(got, want[0])


def _fold_mlp(run: _Layer, read):
  kernels = _kernel(run.mlp_linear, read.shape[-1], read.dtype)

  def one(x_D):
    normed, pull = jax.vjp(run.mlp_read, x_D[None, None])
    _, push = jax.linearize(run.activate, *run.mlp_linear(normed))
    out_DxD = jax.vmap(push)(*kernels)[:, 0, 0]
    rows = jax.vmap(lambda row: pull(row[None, None])[0])(out_DxD.T)
    return rows[:, 0, 0]

  return jax.lax.map(one, read[0])


def _mix(cfg, fold: Fold, d_pre, first: int):
  """Tangents of z, [W, H, K, X], of those of resid_pre, [W, D, X]."""
  window, _, many = d_pre.shape
  heads, kv, head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
  moved = jnp.einsum("tcd,tdx->tcx", fold.into[first:], d_pre)
  split = (heads * head_dim, (heads + kv) * head_dim)
  through_q, d_k, d_v = jnp.split(moved, split, axis=1)
  d_k = d_k.reshape(window, kv, head_dim, many)
  d_v = d_v.reshape(window, kv, head_dim, many)
  d_scores = jnp.einsum("tngk,snkx->ngtsx", fold.queries[first:], d_k)
  by_score = fold.by_score[:, :, first:, first:]
  by_value = fold.by_value[:, :, first:, first:]
  d_z = jnp.einsum("ngtsk,ngtsx->tngkx", by_score, d_scores)
  d_z = d_z + jnp.einsum("ngts,snkx->tngkx", by_value, d_v)
  d_z = d_z.reshape(window, heads, head_dim, many)
  return d_z + through_q.reshape(window, heads, head_dim, many)


def _local(fn, edits, sites, first, primals, tangents):
  """A token-local function's tangents; all tokens are run if one is edited.

  An edit may count tokens, so it must see the whole row.
  """
  skip = 0 if any(site in edits for site in sites) else first
  _, push = jax.linearize(fn, *(p[:, skip:] for p in primals))
  padded = [
    jnp.pad(t, [(first - skip, 0)] + [(0, 0)] * (t.ndim - 1))[None]
    for t in tangents
  ]
  out = jax.vmap(push, in_axes=-1, out_axes=-1)(*padded)
  return out[0, first - skip :]


@functools.partial(
  jax.jit, static_argnames=("cfg", "first", "segment"), donate_argnames="d_x"
)
def push_folded(
  cfg, params, x, layer, ctx, edits, fold, d_x, *, first, segment=WHOLE
):
  """Tangents through one layer by its folded matrices.

  Args:
    cfg: the model.
    params: the block's parameters.
    x: [1, T, D], what enters the layer, wherever the segment starts.
    layer: its index.
    ctx: from `context_of`.
    edits: `{site: edit}`.
    fold: from `fold_layer`.
    d_x: [W, D, X] tangents of the tokens `first` to T - 1; earlier tokens
      have none. The buffer is given up.
    first: T - W.
    segment: which part of the layer.

  Returns:
    [W, D, X].

  Cost: W X (C D + H K D + D^2 + 3 H K W) products.
  """
  with jax.default_matmul_precision(cfg.precision):
    run = _Layer(cfg, params, layer, ctx, edits)
    pre = run.enter(x)
    if segment.start == MID:
      d_pre, d_mid = jnp.zeros_like(d_x), d_x
    else:
      d_pre = d_x
      if segment.start == "in" and PRE in edits:
        d_pre = _local(run.enter, edits, (PRE,), first, (x,), (d_x,))
      if segment.stop == PRE:
        return d_pre
      d_z = _mix(cfg, fold, d_pre, first)
    z = run.mix(*run.qkv(pre))
    if segment.start != MID:
      d_mid = _local(
        run.attend, edits, ("attn_out", MID), first, (pre, z), (d_pre, d_z)
      )
      if segment.stop == MID:
        return d_mid
    mid = run.attend(pre, z)
    parallel = cfg.parallel_residual
    d_read = d_pre if parallel else d_mid
    d_out = jnp.einsum("tcd,tdx->tcx", fold.mlp[first:], d_read)
    out = run.transform(pre if parallel else mid)
    return _local(
      run.finish, edits, ("mlp_out", POST), first, (mid, out), (d_mid, d_out)
    )


@functools.partial(
  jax.jit, static_argnames=("cfg", "segment"), donate_argnames="d_x"
)
def push_directly(cfg, params, x, layer, ctx, edits, d_x, *, segment=WHOLE):
  """Tangents through one layer by its own linearisation, [T, D, X].

  As `push_folded`, on all tokens and assuming nothing of the edits.
  """
  with jax.default_matmul_precision(cfg.precision):
    run = _Layer(cfg, params, layer, ctx, edits)
    fn, at = run.split(x, segment)
    _, push = jax.linearize(fn, at)
    return jax.vmap(push, in_axes=-1, out_axes=-1)(d_x[None])[0]


@functools.partial(jax.jit, static_argnames=("cfg", "first"))
def push_final(cfg, params, x, edits, d_x, *, first):
  """Tangents through the final norm and the edit at "final", [W, D, X]."""

  def fn(x):
    tap = Tapper(Taps(edits), cfg.n_layers - 1)
    return tap("final", apply_final_norm(cfg, params, x))

  return _local(fn, edits, ("final",), first, (x,), (d_x,))


@functools.partial(jax.jit, static_argnames="cfg")
def run_layer(cfg, params, x, layer, ctx, edits):
  """The layer itself, [1, T, D] to [1, T, D]."""
  with jax.default_matmul_precision(cfg.precision):
    return apply_block(cfg, params, x, layer, ctx, Taps(edits))[0]
