"""One layer with its edits, step by step, and its own linearisation.

Analyses that treat a layer's token-local steps apart from its mixing run them
from here, so that what they differentiate is what the model computes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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


class LayerSteps:
  """A block's methods at one layer with its edits, on one row of tokens."""

  def __init__(self, cfg, params, layer, ctx, edits):
    self.cfg, self.layer, self.ctx = cfg, layer, ctx
    self.edits = edits
    self.tap = Tapper(Taps(edits), layer)
    self.mask = mask_of(cfg, ctx, layer)
    block = Block(cfg)

    def method(unbound, **given):
      return lambda *args: block.apply(
        {"params": params}, *args, method=unbound, **given
      )

    tap = self.tap
    self.read = method(Block.read, tap=tap)
    self.linear, self.score = method(Block.linear), method(Block.score)
    self.mlp_read = method(Block.mlp_read, tap=tap)
    self.mlp_linear = method(Block.mlp_linear)
    self.activate = method(Block.mlp_activate, tap=tap)
    self.transform = method(Block.mlp_output, tap=tap)
    turn, weigh = method(Block.turn), method(Block.weigh)
    join, finish = method(Block.join), method(Block.finish)
    qkv, mix = method(Block.qkv), method(Block.mix)

    def turned(q, k, v):
      q, k = turn(q, k, ctx, layer)
      return tap("q", q), tap("k", k), tap("v", v)

    self.turned = turned
    self.qkv = lambda pre: qkv(pre, layer, ctx, tap)
    self.rest = method(Block.rest)
    self.weigh = lambda scores, v, rest: weigh(scores, v, self.mask, tap, rest)
    self.mix = lambda q, k, v: mix(q, k, v, self.mask, tap)
    self.write = method(Block.write, tap=tap)
    self.join = lambda pre, attn_out: join(pre, attn_out, tap)
    self.finish = lambda mid, out: finish(mid, out, tap)
    self.enter = lambda x: tap(PRE, x)

  def middle(self, pre):
    return self.join(pre, self.write(pre, self.mix(*self.qkv(pre))))

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


def columns_of(push):
  """A linear map on each of [..., M] columns."""
  return jax.vmap(push, in_axes=-1, out_axes=-1)


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
  jax.jit, static_argnames=("cfg", "segment"), donate_argnames="d_x"
)
def push_directly(cfg, params, x, layer, ctx, edits, d_x, *, segment=WHOLE):
  """Tangents through one layer by its own linearisation, [T, D, X].

  As `push_folded`, on all tokens and assuming nothing of the edits.
  """
  with jax.default_matmul_precision(cfg.precision):
    run = LayerSteps(cfg, params, layer, ctx, edits)
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
