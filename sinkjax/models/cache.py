"""The model a few tokens at a time, on top of what a cache keeps.

`advance` walks through the very methods that `forward` runs, in
the einsum form whatever `cfg.attention` says. What of the past is kept, and
at which positions it is seen, is a `Policy`'s, see
`sinkjax.inference.kv_policy`: it alone touches keys and values. All shapes
are fixed, so that nothing compiles again while tokens stream.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.models.attention import Attention
from sinkjax.models.blocks import Block
from sinkjax.models.context import Context
from sinkjax.models.layerwise import (
  apply_final_norm,
  as_layers,
  embed,
  final_norm_of,
  methods_of,
)
from sinkjax.models.transformer import logits_of
from sinkjax.taps import Tapper, Taps

Params = dict[str, Any]

CHUNK = 64
"""Tokens that a cache takes at once, if nothing else is said.

A prompt is read at the rate of matrix products, and the slots beyond the
capacity that a chunk needs stay few.
"""
LOGITS = ("all", "last", "none")
ROW_SITES = ("scores", "pattern")
NOT_ROTATED = Context(None, None, None, None)
"""A context in which `norm_and_rotate_qk` normalises and does not rotate."""


class Cache(NamedTuple):
  """What is kept of the past: a pytree of fixed shapes.

  Attributes:
    layers: for each layer what the policy keeps.
    length: [B] tokens that have gone by, kept or not.
  """

  layers: tuple
  length: Int[Array, "B"]


@runtime_checkable
class Policy(Protocol):
  """What a cache keeps of the past. Hashable, all static."""

  chunk: int
  """Most tokens that can be taken in at once."""

  limit: int | None
  """Tokens after which there is no more room, `None` for no limit."""

  def check(self, cfg: ModelConfig) -> None:
    """Raises ValueError for a model that it cannot serve."""
    ...

  def init(self, cfg: ModelConfig, batch: int, layer: int) -> Any:
    """One layer's empty cache, whose leaves have the rows first."""
    ...

  def prepare(self, cfg: ModelConfig, length: Array, real: Array) -> Any:
    """What all layers share for tokens [B, T], `real` where not padding."""
    ...

  def attend(
    self,
    apply: Callable,
    cfg: ModelConfig,
    qkv: tuple[Array, Array, Array],
    layer: int,
    kept: Any,
    shared: Any,
  ) -> tuple[Array, Any]:
    """(z [B, T, H, K], the layer's cache with the new tokens in it).

    `apply(method, *args)` runs a method of the layer's `Attention`; `qkv` are
    normalised where the model does so, and not yet rotated. A policy that knows
    which token each of its slots holds has `edits_rows = True` and takes
    `edits`, those at "scores" and "pattern", by their method `at`. With
    `depth="routed"` it is told by `open` [B, T] which tokens take the layer,
    and hides the others from later queries.
    """
    ...


def split_layers(params: dict[str, Any]) -> dict[str, Any]:
  """The parameters with `blocks` a tuple of one tree a layer.

  A compiled step then reads each matrix where it lies; from the stacked tree
  it would copy every layer's first. Doubles the memory of the blocks as long
  as the stacked tree is held.
  """
  blocks = params["blocks"]
  if isinstance(blocks, tuple):
    return params
  count = len(jax.tree.leaves(blocks)[0])  # the layer axis of any leaf
  return {**params, "blocks": tuple(_pick(blocks, i) for i in range(count))}


def init_cache(cfg: ModelConfig, policy: Policy, batch: int = 1) -> Cache:
  """An empty cache.

  Raises:
    ValueError: for a model that the policy cannot serve.
  """
  policy.check(cfg)
  layers = tuple(policy.init(cfg, batch, i) for i in range(cfg.n_layers))
  return Cache(layers, jnp.zeros(batch, jnp.int32))


