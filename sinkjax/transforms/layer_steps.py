"""One layer with its edits, step by step, and its own linearisation.

Analyses that treat a layer's token-local steps apart from its mixing run them
from here, so that what they differentiate is what the model computes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax.config import ModelConfig
from sinkjax.model_edits import reads_of
from sinkjax.models.attention import Attention
from sinkjax.models.blocks import Block
from sinkjax.models.context import Context, mask_of
from sinkjax.models.layerwise import (
  Params,
  apply_block,
  apply_final_norm,
  methods_of,
)
from sinkjax.taps import GATE_SITES, Layer, Tapper, Taps

Edits = Mapping[str, Any]
Residual = Float[Array, "1 T D"]
QKV = tuple[Array, Array, Array]

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


class LayerSteps:
  """The steps of one layer with its edits, on one row of tokens.

  What each does is said at the method of `Block` or `Attention` that it runs.
  Modules are made anew in every call: Flax refuses one that was made
  outside the JAX transform that is being traced.

  Args:
    cfg: the model.
    params: one block's parameters.
    layer: its index.
    ctx: rotary tables and masks.
    edits: `{site: edit}`.
    x: what enters the layer; with `depth="routed"` it says which keys are
      seen.
  """

  def __init__(
    self,
    cfg: ModelConfig,
    params: Params,
    layer: Layer,
    ctx: Context,
    edits: Edits,
    x: Residual | None = None,
  ):
    hidden = sorted(set(GATE_SITES) & set(edits))
    if hidden:
      # A layer is taken apart before and behind its gates, not between.
      raise ValueError(
        f"an exact Jacobian takes no edit at {hidden[0]!r}; edit site 'z'"
      )
    for site, edit in edits.items():
      if reads := reads_of(edit):
        # The steps around its site are differentiated apart from those of the
        # sites that it reads, whose part would be lost.
        raise ValueError(
          f"the edit at {site!r} reads {', '.join(reads)} of its layer, and an "
          "exact Jacobian takes the layer apart between them; use "
          'method="reference" or jax.jacfwd'
        )
    self.cfg, self.layer, self.ctx = cfg, layer, ctx
    self.edits = edits
    self.tap = Tapper(Taps(edits), layer)
    self._block = methods_of(Block(cfg), params)
    self._attention = methods_of(Attention(cfg), params["attn"])
    if cfg.depth == "routed":
      if x is None:
        raise ValueError(
          "this takes layers apart and does not know which tokens "
          "depth='routed' hides from it"
        )
      ctx = self._block(Block.seen, self.enter(x), ctx, self.tap)
    self.mask = mask_of(cfg, ctx, layer)

  def enter(self, x: Residual) -> Residual:
    """What enters the layer -> `resid_pre`."""
    return self.tap(PRE, x)

  def read(self, pre: Residual) -> Residual:
    return self._block(Block.read, pre, self.tap)

  def project_qkv(self, normed: Residual) -> QKV:
    return self._attention(Attention.project_qkv, normed)

  def norm_and_rotate_qk(self, q: Array, k: Array, v: Array) -> QKV:
    """(q, k, v) as projected -> as they enter the dot product."""
    q, k = self._attention(
      Attention.norm_and_rotate_qk, q, k, self.ctx, self.layer
    )
    return self.tap("q", q), self.tap("k", k), self.tap("v", v)

  def qkv(self, pre: Residual) -> QKV:
    return self._block(Block.qkv, pre, self.layer, self.ctx, self.tap)

  def score(self, q: Array, k: Array) -> Array:
    return self._attention(Attention.score, q, k, self.ctx.distance())

  def sink_logits(self, q: Array) -> Array | None:
    return self._attention(Attention.sink_logits, q)

  def attend(self, scores: Array, v: Array, sinks: Array | None) -> Array:
    given = (scores, v, self.mask, self.tap, sinks)
    return self._attention(Attention.attend, *given)

  def mix(self, q: Array, k: Array, v: Array) -> Array:
    given = (q, k, v, self.mask, self.tap, self.ctx.distance())
    return self._block(Block.mix, *given)

  def heads(self, normed: Residual | None, z: Array, v: Array) -> Array:
    """(what the attention reads, what heads mix, values) -> z."""
    return self._attention(Attention.heads, z, v, normed, self.tap)

  def outputs(
    self, normed: Residual | None, q: Array, k: Array, v: Array
  ) -> Array:
    """(what the attention reads, q, k, v) -> z."""
    return self.heads(normed, self.mix(q, k, v), v)

  def project_out(self, pre: Residual | None, z: Array) -> Array:
    return self._block(Block.project_out, pre, z, self.tap)

  def join(self, pre: Residual, attn_out: Residual) -> Residual:
    return self._block(Block.join, pre, attn_out, self.tap)

  def mlp_read(self, x: Residual) -> Residual:
    return self._block(Block.mlp_read, x, self.tap)

  def mlp_linear(self, normed: Residual) -> tuple[Array, ...]:
    return self._block(Block.mlp_linear, normed)

  def mlp_activate(self, *pre: Array) -> Residual:
    return self._block(Block.mlp_activate, *pre, tap=self.tap)

  def mlp_output(self, x: Residual) -> Residual:
    return self._block(Block.mlp_output, x, self.tap)

  def finish(self, pre: Residual, mid: Residual, mlp_out: Residual) -> Residual:
    return self._block(Block.finish, pre, mid, mlp_out, self.tap)

  def middle(self, pre: Residual) -> Residual:
    """`resid_pre` -> `resid_mid`."""
    z = self.outputs(self.read(pre), *self.qkv(pre))
    return self.join(pre, self.project_out(pre, z))

  def tail(self, pre: Residual, mid: Residual) -> Residual:
    """(`resid_pre`, `resid_mid`) -> `resid_post`."""
    read = pre if self.cfg.parallel_residual else mid
    return self.finish(pre, mid, self.mlp_output(read))

  def split(self, x: Array, segment: Segment) -> tuple[Callable, Array]:
    """(f, value at its start): the segment is f, [1, T, D] to [1, T, D]."""
    pre = self.enter(x)
    if segment.start == MID:
      return (lambda mid: self.tail(pre, mid)), self.middle(pre)

    def after(pre: Array) -> Array:
      if segment.stop == PRE:
        return pre
      mid = self.middle(pre)
      return mid if segment.stop == MID else self.tail(pre, mid)

    if segment.start == PRE:
      return after, pre
    return (lambda x: after(self.enter(x))), x


def columns_of(push: Callable) -> Callable:
  """A linear map on each of [..., M] columns."""
  return jax.vmap(push, in_axes=-1, out_axes=-1)


def _local(
  fn: Callable,
  edits: Edits,
  sites: tuple[str, ...],
  first: int,
  primals: tuple[Array, ...],
  tangents: tuple[Array, ...],
) -> Array:
  """A token-local function's tangents; all tokens are run if one is edited.

  An edit may count tokens, so it must see the whole row.
  """
  # Otherwise the tokens before the first one that moves need not be run.
  skip = 0 if any(site in edits for site in sites) else first
  _, push = jax.linearize(fn, *(p[:, skip:] for p in primals))
  padded = [
    jnp.pad(t, [(first - skip, 0)] + [(0, 0)] * (t.ndim - 1))[None]
    for t in tangents
  ]
  out = jax.vmap(push, in_axes=-1, out_axes=-1)(*padded)
  return out[0, first - skip :]


@functools.partial(
  jax.jit, static_argnames=("cfg", "segment"), donate_argnames="d_x"
)
def push_directly(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  layer: Layer,
  ctx: Context,
  edits: Edits,
  d_x: Array,
  *,
  segment: Segment = WHOLE,
) -> Array:
  """Tangents through one layer by its own linearisation, [T, D, X].

  As `push_folded`, on all tokens and assuming nothing of the edits.
  """
  with jax.default_matmul_precision(cfg.precision):
    run = LayerSteps(cfg, params, layer, ctx, edits, x)
    fn, at = run.split(x, segment)
    _, push = jax.linearize(fn, at)
    return jax.vmap(push, in_axes=-1, out_axes=-1)(d_x[None])[0]


@functools.partial(jax.jit, static_argnames=("cfg", "first"))
def push_final(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  edits: Edits,
  d_x: Array,
  *,
  first: int,
) -> Array:
  """Tangents through the final norm and the edit at "final", [W, D, X]."""

  def fn(x: Array) -> Array:
    tap = Tapper(Taps(edits), cfg.n_layers - 1)
    return tap("final", apply_final_norm(cfg, params, x))

  return _local(fn, edits, ("final",), first, (x,), (d_x,))


@functools.partial(jax.jit, static_argnames="cfg")
def run_layer(
  cfg: ModelConfig,
  params: Params,
  x: Array,
  layer: Layer,
  ctx: Context,
  edits: Edits,
) -> Array:
  """The layer itself, [1, T, D] to [1, T, D]."""
  with jax.default_matmul_precision(cfg.precision):
    return apply_block(cfg, params, x, layer, ctx, Taps(edits))[0]
