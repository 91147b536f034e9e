"""Caches that keep the tokens with the highest scores, see `kv_policy`."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sinkjax.config import ModelConfig
from sinkjax.inference.kv_places import (
  check_size,
  is_local,
  no_learned,
  no_routed,
  place_at,
  rotate_at,
  within_trained,
)
from sinkjax.metrics.precision import wide
from sinkjax.models.attention import Attention
from sinkjax.models.cache import CHUNK
from sinkjax.models.context import rotary_of
from sinkjax.models.positions import placed_only, rotate
from sinkjax.taps import Tapper, Taps


class _Kept(NamedTuple):
  """One layer's tokens, where they are kept by score.

  Attributes:
    keys: [B, N, C, K], not rotated.
    values: [B, N, C, W].
    score: [B, N, C] float32.
    rank: [B, N, C] 0 for the oldest kept, below 0 for an empty slot.
  """

  keys: Array
  values: Array
  score: Array
  rank: Array


@dataclasses.dataclass(frozen=True)
class ByScore:
  """Keeps the highest scores: see `heavy_hitters`, `random_eviction`.

  Attributes:
    kind: "heavy" or "random".
    capacity: C, tokens that a query sees at most, itself included.
    recent: how many of these are the last ones, which stay whatever their
      score.
    chunk: most tokens at a time.
    seed: of the random scores.
  """

  kind: str
  capacity: int
  recent: int
  chunk: int = CHUNK
  seed: int = 0

  limit = None

  def __post_init__(self):
    check_size("capacity", self.capacity, 1)
    check_size("recent", self.recent, 1)
    check_size("chunk", self.chunk, 1)
    if self.recent > self.capacity:
      raise ValueError(
        f"recent must be at most the capacity {self.capacity}, got "
        f"{self.recent}"
      )

  def check(self, cfg: ModelConfig) -> None:
    """See `cache.Policy`."""
    within_trained(cfg, self.capacity)
    no_learned(cfg, self.kind)
    no_routed(cfg, self.kind)

  def init(self, cfg: ModelConfig, batch: int, layer: int) -> _Kept:
    """See `cache.Policy`."""
    slots = (batch, cfg.n_kv_heads, self.capacity)
    # Two buffers, since a cache is donated and none can be donated twice.
    keys, values = (
      jnp.zeros((*slots, width), cfg.dtype)
      for width in (cfg.head_dim, cfg.value_dim)
    )
    return _Kept(keys, values, jnp.zeros(slots), jnp.full(slots, -1, jnp.int32))

  def prepare(
    self, cfg: ModelConfig, length: Array, real: Array
  ) -> tuple[Array, Array]:
    """(t [B, T], real [B, T])."""
    steps = jnp.arange(real.shape[1], dtype=jnp.int32)[None]
    return length[:, None] + steps, real

  def attend(
    self,
    apply: Callable,
    cfg: ModelConfig,
    qkv: tuple[Array, Array, Array],
    layer: int,
    kept: _Kept,
    shared: tuple[Array, Array],
  ) -> tuple[Array, _Kept]:
    """See `cache.Policy`."""

    def one(kept: _Kept, token: tuple) -> tuple[_Kept, Array]:
      q, k, v, t, real = token
      kept = self._take(kept, layer, k, v, t, real)
      z, pattern = self._look(apply, cfg, layer, kept, q, t)
      if self.kind == "heavy":
        got = wide(pattern).reshape(*kept.rank.shape[:2], -1, self.capacity)
        got = got.sum(2)
        score = kept.score + jnp.where(real[:, None, None], got, 0)
        kept = kept._replace(score=score)
      return kept, z

    tokens = [jnp.swapaxes(x, 0, 1) for x in (*qkv, *shared)]
    kept, z = jax.lax.scan(one, kept, tuple(tokens))
    return jnp.swapaxes(z, 0, 1), kept

  def _take(
    self, kept: _Kept, layer: int, k: Array, v: Array, t: Array, real: Array
  ) -> _Kept:
    """The new token in an empty slot, or in that of the token it replaces.

    k and v are [B, N, K], t and real [B].
    """
    full = (t >= self.capacity)[:, None, None]
    may_go = full & (kept.rank <= self.capacity - self.recent)
    may_go |= ~full & (kept.rank < 0)
    # What must stay is at infinity, so the lowest score is that of what may go.
    slot = jnp.argmin(jnp.where(may_go, kept.score, jnp.inf), axis=-1)[
      ..., None
    ]
    gone = jnp.take_along_axis(kept.rank, slot, axis=-1)
    rank = kept.rank - (full & (kept.rank > gone))
    slots = jnp.arange(self.capacity)[None, None]
    here = real[:, None, None] & (slots == slot)
    newest = jnp.minimum(t, self.capacity - 1)[:, None, None]
    rank = jnp.where(real[:, None, None], rank, kept.rank)
    return _Kept(
      _put(kept.keys, k, slot, real),
      _put(kept.values, v, slot, real),
      jnp.where(here, self._first_score(layer, t, slot.shape), kept.score),
      jnp.where(here, newest, rank),
    )

  def _first_score(self, layer: int, t: Array, shape: tuple[int, ...]) -> Array:
    """[B, N, 1] the score that a token comes with."""
    if self.kind == "heavy":
      return jnp.zeros(shape)
    key = jax.random.fold_in(jax.random.key(self.seed), layer)
    each = jax.vmap(jax.random.fold_in, (None, 0))(key, t)
    each = jax.vmap(jax.random.fold_in)(each, jnp.arange(shape[0]))
    return jax.vmap(lambda one: jax.random.uniform(one, shape[1:]))(each)

  def _look(
    self,
    apply: Callable,
    cfg: ModelConfig,
    layer: int,
    kept: _Kept,
    q: Array,
    t: Array,
  ) -> tuple[Array, Array]:
    """(z [B, H, K], pattern [B, H, C]) of one query a row, q [B, H, K]."""
    batch, heads, slots = kept.rank.shape
    at = jnp.minimum(t, self.capacity - 1)
    keys = kept.keys.reshape(batch * heads, slots, 1, -1)
    places = place_at(cfg, kept.rank.reshape(batch * heads, slots))
    cos, sin = rotary_of(cfg, places, layer)
    if cos is not None:
      keys = rotate(keys, cos, sin)
    keys = placed_only(cfg, kept.keys, keys.reshape(kept.keys.shape), 1)
    q = rotate_at(cfg, layer, q[:, None], place_at(cfg, at[:, None]))
    mask, distance = kept.rank >= 0, at[:, None, None] - kept.rank
    if is_local(cfg, layer):
      mask &= distance < cfg.window
    mask, distance = (
      jnp.repeat(x, cfg.group_size, axis=1)[:, :, None]
      for x in (mask, distance)
    )
    tap = Tapper(Taps(observers={"pattern": ("pattern", lambda x: x)}), layer)
    z = apply(
      Attention.attend,
      apply(Attention.score, q, jnp.swapaxes(keys, 1, 2), distance),
      jnp.swapaxes(kept.values, 1, 2),
      mask,
      tap,
      apply(Attention.sink_logits, q),
    )
    return z[:, 0], tap.trace()["pattern"][:, :, 0]


def _put(old: Array, new: Array, slot: Array, real: Array) -> Array:
  """`old` [B, N, C, K] with `new` [B, N, K] at slots [B, N, 1]."""
  rows = jnp.arange(old.shape[0])[:, None]
  heads = jnp.arange(old.shape[1])[None]
  # Padding is sent behind the last slot, where "drop" ignores it.
  slot = jnp.where(real[:, None], slot[..., 0], old.shape[2])
  return old.at[rows, heads, slot].set(new.astype(old.dtype), mode="drop")