def advance(
  cfg: ModelConfig, policy: Policy, *, logits: str = "all"
) -> Callable:
  """The model as a function of new tokens and a cache.

  Args:
    cfg: the model; edits that `sinkjax.edited` put into it act as in `forward`,
      keys being tokens of the text, kept or not.
    policy: what the cache keeps.
    logits: of "all" new tokens, of the "last" real one of each row
      ([B, 1, V]), or "none" ([B, 0, V]).

  Returns:
    `step(params, tokens, cache, *, count=None) -> (logits, Cache)` with tokens
    [B, T], T at most `policy.chunk`. Of each row the first `count` [B] tokens
    are real and the rest is padding, which leaves no trace in the cache; its
    logits mean nothing. `params` is a parameter tree, best by `split_layers`.
    To be jitted, the cache donated. Neither ids nor `policy.limit` are
    checked: shapes cannot tell.

  Raises:
    ValueError: for a model, or an edit, that the policy cannot serve, or (by
      step, while tracing) more tokens at once than the policy takes.

  Cost: that of the model on T tokens, and reading the cache once.

  >>> import jax, sinkjax
  >>> from sinkjax.inference import kv_policy
  >>> cfg, policy = sinkjax.TINY, kv_policy.sinks(2, 6, chunk=4)
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> step = advance(cfg, policy)
  >>> tokens = jnp.array([[5, 6, 7]])
  >>> logits, cache = step(params, tokens, init_cache(cfg, policy))
  >>> logits.shape, int(cache.length[0])
  ((1, 3, 64), 3)
  """
  cfg, edits = cfg.apart()
  policy.check(cfg)
  check_edits(edits, policy)
  taps = Taps(edits).placed(cfg, cfg.max_len)
  if logits not in LOGITS:
    raise ValueError(f"logits must be one of {list(LOGITS)}, got {logits!r}")

  def step(
    params: Params,
    tokens: Int[Array, "B T"],
    cache: Cache,
    *,
    count: Int[Array, "B"] | None = None,
  ) -> tuple[Array, Cache]:
    batch, length = tokens.shape
    if length > policy.chunk:
      raise ValueError(
        f"this cache takes {policy.chunk} tokens at a time, got {length}: make "
        "the policy with a larger chunk, or feed fewer"
      )
    if count is None:
      count = jnp.full(batch, length, jnp.int32)
    with jax.default_matmul_precision(cfg.precision):
      x, layers = _walk(cfg, policy, taps, params, tokens, cache, count)
      out = _logits(cfg, params, x, count, logits)
    out = mesh_context.returned(out)
    return out, Cache(layers, cache.length + count)

  return step


def check_edits(edits: dict[str, Any], policy: Policy) -> None:
  """Raises ValueError for edits that have no meaning in a cache."""
  for site in ("q", "k"):
    if site in edits:
      raise ValueError(
        f"an edit at {site!r} is of rotated vectors, and a cache keeps them as "
        "they are before: edit another site"
      )
  rows = [site for site in ROW_SITES if site in edits]
  if rows and not getattr(policy, "edits_rows", False):
    raise ValueError(
      f"an edit at {rows[0]!r} names tokens, and this cache, which keeps "
      "others in each head, does not know which one is where: use the policy "
      "full, window or sinks"
    )


def _walk(
  cfg: ModelConfig,
  policy: Policy,
  taps: Taps,
  params: Params,
  tokens: Int[Array, "B T"],
  cache: Cache,
  count: Int[Array, "B"],
) -> tuple[Array, tuple]:
  """(what the final norm returns, every layer's cache)."""
  steps = jnp.arange(tokens.shape[1])[None]
  at = cache.length[:, None] + steps
  x = Tapper(taps, 0)("embed", embed(as_layers(cfg, params), tokens, at))
  shared = policy.prepare(cfg, cache.length, steps < count[:, None])
  layers = []
  # Unrolled, so that each layer's parameters and cache are read where they lie.
  for i in range(cfg.n_layers):
    layer = _pick(params["blocks"], i)
    x, kept = _block(cfg, policy, taps, layer, x, i, cache.layers[i], shared)
    layers.append(kept)
  x = apply_final_norm(cfg, final_norm_of(params), x)
  return Tapper(taps, cfg.n_layers - 1)("final", x), tuple(layers)


def _pick(blocks: Any, i: int) -> Params:
  """One layer's parameters."""
  if isinstance(blocks, tuple):
    return blocks[i]
  return jax.tree.map(lambda x: x[i], blocks)


