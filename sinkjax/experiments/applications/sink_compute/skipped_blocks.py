"""Which blocks of a model's attention could be left out: one pass, by layer.

For every head, every block of queries and every block of keys that these may
see: does the pattern allow to leave it out, and would a bound know? All of it
from the queries and keys that the model itself makes, one layer at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Subject
from sinkjax.inference import sparse_sink
from sinkjax.inference.block_bounds import (
  Span,
  choose_blocks,
  exact_span,
  near_weight,
  span_of,
)
from sinkjax.inference.key_codes import Codec, fit_codec
from sinkjax.models.attention import Context
from sinkjax.models.blocks import Block
from sinkjax.models.layerwise import apply_final_norm, as_layers, embed
from sinkjax.models.positions import rotary_tables
from sinkjax.models.transformer import check_tokens, forward
from sinkjax.taps import NO_TAPS, Tapper
from sinkjax.transforms.capture import capture

OFF = -1e30
ROWS_BOUND, ROWS_KNOWN = "whole rows, bound", "whole rows, oracle"
SUMMARIES, SCORES, ORACLE = "summaries", "scores", "oracle"
NO_SINK = ", no sink"
FLOOR = 1e-5
"""Rounding that is no breach of a bound, as a share of the largest value."""


def bits_name(bits: int | None) -> str:
  """What `span_of` is called here.

  >>> bits_name(6), bits_name(0), bits_name(None)
  ('6 bits', 'summaries', 'scores')
  """
  if bits is None:
    return SCORES
  return f"{bits} bits" if bits else SUMMARIES


def slack_name(nats: float) -> str:
  """Scores known within so much.

  >>> slack_name(0.5)
  'scores, 0.5 nats off'
  """
  return f"{SCORES}, {nats:g} nats off"


def check(cfg) -> None:
  """The bounds are of softmax attention and no other.

  Raises:
    ValueError: naming what the model has.
  """
  has = {
    "a normalizer other than softmax": cfg.normalizer != "softmax",
    "a soft cap of the scores": cfg.attn_softcap is not None,
    "a sink logit": cfg.sink_logit,
    "a bias of the attention": cfg.attn_bias != "none",
    "local layers": any(cfg.local_layers),
    "a scale that is not positive": cfg.score_scale <= 0,
  }
  found = [name for name, true in has.items() if true]
  if found:
    raise ValueError(
      "bounds are of plain softmax attention over all keys; this model has "
      + " and ".join(found)
    )


def inputs_of(subject: Subject, ids: np.ndarray) -> dict[str, np.ndarray]:
  """{"q", "k", "v"}: [L, B, T, H or N, K] of every layer.

  Cost: a pass, and the memory of all of them.
  """
  f = forward(subject.cfg.replace(attention="fused"))
  watch = {site: (site, lambda x: x) for site in "qkv"}
  out = jax.jit(capture(f, watch))(subject.params, jnp.asarray(ids))
  return {site: np.asarray(x) for site, x in out.trace.items()}


def fit_codecs(subject: Subject, ids: np.ndarray, block: int) -> list[Codec]:
  """A codec for each layer, fitted on texts [P, T].

  They should be as long as those that are measured: rotated keys move on.
  """
  seen = [inputs_of(subject, row[None]) for row in ids]
  codecs = []
  for layer in range(subject.cfg.n_layers):
    q, k = (np.concatenate([one[x][layer] for one in seen]) for x in "qk")
    codec = fit_codec(q, k, block=block)
    codecs.append(jax.tree.map(jnp.asarray, codec))
  return codecs


def through(
  subject: Subject, ids: np.ndarray, step: Callable[..., Any]
) -> tuple[jax.Array, Any]:
  """All layers one after the other.

  Args:
    subject: the model.
    ids: [T].
    step: `step(index, params, x, layer, ctx) -> (x, seen)`.

  Returns:
    (what the final norm returns [1, T, D], seen stacked over layers).
  """
  cfg, found = subject.cfg, []
  layers = as_layers(cfg, subject.params)
  tokens = check_tokens(cfg, jnp.asarray(ids))
  positions = jnp.arange(tokens.shape[1])[None]
  tables = (None, None)
  if cfg.positions == "rope":
    tables = rotary_tables(cfg, positions)
  with jax.default_matmul_precision(cfg.precision):
    x = embed(layers, tokens, positions)
    for i in range(cfg.n_layers):
      ctx = Context(*tables, None, None)
      x, seen = step(i, layers.layer(i), x, jnp.asarray(i), ctx)
      found.append(jax.tree.map(np.asarray, seen))
    x = apply_final_norm(cfg, layers.final_norm(), x)
  return x, jax.tree.map(lambda *each: np.stack(each), *found)


def _layer(cfg, params, x, layer, ctx, codec, head):
  """One layer, `head(q, k, v, codec) -> (z, seen)` for each of its heads."""
  tap = Tapper(NO_TAPS, layer)

  def apply(method, *args):
    return Block(cfg).apply({"params": params}, *args, method=method)

  q, k, v = apply(Block.qkv, x, layer, ctx, tap)
  group = cfg.group_size
  q = jnp.swapaxes(q[0], 0, 1)
  k, v = (jnp.repeat(jnp.swapaxes(y[0], 0, 1), group, axis=0) for y in (k, v))
  codec = jax.tree.map(lambda y: jnp.repeat(y, group, axis=0), codec)
  z, seen = jax.lax.map(lambda args: head(*args), (q, k, v, codec))
  mid = apply(Block.add_attention, x, jnp.swapaxes(z, 0, 1)[None], tap)
  return apply(Block.transform, x, mid, tap), seen


def _mix(scores, v, kept=None):
  """[T, K] causal attention of one head, of the kept blocks and key 0."""
  at = jnp.arange(len(scores))
  seen = at[None] <= at[:, None]
  if kept is not None:
    block = len(scores) // len(kept)
    kept = jnp.repeat(jnp.repeat(kept, block, axis=0), block, axis=1)
    seen &= kept | (at[None] == 0)
  return jax.nn.softmax(jnp.where(seen, scores, OFF), axis=-1) @ v


class Seen(NamedTuple):
  """What one pass finds, of every layer.

  Attributes:
    shares: {way: [L, H, E]} of (query block, key block) pairs left out, at
      each tolerance.
    slack: {way: [L, H]} mean of (upper bound - logarithm of the weight).
  """

  shares: dict[str, np.ndarray]
  slack: dict[str, np.ndarray]


def measure(
  subject: Subject, ids: np.ndarray, codecs: list[Codec], config: Any
) -> tuple[jax.Array, Seen]:
  """Every way to know, on one text.

  Args:
    subject: the model.
    ids: [T], a multiple of the block.
    codecs: of `fit_codecs`.
    config: of `sink_compute`.

  Returns:
    (what the final norm returns, `Seen`).

  Cost: a pass, and of each layer and way the span and a sort.
  """

  def step(i, *args):
    return _measured(*args, codecs[i], cfg=subject.cfg, config=config)

  x, seen = through(subject, ids, step)
  return x, Seen(*seen)


@functools.partial(jax.jit, static_argnames=("cfg", "config"))
def _measured(params, x, layer, ctx, codec, *, cfg, config):
  def head(q, k, v, codec):
    shares, slack = _ways(q, k, codec, cfg.score_scale, config)
    return _mix(cfg.score_scale * q @ k.T, v), (shares, slack)

  return _layer(cfg, params, x, layer, ctx, codec, head)


def _ways(q, k, codec, scale: float, config):
  """({way: [E]}, {way: []}) of one head."""
  how = {"scale": scale, "block": config.block}
  exact = exact_span(q, k, **how)
  spans = {
    bits_name(bits): span_of(q, k, codec, bits=bits, **how)
    for bits in (0, *config.bits)
  } | {SCORES: exact}
  count = exact.low.shape[1]
  free = jnp.tri(count, k=-config.window - 1, dtype=bool)
  free = jnp.repeat(free, config.block, axis=0)
  middle = (exact.low + exact.high) / 2
  slack = {
    name: jnp.sum(jnp.where(free, span.high - middle, 0)) / free.sum()
    for name, span in spans.items()
  }
  spans |= {
    slack_name(off): Span(exact.low - off, exact.high + off)
    for off in config.slacks
  }
  pairs = count * (count + 1) / 2
  tolerances = jnp.asarray(config.tolerances, q.dtype)

  def share(span, window, sink):
    near = near_weight(q, k, window=window, sink=sink, **how)
    kept = jax.vmap(
      lambda at: (
        choose_blocks(span, near, at, block=config.block, window=window).kept
      )
    )(tolerances)
    return 1 - kept.sum(axis=(1, 2)) / pairs

  shares = {n: share(span, config.window, True) for n, span in spans.items()}
  shares[ORACLE] = share(exact, -1, True)
  for name in (bits_name(config.best), SCORES):
    shares[name + NO_SINK] = share(spans[name], config.window, False)
  shares[ORACLE + NO_SINK] = share(exact, -1, False)
  return shares | _rows(q, k, scale, config), slack


def _rows(q, k, scale: float, config):
  """Blocks of queries that may read the first value alone."""
  one = (q[None, :, None], k[None, :, None])
  rests = {
    ROWS_BOUND: sparse_sink.rest_bound(
      *one, scale=scale, key_block=config.block
    ),
    ROWS_KNOWN: sparse_sink.rest_mass(*one, scale=scale),
  }
  pairs = jnp.arange(1, len(q) // config.block + 1)
  return {
    name: jnp.stack(
      [
        jnp.sum(
          jnp.where(
            sparse_sink.whole_blocks(rest, at, config.block)[0, 0], pairs, 0
          )
        )
        / pairs.sum()
        for at in config.tolerances
      ]
    )
    for name, rest in rests.items()
  }


class Skipped(NamedTuple):
  """What leaving blocks out does, of every layer and head.

  Attributes:
    share: [L, H] left out.
    worst: [L, H] greatest ||dz|| over its bound.
    error: [L, H] mean of ||dz|| / ||z||.
    bound: [L, H] mean of the bound of ||dz||, over ||z||.
  """

  share: np.ndarray
  worst: np.ndarray
  error: np.ndarray
  bound: np.ndarray


def skip(
  subject: Subject,
  ids: np.ndarray,
  codecs: list[Codec],
  config: Any,
  tolerance: float,
  bits: int | None,
) -> tuple[jax.Array, Skipped]:
  """A pass that leaves blocks out in all layers; errors are of each alone.

  Cost: as `measure` with one way.
  """

  def step(i, *args):
    return _skipped(
      *args,
      codecs[i],
      jnp.asarray(tolerance, jnp.float32),
      cfg=subject.cfg,
      config=config,
      bits=bits,
    )

  x, seen = through(subject, ids, step)
  return x, Skipped(*seen)


@functools.partial(jax.jit, static_argnames=("cfg", "config", "bits"))
def _skipped(params, x, layer, ctx, codec, tolerance, *, cfg, config, bits):
  how = {"scale": cfg.score_scale, "block": config.block}

  def head(q, k, v, codec):
    span = span_of(q, k, codec, bits=bits, **how)
    near = near_weight(q, k, window=config.window, **how)
    choice = choose_blocks(
      span, near, tolerance, block=config.block, window=config.window
    )
    scores = cfg.score_scale * q @ k.T
    whole, z = _mix(scores, v), _mix(scores, v, choice.kept)
    far = jax.lax.cummax(jnp.linalg.norm(v, axis=-1), axis=0)
    off = jnp.linalg.norm(z - whole, axis=-1)
    bound, size = 2 * choice.mass * far, jnp.linalg.norm(whole, axis=-1)
    count = len(choice.kept)
    return z, Skipped(
      1 - choice.kept.sum() / (count * (count + 1) / 2),
      jnp.max(off / (bound + FLOOR * far)),
      jnp.mean(off / size),
      jnp.mean(bound / size),
    )

  return _layer(cfg, params, x, layer, ctx, codec, head)
