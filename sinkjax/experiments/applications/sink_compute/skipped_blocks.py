"""How much of a model's attention can be skipped: one pass, by layer.

For every head, every block of queries and every block of keys that these may
see: does the pattern allow to skip it, and can a bound prove so? All of it
from the queries and keys that the model itself computes, one layer at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.applications.sink_compute.config import (
  NO_SINK,
  ORACLE,
  ROWS_BOUND,
  ROWS_KNOWN,
  SCORES,
  Config,
  bits_name,
  slack_name,
)
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
from sinkjax.models.blocks import Block
from sinkjax.models.context import Context, place_context
from sinkjax.models.layerwise import apply_final_norm, as_layers, embed
from sinkjax.models.normalizers import MASKED
from sinkjax.models.transformer import check_tokens, forward
from sinkjax.taps import NO_TAPS, Tapper
from sinkjax.transforms.capture import capture

FLOOR = 1e-5
"""An error of this share of the largest value is rounding, no breach of a
bound: a float32 sum over a thousand values is off by about a tenth of it."""

By = dict[str, Array]
"""Arrays by the name of the way."""


def inputs_of(subject: Subject, ids: np.ndarray) -> dict[str, np.ndarray]:
  """{"q", "k", "v"}: [L, B, T, H or N, K] of every layer.

  Cost: a pass, and the memory of all of them.
  """
  # The pattern is not needed, and takes 0.6 GB a layer at 4096 tokens.
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


def run_layers(
  subject: Subject, ids: np.ndarray, step: Callable[..., Any]
) -> tuple[Array, Any]:
  """All layers one after the other.

  Args:
    subject: the model.
    ids: [T].
    step: `step(index, params, x, layer, ctx) -> (x, seen)`.

  Returns:
    (the output of the final norm [1, T, D], seen stacked over layers).
  """
  cfg, found = subject.cfg, []
  layers = as_layers(cfg, subject.params)
  tokens = check_tokens(cfg, jnp.asarray(ids))
  positions = jnp.arange(tokens.shape[1])[None]
  ctx = place_context(cfg, positions)
  with jax.default_matmul_precision(cfg.precision):
    x = embed(layers, tokens, positions)
    for i in range(cfg.n_layers):
      x, seen = step(i, layers.layer(i), x, jnp.asarray(i), ctx)
      # To the host: what is seen of all layers need not fit the device.
      found.append(jax.tree.map(np.asarray, seen))
    x = apply_final_norm(cfg, layers.final_norm(), x)
  return x, jax.tree.map(lambda *each: np.stack(each), *found)


def _layer(
  cfg: ModelConfig,
  params: Any,
  x: Array,
  layer: Array,
  ctx: Context,
  codec: Codec,
  head: Callable[..., tuple[Array, Any]],
) -> tuple[Array, Any]:
  """One layer, `head(q, k, v, codec) -> (z, seen)` for each of its heads."""
  tap = Tapper(NO_TAPS, layer)

  def apply(method: Callable, *args: Any) -> Any:
    return Block(cfg).apply({"params": params}, *args, method=method)

  q, k, v = apply(Block.qkv, x, layer, ctx, tap)
  group = cfg.group_size
  q = jnp.swapaxes(q[0], 0, 1)
  k, v = (jnp.repeat(jnp.swapaxes(y[0], 0, 1), group, axis=0) for y in (k, v))
  codec = jax.tree.map(lambda y: jnp.repeat(y, group, axis=0), codec)
  # Head by head: T x T scores of one head at a time.
  z, seen = jax.lax.map(lambda args: head(*args), (q, k, v, codec))
  mid = apply(Block.add_attention, x, jnp.swapaxes(z, 0, 1)[None], tap)
  return apply(Block.transform, x, mid, tap), seen


def _mix(scores: Array, v: Array, kept: Array | None = None) -> Array:
  """[T, K] causal attention of one head, of the kept blocks and key 0."""
  at = jnp.arange(len(scores))
  seen = at[None] <= at[:, None]
  if kept is not None:
    block = len(scores) // len(kept)
    kept = jnp.repeat(jnp.repeat(kept, block, axis=0), block, axis=1)
    seen &= kept | (at[None] == 0)
  return jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1) @ v


class Shares(NamedTuple):
  """What one pass finds, of every layer.

  Attributes:
    shares: {way: [L, H, E]} of (query block, key block) pairs that can be
      skipped, at each tolerance.
    slack: {way: [L, H]} mean of (upper bound - logarithm of the weight).
  """

  shares: dict[str, np.ndarray]
  slack: dict[str, np.ndarray]


def shares_of(
  subject: Subject, ids: np.ndarray, codecs: list[Codec], config: Config
) -> tuple[Array, Shares]:
  """Every way to know what can be skipped, on one text.

  Args:
    subject: the model.
    ids: [T], a multiple of the block.
    codecs: of `fit_codecs`.
    config: what is run.

  Returns:
    (the output of the final norm, `Shares`).

  Cost: a pass, and of each layer and way the span and a sort.
  """

  def step(i: int, *args: Any) -> tuple[Array, Any]:
    return _measured(*args, codecs[i], cfg=subject.cfg, config=config)

  x, seen = run_layers(subject, ids, step)
  return x, Shares(*seen)


@functools.partial(jax.jit, static_argnames=("cfg", "config"))
def _measured(
  params: Any,
  x: Array,
  layer: Array,
  ctx: Context,
  codec: Codec,
  *,
  cfg: ModelConfig,
  config: Config,
) -> tuple[Array, tuple[By, By]]:
  def head(
    q: Array, k: Array, v: Array, codec: Codec
  ) -> tuple[Array, tuple[By, By]]:
    spans = _spans(q, k, codec, cfg.score_scale, config)
    found = _shares(q, k, spans, cfg.score_scale, config)
    found |= _rows(q, k, cfg.score_scale, config)
    slack = _slack(spans, config)
    return _mix(cfg.score_scale * q @ k.T, v), (found, slack)

  return _layer(cfg, params, x, layer, ctx, codec, head)


def _spans(
  q: Array, k: Array, codec: Codec, scale: float, config: Config
) -> dict[str, Span]:
  """Bounds of one head from summaries, from codes and from all scores."""
  how = {"scale": scale, "block": config.block}
  return {
    bits_name(bits): span_of(q, k, codec, bits=bits, **how)
    for bits in (0, *config.bits)
  } | {SCORES: exact_span(q, k, **how)}


def _slack(spans: dict[str, Span], config: Config) -> By:
  """[] how far upper bounds are above the logarithm of a block's weight."""
  exact = spans[SCORES]
  free = jnp.tri(exact.low.shape[1], k=-config.window - 1, dtype=bool)
  free = jnp.repeat(free, config.block, axis=0)
  # The exact logarithm, up to the rounding that its span allows for.
  middle = (exact.low + exact.high) / 2
  return {
    name: jnp.sum(jnp.where(free, span.high - middle, 0)) / free.sum()
    for name, span in spans.items()
  }