def _block(
  cfg: ModelConfig,
  policy: Policy,
  taps: Taps,
  params: Params,
  pre: Float[Array, "B T D"],
  layer: int,
  kept: Any,
  shared: Any,
) -> tuple[Array, Any]:
  """One layer: `Block.__call__` with the policy between qkv and z.

  A layer that no new token takes is skipped where `_skips` says so.
  """
  if not _skips(cfg, taps, pre):
    return _whole_block(cfg, policy, taps, params, pre, layer, kept, shared)
  taken = methods_of(Block(cfg), params)(Block.taken, pre, Tapper(taps, layer))
  given = cfg, policy, taps, params, pre, layer
  return jax.lax.cond(
    jnp.any(taken > 0),
    lambda kept: _whole_block(*given, kept, shared),
    lambda kept: (pre, _skipped_block(*given, kept, shared)),
    kept,
  )


def _skips(cfg: ModelConfig, taps: Taps, pre: Float[Array, "B T D"]) -> bool:
  """Whether there is a branch in which a layer is skipped.

  Of many tokens some take the layer in any case; and an edit may write what a
  token that does not take it has in it.
  """
  return cfg.depth != "none" and pre.shape[1] == 1 and not taps.edits


def _skipped_block(
  cfg: ModelConfig,
  policy: Policy,
  taps: Taps,
  params: Params,
  pre: Float[Array, "B T D"],
  layer: int,
  kept: Any,
  shared: Any,
) -> Any:
  """A layer's cache with a token in it that does not take the layer.

  What it would mix is not used, and so is not computed.
  """
  attention = methods_of(Attention(cfg), params["attn"])
  read = methods_of(Block(cfg), params)(Block.read, pre, Tapper(taps, layer))
  qkv = attention(Attention.project_qkv, read)
  own = {}
  if cfg.depth == "routed":  # its keys are not read: they need not be made
    qkv = jax.tree.map(jnp.zeros_like, qkv)
    own = {"open": jnp.zeros(pre.shape[:2], bool)}
  q, k, v = qkv
  q, k = attention(Attention.norm_and_rotate_qk, q, k, NOT_ROTATED, layer)
  return policy.attend(attention, cfg, (q, k, v), layer, kept, shared, **own)[1]


def _whole_block(
  cfg: ModelConfig,
  policy: Policy,
  taps: Taps,
  params: Params,
  pre: Float[Array, "B T D"],
  layer: int,
  kept: Any,
  shared: Any,
) -> tuple[Array, Any]:
  """One layer for all tokens."""
  block = methods_of(Block(cfg), params)
  attention = methods_of(Attention(cfg), params["attn"])
  tap = Tapper(taps, layer)
  pre = tap("resid_pre", pre)
  q, k, v = attention(Attention.project_qkv, block(Block.read, pre, tap))
  # Not rotated here: positions are counted within the cache, so that a key's
  # position changes when the policy drops tokens before it.
  q, k = attention(Attention.norm_and_rotate_qk, q, k, NOT_ROTATED, layer)
  rows = {site: taps.edits[site] for site in ROW_SITES if site in taps.edits}
  own = {"edits": rows} if rows else {}
  if cfg.depth == "routed":
    own["open"] = block(Block.taken, pre, tap) > 0
  v = tap("v", v)
  given = (q, k, v), layer, kept, shared
  z, kept = policy.attend(attention, cfg, *given, **own)
  z = block(Block.heads, pre, z, v, tap)
  mid = block(Block.add_attention, pre, z, tap)
  return block(Block.transform, pre, mid, tap), kept


def _logits(
  cfg: ModelConfig, params: Params, x: Array, count: Int[Array, "B"], which: str
) -> Float[Array, "B T V"]:
  if which == "none":
    return jnp.zeros((x.shape[0], 0, cfg.vocab_size), x.dtype)
  if which == "last":
    # Row by row: rows of a batch may have different numbers of real tokens.
    # A row of padding alone has no last token: any index will do.
    at = jnp.maximum(count - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, at, axis=1)
  return logits_of(cfg, x, params)
