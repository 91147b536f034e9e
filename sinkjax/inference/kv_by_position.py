"""Caches that keep the first tokens and the last, see `kv_policy`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sinkjax.config import ModelConfig
from sinkjax.inference.kv_places import (
  check_size,
  is_local,
  no_learned,
  place_at,
  rotate_at,
  within_trained,
)
from sinkjax.model_edits import method_of
from sinkjax.models.attention import Attention
from sinkjax.models.cache import CHUNK, Cache
from sinkjax.models.context import Context
from sinkjax.taps import NO_TAPS, Tapper, Taps


class _Places(NamedTuple):
  """What the layers of one step share, where tokens are kept by position.

  Attributes:
    write: [B, T] the slot of each new token; past the last for padding.
    keys: rotary tables of the slots.
    near: those of the queries, for the window.
    far: those of the queries, for the first tokens.
    mask: [B, 1, T, P].
    local: the same in local layers, or `None`.
    distance: [B, 1, T, P] within the cache, where scores depend on it.
    queries: [B, T] which token of the text each query is.
    held: [B, P] that of each slot, below 0 for none.
  """

  write: Array
  keys: Context
  near: Context
  far: Context
  mask: Array
  local: Array | None
  distance: Array | None
  queries: Array
  held: Array


@dataclasses.dataclass(frozen=True)
class ByPosition:
  """The first tokens and the last: see `full`, `window` and `sinks`.

  Attributes:
    first: S, first tokens that stay.
    last: W, tokens of the window, the new one included.
    chunk: most tokens at a time.
    evicts: whether tokens go at all.
    renumbers: whether what stays is numbered anew, so that any text fits the
      model's positions; else every token keeps its position in the text.
  """

  first: int
  last: int
  chunk: int = CHUNK
  evicts: bool = True
  renumbers: bool = True

  edits_rows = True

  def __post_init__(self):
    check_size("sinks", self.first, 0)
    check_size("window" if self.evicts else "capacity", self.last, 1)
    check_size("chunk", self.chunk, 1)

  @property
  def capacity(self) -> int:
    """C, tokens that a query sees at most, itself included."""
    return self.first + self.last

  @property
  def moves(self) -> bool:
    """Whether a key's position changes while it is kept."""
    return self.evicts and self.renumbers

  @property
  def limit(self) -> int | None:
    """See `cache.Policy`."""
    return None if self.evicts else self.capacity

  @property
  def ring(self) -> int:
    """Slots that are written in turn."""
    return self.last + (self.chunk - 1 if self.evicts else 0)

  def check(self, cfg: ModelConfig) -> None:
    """See `cache.Policy`."""
    within_trained(cfg, self.capacity)
    learned = cfg.positions == "learned" and not self.evicts
    if self.moves:
      no_learned(cfg, "sliding")
    elif learned and self.capacity > cfg.max_len:
      raise ValueError(
        f"the model has learned positions for {cfg.max_len} tokens, the cache "
        f"has {self.capacity}"
      )

  def init(self, cfg: ModelConfig, batch: int, layer: int) -> tuple[Array, ...]:
    """Keys [B, N, P, K] and values [B, N, P, W] of every head.

    With `depth="routed"` also [B, 1, P, 1], 1 where a token took the layer.
    With `cfg.kv_rank`, too: latent vectors are not what is kept.
    """
    slots = (batch, cfg.n_kv_heads, self.first + self.ring)
    widths = (cfg.head_dim, cfg.value_dim)
    kept = tuple(jnp.zeros((*slots, width), cfg.dtype) for width in widths)
    if cfg.depth == "routed":  # which tokens took the layer, as a head of one
      kept = *kept, jnp.zeros((batch, 1, slots[2], 1), cfg.dtype)
    return kept

  def prepare(self, cfg: ModelConfig, length: Array, real: Array) -> _Places:
    """See `cache.Policy`."""
    steps = jnp.arange(real.shape[1], dtype=jnp.int32)[None]
    t = length[:, None] + steps
    count = jnp.sum(real, axis=1, dtype=jnp.int32)
    s = self._held(length + count)
    is_first = (jnp.arange(s.shape[1]) < self.first)[None]
    base, end = jnp.zeros_like(length)[:, None], t
    if self.moves:
      base = jnp.maximum(length - (self.capacity - 1), 0)[:, None]
      end = jnp.minimum(t, self.capacity - 1)
    distance = jnp.where(
      is_first[:, None],
      end[:, :, None] - s[:, None],
      t[:, :, None] - s[:, None],
    )
    mask = (s >= 0)[:, None] & (s[:, None] <= t[:, :, None])
    mask &= is_first[:, None] | (distance < self.last)
    local = None
    if any(cfg.local_layers):
      local = (mask & (distance < cfg.window))[:, None]
    slot = self.first + (t - self.first) % self.ring
    slot = jnp.where(t < self.first, t, slot)
    # A slot beyond the last is dropped: padding leaves no trace.
    slot = jnp.where(real, slot, s.shape[1])
    if not self.evicts:
      slot = jnp.where(t < self.capacity, slot, s.shape[1])
    return _Places(
      slot,
      place_at(cfg, jnp.where(is_first, s, s - base)),
      place_at(cfg, t - base),
      place_at(cfg, end),
      mask[:, None],
      local,
      distance[:, None] if cfg.positions == "alibi" else None,
      t,
      s,
    )

  def _held(self, n: Array) -> Array:
    """[B, P] which token of the text each slot holds, below 0 for none."""
    last = n[:, None] - 1
    turn = jnp.arange(self.ring, dtype=jnp.int32)[None]
    held = last - (last - self.first - turn) % self.ring
    held = jnp.where(held >= self.first, held, -1)
    head = jnp.arange(self.first, dtype=jnp.int32)[None]
    return jnp.concatenate([jnp.where(head <= last, head, -1), held], axis=1)

  def attend(
    self,
    apply: Callable,
    cfg: ModelConfig,
    qkv: tuple[Array, Array, Array],
    layer: int,
    kept: tuple[Array, ...],
    places: _Places,
    edits: Mapping[str, Any] = NO_TAPS.edits,
    open: Array | None = None,
  ) -> tuple[Array, tuple[Array, ...]]:
    """See `cache.Policy`."""
    q, k, v = qkv
    if not self.moves:
      k = rotate_at(cfg, layer, k, places.near)
    keys, values = (
      _set(kept[0], k, places.write),
      _set(kept[1], v, places.write),
    )
    read = jnp.swapaxes(keys, 1, 2)
    if self.moves:
      read = rotate_at(cfg, layer, read, places.keys)
    far = rotate_at(cfg, layer, q, places.far)
    near = rotate_at(cfg, layer, q, places.near)

    def score(q: Array, slots: slice) -> Array:
      lag = places.distance
      lag = None if lag is None else lag[..., slots]
      return apply(Attention.score, q, read[:, slots], lag)

    if q.shape[1] == 1:  # a single query is at the end for both kinds of key
      scores = score(far, slice(None))
    else:
      first = score(far, slice(self.first))
      scores = score(near, slice(self.first, None))
      scores = jnp.concatenate([first, scores], axis=-1)
    mask = places.local if is_local(cfg, layer) else places.mask
    opened = ()
    if open is not None:
      opened = (_set(kept[2], open[..., None, None], places.write),)
      # A token that does not take the layer sees itself: a row without a key
      # has no softmax, and 0 times what is no number is none.
      own = places.held[:, None, None] == places.queries[:, None, :, None]
      mask &= (jnp.swapaxes(opened[0], 2, 3) > 0) | own
    z = apply(
      Attention.attend,
      scores,
      jnp.swapaxes(values, 1, 2),
      mask,
      Tapper(Taps(_at_places(edits, places)), layer),
      apply(Attention.sink_logits, far),
    )
    return z, (keys, values, *opened)


def _at_places(
  edits: Mapping[str, Any], places: _Places
) -> dict[str, Callable]:
  """Edits of scores or pattern, told which tokens rows and columns are."""

  def at(edit: Any) -> Callable:
    act = method_of(edit, "at")
    return lambda x, layer: act(x, layer, places.queries, places.held)

  return {site: at(edit) for site, edit in edits.items()}


def more_room(cache: Cache, capacity: int) -> Cache:
  """A cache of `kv_policy.full` with empty slots added, up to `capacity`.

  It goes on with `kv_policy.full(capacity)`. Where a text is longer than one
  likes to pay for from its first token on.
  """

  def widen(x: Array) -> Array:
    more = capacity - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))

  return Cache(jax.tree.map(widen, cache.layers), cache.length)


def _set(old: Array, new: Array, slot: Array) -> Array:
  """`old` [B, N, P, K] with `new` [B, T, N, K] at slots [B, T]."""
  rows = jnp.arange(old.shape[0])[:, None]
  return old.at[rows, :, slot].set(new.astype(old.dtype), mode="drop")
