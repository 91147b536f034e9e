"""Causal attention whose pattern is never written: a softmax kept on line.

Keys go by in blocks. Of every row the largest score so far, the sum of the
exponentials and the mixed values are kept, and what was gathered is scaled down
when a larger score comes (Milakov and Gimelshein, arXiv 1805.02867; in blocks,
Dao et al., arXiv 2205.14135). Blocks above the diagonal, and beyond a window,
are not touched. Memory is that of one block, and the numbers are those of the
einsum path within rounding.

Every derivative of JAX passes: the tangent is a loop that is linear in the
tangents of queries, keys and values and computes the weights again from the
log-sum-exp, so that `jax.grad` transposes it, and `jvp`, `vmap`, `linearize`
and derivatives of derivatives are JAX's own.

On a GPU or TPU z and the log-sum-exp come from a kernel where it serves
(`models.flash_statistics`); derivatives are computed as everywhere.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sinkjax.metrics.precision import wide
from sinkjax.models import flash_statistics
from sinkjax.models.normalizers import MASKED
from sinkjax.models.online_blocks import (
  Form,
  Inputs,
  arranged,
  block_of,
  blocks_of,
  mixed,
  scores_of,
  seen_of,
  sinks_of,
  where_seen,
  whole,
)

SPANS = 8
"""Groups of rows in a tangent, at most: each is compiled.

