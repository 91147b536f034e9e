"""Operator norms of a real model's parts: what bounds on its Jacobian need.

`sinkjax.metrics.bounds` multiplies gains along paths; here they are measured,
at every layer, head and token of one text, on the derivatives of the model's
own modules with all edits in place. Every gain is the largest singular value
of an explicit matrix, not an estimate from below.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sinkjax.config import ModelConfig
from sinkjax.metrics.matrices import each_matrix
from sinkjax.models.context import Context
from sinkjax.models.layerwise import Params, as_layers
from sinkjax.taps import Layer
from sinkjax.transforms.jacobian import check_model, one_text
from sinkjax.transforms.layer_jacobian import Fold, fold_layer
from sinkjax.transforms.layer_steps import LayerSteps, columns_of, run_layer
from sinkjax.transforms.residual import context_of, enter, taken_apart

# Rounding of a layer's products is 1e-6 in float32 and 1e-15 in float64; an
# edit that mixes tokens elsewhere is off by the size of what it mixes.
FOLDED = {"float32": 1e-4, "float64": 1e-10}
"""How far a layer's matrices may be from its own derivative, relative."""


class Gains(NamedTuple):
  """Gains of every layer, for `sinkjax.metrics.bounds`.

  With X_t what leaves the layer, x_s what enters it, and o_t what the
  attention's output projection writes:

      pattern    weights a_ts with which the heads mix values
      copy_gain  ||W_O^h dv_s/dx_s||
      mlp_gain   the greater of ||dX_t/dx_t|| at held o and ||dX_t/do_t||
      key_gain   ||W_O^h dz_t/de_ts|| ||de_ts/dx_s||
      query_gain ||what x_t's queries add to dX_t/dx_t|| / mlp_gain

  where e_ts are scores and z_t the heads' outputs. In a model without post
  norms, `residual_scale` and edits after the attention, both parts of mlp_gain
  are the derivative of the MLP with its skip connection. `dz_t/de_ts` is
  a_ts (v_s - z_t) for a softmax; with edits of scores and pattern it is the
  edited model's, whose weight a_ts may be zero where this is not.

  Attributes:
    pattern: [L, H, T, S].
    copy_gain: [L, H, S].
    mlp_gain: [L, T].
    key_gain: [L, H, T, S].
    query_gain: [L, T].
  """

  pattern: Float[Array, "L H T S"]
  copy_gain: Float[Array, "L H S"]
  mlp_gain: Float[Array, "L T"]
  key_gain: Float[Array, "L H T S"]
  query_gain: Float[Array, "L T"]


def layer_gains(
  fn: Callable,
  params: Any,
  tokens: Int[Array, "T"],
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Gains:
  """The gains of every layer of a model on one text.

  Args:
    fn: `forward(cfg)`, or an `intervene` of it.
    params: its parameters, or weights read layer by layer.
    tokens: one text, unpadded.
    progress: called with (layers done, layers in all).

  Raises:
    ValueError: for a model that is not float32 or float64, one without a
      softmax or with a gate on what heads mix or a rate of mixing, or an edit
      that lets tokens mix elsewhere than in the attention's weighted sum.
    TypeError: for a function that is none of ours.

  Cost: as folding every layer for the exact Jacobian, and 2 or 3 T singular
    values of [D, D] matrices a layer.

  >>> import jax, sinkjax
  >>> params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  >>> f = sinkjax.forward(sinkjax.TINY)
  >>> layer_gains(f, params, jax.numpy.array([1, 2, 3])).mlp_gain.shape
  (3, 3)
  """
  cfg, edits = taken_apart(fn, tokens)
  if cfg.normalizer not in ("softmax", "softmax1"):
    raise ValueError(
      f"the bounds are those of a softmax, the model has {cfg.normalizer}"
    )
  if cfg.gates_heads:
    raise ValueError(
      f"the bounds know no gate on what heads mix, the model has {cfg.gate!r}"
    )
  if cfg.mixing != "none":
    raise ValueError(
      f"the bounds know no rate of mixing, the model has mixing={cfg.mixing!r}"
    )
  if cfg.depth != "none":
    raise ValueError(
      "the bounds know no tokens that do not take every layer, the model has "
      f"depth={cfg.depth!r}"
    )
  check_model(cfg)
  tokens = one_text(tokens)
  layers, edits = as_layers(cfg, params), dict(edits)
  ctx, positions = context_of(cfg, tokens[None])
  x, gains = enter(layers, tokens[None], positions, edits), []
  for index in range(cfg.n_layers):
    block, layer = layers.layer(index), jnp.asarray(index)
    args = (cfg, block, x, layer, ctx, edits)
    fold = fold_layer(*args)
    if not fold.error <= FOLDED[cfg.dtype]:
      raise ValueError(
        f"layer {index} has no gains: an edit lets tokens mix elsewhere than "
        f"in the attention's weighted sum (relative error {fold.error:.1e})"
      )
    gains.append(_gains(*args, fold))
    x = run_layer(*args)
    jax.block_until_ready(x)
    progress(index + 1, cfg.n_layers)
  return jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *gains)


