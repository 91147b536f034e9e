"""Norms of the loss's gradient at every token and layer: gradient sinks.

Chen et al. (2026, arXiv 2603.17771) call it a gradient sink where backward
passes through attention gather on one token, and understand a massive
activation as an answer to it: a norm layer passes gradients back times about
one over the size of what it normalises. Which places in a layer they compare
is our reading: before and after each of its norms, and the residual stream.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax import sharding
from sinkjax.analysis.sink_profile import token_nll
from sinkjax.config import ModelConfig
from sinkjax.models.context import Context
from sinkjax.models.transformer import check_tokens, forward
from sinkjax.taps import Layer
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import chain, pytree_dataclass
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.layer_steps import LayerSteps
from sinkjax.transforms.residual import context_of, taken_apart

SHIFTED = ("resid_pre", "attn_in", "mlp_in", "resid_post")


class GradientNorms(NamedTuple):
  """Of one text: `||d loss / d value||` at every layer and token.

  With x what a norm reads, n = norm(x) what its branch reads and g = d loss /
  d n, what comes back through the norm is J^T g, for RMS norms with scale w

      J^T g = (w g - x <x, w g> / (D r^2)) / r,   r = sqrt(mean x^2 + eps)

  so that its norm is at most max |w| ||g|| / r. The rest of the gradient of
  the residual stream comes past the branch.

  Attributes:
    loss: mean negative log-likelihood of tokens 1..T-1, nats.
    stream: [L + 1, T] at the residual stream before every layer and after the
      last.
    attn_in: [L, T] ||g|| at what the attention reads.
    attn_through: [L, T] ||J^T g||, which the attention adds to the stream's.
    attn_factor: [L, T] 1 / r of the attention's norm; 1 where it has none.
    mlp_in: [L, T] as `attn_in`, of the MLP.
    mlp_through: [L, T] likewise.
    mlp_factor: [L, T] likewise.
  """

  loss: float
  stream: np.ndarray
  attn_in: np.ndarray
  attn_through: np.ndarray
  attn_factor: np.ndarray
  mlp_in: np.ndarray
  mlp_through: np.ndarray
  mlp_factor: np.ndarray


@pytree_dataclass
class ShiftEach:
  """Adds to every layer's value a shift of its own, [L, ...]."""

  shift: Any

  def __call__(self, value: Array, layer: Layer) -> Array:
    """The shifted value."""
    return value + self.shift[layer]


def gradient_norms(fn: Callable, params: Any, tokens: Any) -> GradientNorms:
  """Norms of the loss's gradient beside what the norm layers make of them.

  The last token predicts nothing that is counted, so its own are zero.

  Args:
    fn: `forward(cfg)`, or an `intervene` or `capture` of it.
    params: its parameters, in memory.
    tokens: one text [T], of at least two tokens.

  Raises:
    ValueError: for another shape.
    TypeError: for a function that is none of ours.

  Cost: one forward and one backward pass, each norm once more; memory of all
  layers' activations.

  >>> import jax, sinkjax
  >>> params = sinkjax.init_params(sinkjax.TINY, jax.random.key(0))
  >>> f = sinkjax.forward(sinkjax.TINY)
  >>> found = gradient_norms(f, params, jax.numpy.array([1, 2, 3]))
  >>> found.stream.shape, found.attn_in.shape, float(found.stream[0, 2])
  ((4, 3), (3, 3), 0.0)
  """
  cfg, edits = taken_apart(fn, tokens)
  tokens = jnp.asarray(tokens)
  if tokens.ndim != 1 or tokens.shape[0] < 2:
    raise ValueError(
      f"tokens must be one text [T] of at least 2, got shape {tokens.shape}"
    )
  if not (isinstance(params, dict) and "blocks" in params):
    raise ValueError("gradient_norms needs parameters in memory")
  tokens = check_tokens(cfg, tokens[None])
  ctx, _ = context_of(cfg, tokens)
  loss, *found = _gradients(cfg, params, tokens, ctx, edits)
  fn.taps.require_numbers(loss, "the loss")

  def norms(gradient: Array) -> np.ndarray:
    # In float32 the squares of small gradients would underflow.
    wide = sharding.to_host(gradient, np.float64)
    return np.sqrt((wide[:, 0] ** 2).sum(axis=-1))

  grads, through, factors = found
  stream = jnp.concatenate([grads["resid_pre"], grads["resid_post"][-1:]])
  parts = [norms(stream)]
  for name in ("attn_in", "mlp_in"):
    factor = sharding.to_host(factors[name], np.float64)[:, 0]
    parts += [norms(grads[name]), norms(through[name]), factor]
  return GradientNorms(float(loss), *parts)


@functools.partial(jax.jit, static_argnames="cfg")
def _gradients(
  cfg: ModelConfig,
  params: dict[str, Any],
  tokens: Array,
  ctx: Context,
  edits: Mapping[str, Any],
) -> tuple[Array, dict[str, Array], dict[str, Array], dict[str, Array]]:
  """The loss, its gradients at sites, those through norms, and 1 / r."""
  shape = (cfg.n_layers, *tokens.shape, cfg.d_model)
  # With a parallel residual the MLP reads what the attention does.
  reads = "resid_pre" if cfg.parallel_residual else "resid_mid"
  keep = {"attn_in": ("resid_pre", lambda x: x), "mlp_in": (reads, lambda x: x)}

  def loss(shifts: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    moved = dict(edits)
    for site, shift in shifts.items():
      mine = ShiftEach(shift)
      # After the site's own edit, or a replacing edit would make it zero.
      moved[site] = chain(moved[site], mine) if site in moved else mine
    run = capture(intervene(forward(cfg), moved), keep)
    out = run(params, tokens)
    return token_nll(out.logits, tokens)[0], out.trace

  shifts = {site: jnp.zeros(shape, cfg.dtype) for site in SHIFTED}
  (value, read), grads = jax.value_and_grad(loss, has_aux=True)(shifts)

  def pulled(name: str, inputs: tuple) -> Array:
    block, layer, x, gradient = inputs
    steps = LayerSteps(cfg, block, layer, ctx, edits, x)
    step = steps.read if name == "attn_in" else steps.mlp_read
    return jax.vjp(step, x)[1](gradient)[0]

  layers = jnp.arange(cfg.n_layers)
  through = {
    name: jax.lax.map(
      functools.partial(pulled, name),
      (params["blocks"], layers, read[name], grads[name]),
    )
    for name in keep
  }
  factors = {name: _factor(cfg, x) for name, x in read.items()}
  return value, grads, through, factors


def _factor(cfg: ModelConfig, x: Array) -> Array:
  """What a norm multiplies by, before its scale."""
  if not cfg.pre_norms:
    return jnp.ones_like(x[..., 0])
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if cfg.norm == "layer":
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  return jax.lax.rsqrt(jnp.mean(x * x, axis=-1) + cfg.norm_eps)