Transposing needs loops of a fixed length, so that a group meets all keys up to
its end; 8 groups leave 9/16 of the square.
"""

KEPT_BYTES = 1 << 27
"""Up to here the weights are kept for the backward pass, and beyond it they are
computed again: at short length that costs more than the memory is worth."""


def online_attention(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T N K"],
  v: Float[Array, "B T N W"],
  sinks: Float[Array, "#B H #T"] | None = None,
  window: int | Int[Array, ""] | None = None,
  mask: Bool[Array, "#B 1 T T"] | None = None,
  valid: Bool[Array, "B T"] | None = None,
  *,
  scale: float,
  scores: Callable[[Array], Array] | None = None,
  weights: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "B T H W"], Float[Array, "B T H"]]:
  """Causal attention and the logarithm of what its rows are divided by.

      z_t = sum_s p_ts v_s,  p_ts = exp(s_ts - lse_t)
      lse_t = log(exp(sink_t) + sum_s exp(s_ts)),  s_ts = scores(scale q_t k_s)

  and for the derivative

      d lse_t = sum_s p_ts ds_ts + exp(sink_t - lse_t) d sink_t
      d z_t = sum_s (p_ts ds_ts v_s + p_ts dv_s) - z_t d lse_t

  Args:
    q: queries.
    k: keys.
    v: values, of a width of their own.
    sinks: a logit for each row that takes weight and has no value.
    window: how many positions back a token sees, itself included; traced
      where it depends on the layer.
    mask: True where key s may be seen from t, beside causality. A row that
      sees no key becomes NaN.
    valid: False at padding.
    scale: of the products.
    scores: elementwise, applied to the scaled products.
    weights: elementwise, the weights of scores without a softmax; `lse` is 0.

  Returns:
    (z, lse), both accumulated in float32 at least, z in the dtype of `q`.

  Cost: the products of the causal half of the square, and the memory of
  `BLOCK` rows by `BLOCK` keys of all heads; a gradient keeps the inputs, z and
  lse, and at short length the weights.
  """
  batch, length, heads, _ = q.shape
  form, inputs, (q, k, v) = arranged(
    (q, k, v),
    sinks=sinks,
    window=window,
    mask=mask,
    valid=valid,
    scale=scale,
    scores=scores,
    weights=weights,
  )
  kv_heads, group = k.shape[1], form.group
  z, lse = _attend(form, q, k, v, inputs)
  z = z.reshape(batch, kv_heads, -1, group, v.shape[-1])[:, :, :length]
  lse = lse[:, :, :length]
  return (
    jnp.transpose(z, (0, 2, 1, 3, 4)).reshape(batch, length, heads, -1),
    jnp.transpose(lse, (0, 2, 1, 3)).reshape(batch, length, heads),
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(
  form: Form, q: Array, k: Array, v: Array, inputs: Inputs
) -> tuple[Array, Array]:
  """q [B, N, T G, K], k and v [B, N, T, K] -> z, lse [B, N, T, G].

  By an accelerator's own kernel where one serves.
  """
  plain = functools.partial(_walked, form)
  return flash_statistics.attended(plain, form, inputs, q, k, v)


def _walked(
  form: Form, q: Array, k: Array, v: Array, inputs: Inputs
) -> tuple[Array, Array]:
  """The same in plain JAX."""
  batch, kv_heads, length, _ = k.shape
  rows, group = form.rows, form.group

  def row_block(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
    q_block = jax.lax.dynamic_slice_in_dim(q, i * rows * group, rows * group, 2)

    def walk(masked: bool, j: Array, carry: tuple) -> tuple:
      peak, total, z = carry
      s = scores_of(form, q_block, block_of(k, j, rows))
      seen = seen_of(form, inputs, i * rows, rows, j) if masked else None
      values = block_of(v, j, rows)
      if form.weights is not None:
        p = form.weights(s)
        p = p if seen is None else where_seen(seen, p, 0.0, group)
        return peak, total, z + mixed(p, values)
      s = s if seen is None else where_seen(seen, s, MASKED, group)
      new = jnp.maximum(peak, s.max(-1))
      p = jnp.exp(s - new[..., None])
      # Of a row that has seen no key yet, the largest score is `MASKED`.
      p = p if seen is None else where_seen(seen, p, 0.0, group)
      p = whole(p)
      old = jnp.exp(peak - new)
      z = z * old[..., None] + mixed(p, values)
      return new, total * old + p.sum(-1), z

    shape = batch, kv_heads, rows * group
    dtype = wide(q).dtype
    carry = (
      jnp.full(shape, MASKED, dtype),
      jnp.zeros(shape, dtype),
      jnp.zeros((*shape, v.shape[-1]), dtype),
    )
    sink = sinks_of(inputs, i * rows, rows, shape)
    if sink is not None:
      carry = sink.astype(dtype), jnp.ones(shape, dtype), carry[2]
    for masked, first, last in _ranges(form, inputs, i):
      step = functools.partial(walk, masked)
      carry = jax.lax.fori_loop(first, last, step, carry)
    peak, total, z = carry
    if form.weights is not None:
      return None, (z.astype(q.dtype), jnp.zeros(shape, dtype))
    z = (z / total[..., None]).astype(q.dtype)
    return None, (z, peak + jnp.log(total))

  count = length // rows
  _, (z, lse) = jax.lax.scan(row_block, None, jnp.arange(count))
  z = jnp.moveaxis(z, 0, 2).reshape(batch, kv_heads, length * group, -1)
  lse = jnp.moveaxis(lse, 0, 2).reshape(batch, kv_heads, length, group)
  return z, lse


@_attend.defjvp
def _attend_jvp(
  form: Form, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
  q, k, v, inputs = primals
  d_q, d_k, d_v, d_inputs = tangents
  z, lse = _attend(form, q, k, v, inputs)
  batch, kv_heads, length, _ = k.shape
  rows, group = form.rows, form.group
  dtype = lse.dtype
  parts = []
  for first, a, b in _spans(form, length):
    cut = slice(a * group, b * group)
    level = lse[:, :, a:b].reshape(batch, kv_heads, -1)

    def walk(
      carry: tuple,
      xs: tuple,
      q_span: Array,
      d_span: Array,
      level: Array,
      a: int = a,
      b: int = b,
    ) -> tuple[tuple, None]:
      moved, total = carry
      j, k_block, v_block, dk_block, dv_block = xs
      s, d_s = jax.jvp(
        functools.partial(scores_of, form),
        (q_span, k_block),
        (d_span, dk_block),
      )
      seen = seen_of(form, inputs, a, b - a, j)
      if form.weights is None:
        # The exponential of a hidden score may be infinite, and a derivative
        # of this one would multiply it by zero.
        s = where_seen(seen, s, MASKED, group)
        p = where_seen(seen, jnp.exp(s - level[..., None]), 0.0, group)
        d_p = p * d_s
      else:
        both = jax.jvp(form.weights, (s,), (d_s,))
        p, d_p = (where_seen(seen, x, 0.0, group) for x in both)
      p, d_p = whole(p), whole(d_p)
      moved += mixed(d_p, v_block) + mixed(p, dv_block)
      return (moved, total + d_p.sum(-1)), None

    if batch * kv_heads * group * length**2 * dtype.itemsize > KEPT_BYTES:
      walk = jax.checkpoint(walk)
    blocks = (blocks_of(x[:, :, first:b], rows) for x in (k, v, d_k, d_v))
    xs = jnp.arange(first // rows, b // rows), *blocks
    shape = batch, kv_heads, (b - a) * group
    start = jnp.zeros((*shape, v.shape[-1]), dtype), jnp.zeros(shape, dtype)
    span = q[:, :, cut], d_q[:, :, cut], level
    step = functools.partial(_with, walk, span)
    (moved, total), _ = jax.lax.scan(step, start, xs)
    if form.weights is None:
      if inputs.sinks is not None:
        sink, d_sink = (
          sinks_of(x, a, b - a, shape) for x in (inputs, d_inputs)
        )
        total += jnp.exp(sink - level) * d_sink
      moved -= wide(z[:, :, cut]) * total[..., None]
    else:
      total = jnp.zeros_like(total)
    parts.append((moved, total))
  moved, total = (jnp.concatenate(x, 2) for x in zip(*parts, strict=True))
  total = total.reshape(batch, kv_heads, length, group)
  return (z, lse), (moved.astype(z.dtype), total)


def _with(walk: Callable, span: tuple, carry: tuple, xs: tuple) -> tuple:
  return walk(carry, xs, *span)


def _ranges(
  form: Form, inputs: Inputs, i: Array
) -> Iterator[tuple[bool, Array | int, Array | int]]:
  """(whether keys are hidden, first, last + 1) of the blocks of a row block."""
  window = form.window if inputs.window is None else inputs.window
  first = whole = 0
  if window is not None:
    # The first row of the block sees furthest back, its last row least far.
    first = jnp.maximum(i * form.rows - window + 1, 0) // form.rows
    whole = (i + 1) * form.rows - window + form.rows - 1
    whole = jnp.clip(whole // form.rows, first, i)
  if inputs.mask is not None or inputs.valid is not None:
    yield True, first, i + 1
    return
  if window is not None:
    yield True, first, whole
  yield False, whole, i
  yield True, i, i + 1


def _spans(form: Form, length: int) -> Iterator[tuple[int, int, int]]:
  """(first key, first row, row after the last) of the groups of a tangent."""
  size = form.rows * math.ceil(length / form.rows / SPANS)
  for a in range(0, length, size):
    first = 0 if form.window is None else max(0, a - form.window + 1)
    yield first // form.rows * form.rows, a, min(a + size, length)