def top_singular(matrices: Float[Array, "*N I J"]) -> Float[Array, "*N"]:
  """The largest singular value of each matrix, by its Gram matrix.

  The square root of the largest eigenvalue of M M^T, or M^T M if smaller: its
  relative error is a few units of rounding.
  """
  rows, columns = matrices.shape[-2:]
  flat = matrices.reshape(-1, rows, columns)

  def one(matrix: Array) -> Array:
    # Scaled to entries of 1 at most, so that the Gram matrix cannot overflow.
    size = jnp.max(jnp.abs(matrix))
    unit = matrix / jnp.where(size > 0, size, 1)
    gram = unit @ unit.T if rows <= columns else unit.T @ unit
    return size * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))

  return jax.lax.map(one, flat).reshape(matrices.shape[:-2])


@functools.partial(jax.jit, static_argnames="cfg")
def _gains(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  layer: Layer,
  ctx: Context,
  edits: Mapping[str, Any],
  fold: Fold,
) -> Gains:
  with jax.default_matmul_precision(cfg.precision):
    run = LayerSteps(cfg, params, layer, ctx, edits)
    by_input, by_write = _tail(run, x)
    mlp_gain = top_singular(by_input)
    apart = {"resid_pre", "attn_out"} & set(edits)
    scaled = cfg.post_norms or cfg.residual_scale != 1.0
    if scaled or cfg.parallel_residual or apart:  # else they are equal
      mlp_gain = jnp.maximum(mlp_gain, top_singular(by_write))
    queries = fold.out[..., : cfg.d_model] - by_input
    writing = _writing(run)
    copy_gain, key_gain = _head_gains(cfg, fold, writing)
    pattern = fold.by_value.reshape(cfg.n_heads, *fold.by_value.shape[2:])
    return Gains(
      pattern=pattern,
      copy_gain=copy_gain,
      mlp_gain=mlp_gain,
      key_gain=key_gain,
      query_gain=top_singular(queries) / mlp_gain,
    )


def _tail(run: LayerSteps, x: Array) -> tuple[Array, Array]:
  """[T, D, D] of what leaves by what enters, and by what is written."""
  length, width = x.shape[1:]
  pre = run.enter(x)
  written = run.project_out(pre, run.outputs(None, *run.qkv(pre)))

  def tail(x: Array, written: Array) -> Array:
    pre = run.enter(x)
    return run.tail(pre, run.join(pre, written))

  _, push = jax.linearize(tail, x, written)
  unit = jnp.broadcast_to(jnp.eye(width, dtype=x.dtype), (*x.shape, width))
  zero = jnp.zeros_like(unit)
  by_input, by_write = (
    columns_of(push)(unit, zero),
    columns_of(push)(zero, unit),
  )
  return by_input[0], by_write[0]


def _writing(run: LayerSteps) -> Array:
  """[H, R, W] matrices with the norms of each head's output projection.

  ||W_O^h a|| = ||R^h a|| for its QR factor, at W rows instead of D.
  """
  cfg = run.cfg
  shape = (1, 1, cfg.n_heads, cfg.value_dim)
  write = functools.partial(run.project_out, None)
  _, push = jax.linearize(write, jnp.zeros(shape, cfg.dtype))
  many = cfg.n_heads * cfg.value_dim
  units = jnp.eye(many, dtype=cfg.dtype).reshape(*shape, many)
  kernel = columns_of(push)(units)[0, 0]
  kernel = kernel.reshape(-1, cfg.n_heads, cfg.value_dim).transpose(1, 0, 2)
  return each_matrix(functools.partial(jnp.linalg.qr, mode="r"), kernel)


def _head_gains(
  cfg: ModelConfig, fold: Fold, writing: Array
) -> tuple[Array, Array]:
  """copy_gain [H, S] and key_gain [H, T, S]."""
  length, kv = fold.keys.shape[0], cfg.n_kv_heads
  writing = writing.reshape(kv, cfg.group_size, *writing.shape[1:])
  by_input = (
    part.reshape(length, kv, -1, cfg.d_model)
    for part in jnp.split(fold.keys, [kv * cfg.head_dim], axis=1)
  )

  def source(d_k: Array, d_v: Array, by_score: Array) -> tuple[Array, Array]:
    copied = jnp.einsum("ngrk,nkd->ngrd", writing, d_v)
    moved = jnp.einsum("ngtk,nkd->ngtd", fold.queries, d_k)
    written = jnp.einsum("ngrk,ngtk->ngtr", writing, by_score)
    score = jnp.linalg.norm(moved, axis=-1)
    return top_singular(copied), score * jnp.linalg.norm(written, axis=-1)

  copy_gain, key_gain = jax.lax.map(
    lambda of: source(*of), (*by_input, jnp.moveaxis(fold.by_score, -1, 0))
  )
  heads = cfg.n_heads
  return (
    copy_gain.reshape(length, heads).T,
    jnp.moveaxis(key_gain.reshape(length, heads, length), 0, -1),
  )
