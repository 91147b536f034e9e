"""How much the loss depends on each token: its gradient on the residual stream.

Works a layer at a time, so that weights read from disk layer by layer do.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax import sharding
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.layerwise import (
  Layers,
  Params,
  apply_block,
  apply_final_norm,
  as_layers,
)
from sinkjax.models.transformer import Columns, logits_of_columns
from sinkjax.taps import Layer, Tapper, Taps
from sinkjax.transforms.residual import (
  Point,
  context_of,
  enter,
  parse_point,
  taken_apart,
  with_shift,
)


def loss_sensitivity(
  fn: Callable,
  params: Any,
  tokens: Any,
  *,
  source: Any = "embed",
  positions: Any = None,
) -> np.ndarray:
  """`||d loss / d x_s||` for every token s.

  The loss is the mean negative log-likelihood of tokens 1..T-1, nats.

  Args:
    fn: `forward(cfg)`, or an `intervene` or `capture` of it.
    params: its parameters, or weights read layer by layer
      (`sinkjax.weights.offload`).
    tokens: one text [T], of at least two tokens.
    source: x: a residual site, or (site, layer); a bare site means layer 0.
    positions: as for `forward`.

  Returns:
    [T] float64, nats a unit of the residual stream. The last token predicts
    nothing that is counted: its entry is exactly 0.

  Raises:
    ValueError: for another shape, or a site or layer that is not there.
    TypeError: for a function that is none of ours.

  Cost: three forward passes; memory of one layer's activations, the residual
  stream before each layer, and 2 T V for the logits.

  >>> import sinkjax
  >>> cfg = sinkjax.TINY
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> norms = loss_sensitivity(sinkjax.forward(cfg), params, [1, 2, 3])
  >>> norms.shape, bool(norms[0] > 0), float(norms[2])
  ((3,), True, 0.0)
  """
  _, gradient = loss_gradient(
    fn, params, tokens, source=source, positions=positions
  )
  # In float32 the squares of small gradients would underflow.
  return np.sqrt(np.sum(gradient.astype(np.float64) ** 2, axis=-1))


def loss_gradient(
  fn: Callable,
  params: Any,
  tokens: Any,
  *,
  source: Any = "embed",
  positions: Any = None,
) -> tuple[float, np.ndarray]:
  """The loss and its gradient with respect to x, [T, D]; as above."""
  cfg, edits = taken_apart(fn, tokens)
  point, layers = parse_point(cfg, source, 0), as_layers(cfg, params)
  tokens = jnp.asarray(tokens)
  if tokens.ndim != 1 or tokens.shape[0] < 2:
    raise ValueError(
      f"tokens must be one text [T] of at least 2, got shape {tokens.shape}"
    )
  tokens = tokens[None]
  ctx, positions = context_of(cfg, tokens, positions)
  x = enter(layers, tokens, positions, edits)
  shift, entering = jnp.zeros_like(x), []
  block = functools.partial(
    _block, ctx=ctx, taps=Taps(dict(edits)), cfg=cfg, point=point
  )
  pull = functools.partial(
    _pull, ctx=ctx, taps=Taps(dict(edits)), cfg=cfg, point=point
  )
  for layer in range(cfg.n_layers):
    entering.append(x)  # all that the way back keeps of the way forward
    # Without waiting, layers would be read faster than they are used.
    x = jax.block_until_ready(block(layers.layer(layer), x, shift, layer))
  Taps(dict(edits)).require_numbers(x, "the activations")
  norm = layers.final_norm()
  ending = functools.partial(
    _ending, taps=Taps(dict(edits)), cfg=cfg, point=point
  )
  loss, d_final = _head(cfg, layers, ending(norm, x, shift), tokens)
  d_x, d_shift = ending(norm, x, shift, d_final)
  # Nothing below the point's layer depends on the shift, so the way back ends
  # there.
  first = 0 if point.site == "embed" else point.layer
  for layer in reversed(range(first, cfg.n_layers)):
    if point.site == "final":
      break
    d_x, d_shift = jax.block_until_ready(
      pull(layers.layer(layer), entering.pop(), shift, layer, d_x)
    )
  # The shift of "embed" is the stream itself: no layer adds it.
  gradient = d_x if point.site == "embed" else d_shift
  return float(loss), sharding.to_host(gradient[0])


def _run(
  params: Params,
  x: Array,
  shift: Array,
  layer: Layer,
  ctx: Context,
  taps: Taps,
  cfg: ModelConfig,
  point: Point,
) -> Array:
  """A layer with the shift in it, if it is that of the point."""
  with jax.default_matmul_precision(cfg.precision):
    taps = Taps(with_shift(taps.edits, point, shift))
    return apply_block(cfg, params, x, layer, ctx, taps)[0]


# The number of the layer is traced, so that all layers share one program.
_block = jax.jit(_run, static_argnames=("cfg", "point"))


@functools.partial(jax.jit, static_argnames=("cfg", "point"))
def _pull(
  params: Params,
  x: Array,
  shift: Array,
  layer: Layer,
  d_y: Array,
  *,
  ctx: Context,
  taps: Taps,
  cfg: ModelConfig,
  point: Point,
) -> tuple[Array, Array]:
  """A gradient through one layer: with respect to its input, and the shift."""
  _, pull = jax.vjp(
    lambda x, shift: _run(params, x, shift, layer, ctx, taps, cfg, point),
    x,
    shift,
  )
  return pull(d_y)


@functools.partial(jax.jit, static_argnames=("cfg", "point"))
def _ending(
  norm: Params,
  x: Array,
  shift: Array,
  d_final: Array | None = None,
  *,
  taps: Taps,
  cfg: ModelConfig,
  point: Point,
) -> Array | tuple[Array, Array]:
  """The last norm and its site; the gradient through them, if given one."""

  def final(x: Array, shift: Array) -> Array:
    edits = dict(taps.edits)
    with jax.default_matmul_precision(cfg.precision):
      x = apply_final_norm(cfg, norm, x)
      if point.site == "final":
        edits = with_shift(edits, point, shift)
      return Tapper(Taps(edits), cfg.n_layers - 1)("final", x)

  if d_final is None:
    return final(x, shift)
  return jax.vjp(final, x, shift)[1](d_final)


def _head(
  cfg: ModelConfig, layers: Layers, final: Array, tokens: Array
) -> tuple[Array, Array]:
  """The loss and its gradient at "final", some of the vocabulary at a time."""
  loss, d_logits = _loss(
    [_logits(final, columns, cfg=cfg) for columns in layers.unembedding()],
    tokens,
  )
  total = None
  for columns, d_piece in zip(layers.unembedding(), d_logits, strict=True):
    total = _pull_logits(final, columns, d_piece, total, cfg=cfg)
  return loss, total


@jax.jit
def _loss(pieces: list[Array], tokens: Array) -> tuple[Array, list[Array]]:
  """The loss, and its gradient with respect to every piece of the logits."""
  return jax.value_and_grad(
    lambda pieces: token_nll(jnp.concatenate(pieces, -1), tokens)[0]
  )(pieces)


@functools.partial(jax.jit, static_argnames="cfg")
def _logits(x: Array, columns: Columns, *, cfg: ModelConfig) -> Array:
  with jax.default_matmul_precision(cfg.precision):
    return logits_of_columns(cfg, x, columns)


@functools.partial(jax.jit, static_argnames="cfg")
def _pull_logits(
  x: Array,
  columns: Columns,
  d_logits: Array,
  total: Array | None,
  *,
  cfg: ModelConfig,
) -> Array:
  """`total` and the gradient of x through one piece of the logits."""
  _, pull = jax.vjp(lambda x: _logits(x, columns, cfg=cfg), x)
  return pull(d_logits)[0] + (0 if total is None else total)