def _shares(
  q: Array, k: Array, spans: dict[str, Span], scale: float, config: Config
) -> By:
  """[E] of one head by way: of blocks of keys that can be skipped."""
  how = {"scale": scale, "block": config.block}
  exact = spans[SCORES]
  count = exact.low.shape[1]
  # An array to vmap over: one program for every tolerance.
  tolerances = jnp.asarray(config.tolerances, q.dtype)

  def share(span: Span, window: int, sink: bool) -> Array:
    near = near_weight(q, k, window=window, sink=sink, **how)
    choose = functools.partial(
      choose_blocks, span, near, block=config.block, window=window
    )
    kept = jax.vmap(lambda at: choose(at).kept)(tolerances)
    return 1 - kept.sum(axis=(1, 2)) / (count * (count + 1) / 2)

  slacks = {
    slack_name(off): Span(exact.low - off, exact.high + off)
    for off in config.slacks
  }
  found = {
    name: share(span, config.window, True)
    for name, span in (spans | slacks).items()
  }
  # With the pattern known nothing has to be read to prove a bound.
  found[ORACLE] = share(exact, -1, True)
  for name in (bits_name(config.best), SCORES):
    found[name + NO_SINK] = share(spans[name], config.window, False)
  return found | {ORACLE + NO_SINK: share(exact, -1, False)}


def _rows(q: Array, k: Array, scale: float, config: Config) -> By:
  """[E] by way: of blocks of queries that may read the first value alone."""
  one = (q[None, :, None], k[None, :, None])
  masses = {
    ROWS_BOUND: sparse_sink.nonsink_mass_bound(
      *one, scale=scale, key_block=config.block
    ),
    ROWS_KNOWN: sparse_sink.nonsink_mass(*one, scale=scale),
  }
  # A block of queries that is skipped saves all the blocks it can see.
  pairs = jnp.arange(1, len(q) // config.block + 1)

  def share(mass: Array, at: float) -> Array:
    whole = sparse_sink.whole_blocks(mass, at, config.block)[0, 0]
    return jnp.sum(jnp.where(whole, pairs, 0)) / pairs.sum()

  return {
    name: jnp.stack([share(mass, at) for at in config.tolerances])
    for name, mass in masses.items()
  }


class Skipped(NamedTuple):
  """The effect of skipping blocks, of every layer and head.

  Attributes:
    share: [L, H] skipped.
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
  config: Config,
  tolerance: float,
  bits: int | None,
) -> tuple[Array, Skipped]:
  """A pass that skips blocks in all layers; errors are of each layer alone.

  Cost: as `shares_of` with one way.
  """

  def step(i: int, *args: Any) -> tuple[Array, Any]:
    at = jnp.asarray(tolerance, jnp.float32)
    static = {"cfg": subject.cfg, "config": config, "bits": bits}
    return _skipped(*args, codecs[i], at, **static)

  x, seen = run_layers(subject, ids, step)
  return x, Skipped(*seen)


@functools.partial(jax.jit, static_argnames=("cfg", "config", "bits"))
def _skipped(
  params: Any,
  x: Array,
  layer: Array,
  ctx: Context,
  codec: Codec,
  tolerance: Array,
  *,
  cfg: ModelConfig,
  config: Config,
  bits: int | None,
) -> tuple[Array, Skipped]:
  how = {"scale": cfg.score_scale, "block": config.block}

  def head(q: Array, k: Array, v: Array, codec: Codec) -> tuple[Array, Skipped]:
    span = span_of(q, k, codec, bits=bits, **how)
    near = near_weight(q, k, window=config.window, **how)
    choice = choose_blocks(
      span, near, tolerance, block=config.block, window=config.window
    )
    scores = cfg.score_scale * q @ k.T
    whole, z = _mix(scores, v), _mix(scores, v, choice.kept)
    # A query mixes values up to its own position, so the longest of these.
    far = jax.lax.cummax(jnp.linalg.norm(v, axis=-1), axis=0)
    off = jnp.linalg.norm(z - whole, axis=-1)
    bound, size = 2 * choice.mass * far, jnp.linalg.norm(whole, axis=-1)
    count = len(choice.kept)
    return z, Skipped(
      1 - choice.kept.sum() / (count * (count + 1) / 2),
      # Where nothing is skipped the bound is 0, and the error is rounding.
      jnp.max(off / (bound + FLOOR * far)),
      jnp.mean(off / size),
      jnp.mean(bound / size),
    )

  return _layer(cfg, params, x, layer, ctx, codec, head)
