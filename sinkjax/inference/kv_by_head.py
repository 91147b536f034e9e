"""A cache that keeps everything for some heads only, see `kv_policy`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sinkjax.config import ModelConfig
from sinkjax.inference.kv_by_position import ByPosition
from sinkjax.models.attention import Attention
from sinkjax.models.cache import CHUNK
from sinkjax.models.layerwise import methods_of


@dataclasses.dataclass(frozen=True)
class ByHead:
  """Everything in some KV heads, the ends of the text in others: see `by_head`.

  A layer has two caches, each with the heads of one kind alone. Layers are
  unrolled, so that each has as many of a kind as it likes, and no slot is there
  for alignment.

  Attributes:
    full: [L][N] whether a KV head keeps everything.
    first: S, first tokens that the others keep.
    last: W, last tokens that the others keep, the new one included.
    capacity: tokens that there is room for where everything is kept.
    chunk: most tokens at a time.
  """

  full: tuple[tuple[bool, ...], ...]
  first: int
  last: int
  capacity: int
  chunk: int = CHUNK

  def __post_init__(self):
    # The two policies check their sizes.
    _ = self.parts

  @property
  def parts(self) -> tuple[ByPosition, ByPosition]:
    """The policies of heads that keep everything, and of the others."""
    return (
      ByPosition(0, self.capacity, self.chunk, evicts=False),
      ByPosition(self.first, self.last, self.chunk, renumbers=False),
    )

  @property
  def limit(self) -> int:
    """See `cache.Policy`."""
    return self.capacity

  def check(self, cfg: ModelConfig) -> None:
    """See `cache.Policy`."""
    shape = [len(self.full), *sorted({len(heads) for heads in self.full})]
    if shape != [cfg.n_layers, cfg.n_kv_heads]:
      raise ValueError(
        f"full must tell for {cfg.n_layers} layers of {cfg.n_kv_heads} KV "
        f"heads which keep everything, got {len(self.full)} layers of "
        f"{shape[1:]} heads"
      )
    own = {
      "sink_logit": cfg.sink_logit,
      "attn_bias": cfg.attn_bias != "none",
      "control_heads": cfg.control_heads,
      "positions='alibi'": cfg.positions == "alibi",
      "depth='routed'": cfg.depth == "routed",
    }
    # Some heads of a layer are run as a layer of fewer heads, which has no
    # parameters of its own and whose heads are all alike.
    if names := [name for name, has in own.items() if has]:
      raise ValueError(
        f"a cache by head is for models whose heads differ in their "
        f"projections alone, and this one has {names[0]}: use another policy"
      )
    for part in self.parts:
      part.check(cfg)

  def init(self, cfg: ModelConfig, batch: int, layer: int) -> tuple:
    """The cache of each kind of heads, `None` for a kind without any."""
    return tuple(
      part.init(_fewer(cfg, len(heads)), batch, layer) if heads else None
      for part, heads in zip(self.parts, self._heads(layer), strict=True)
    )

  def prepare(self, cfg: ModelConfig, length: Array, real: Array) -> tuple:
    """See `cache.Policy`."""
    return tuple(part.prepare(cfg, length, real) for part in self.parts)

  def attend(
    self,
    apply: Callable,
    cfg: ModelConfig,
    qkv: tuple[Array, Array, Array],
    layer: int,
    kept: tuple,
    shared: tuple,
  ) -> tuple[Array, tuple]:
    """See `cache.Policy`."""
    q, k, v = qkv
    group, mixed, after, order = np.arange(cfg.group_size), [], [], []
    kinds = zip(self.parts, self._heads(layer), kept, shared, strict=True)
    for part, heads, old, places in kinds:
      new = None
      if heads:
        own, at = _fewer(cfg, len(heads)), np.array(heads)
        queries = (at[:, None] * cfg.group_size + group).ravel()
        given = q[:, :, queries], k[:, :, at], v[:, :, at]
        run = methods_of(Attention(own), {})
        z, new = part.attend(run, own, given, layer, old, places)
        mixed.append(z)
        order.extend(queries)
      after.append(new)
    z = jnp.concatenate(mixed, axis=2)[:, :, np.argsort(order)]
    return z, tuple(after)

  def _heads(self, layer: int) -> tuple[list[int], list[int]]:
    """A layer's KV heads that keep everything, and the others."""
    kinds = self.full[layer]
    return tuple(
      [head for head, full in enumerate(kinds) if full == kind]
      for kind in (True, False)
    )


def _fewer(cfg: ModelConfig, heads: int) -> ModelConfig:
  """The config of attention by some of the KV heads."""
  # Rates of mixing come behind the cache, and are parameters of all heads.
  return cfg.replace(
    n_heads=heads * cfg.group_size, n_kv_heads=heads, mixing="none"
  )


def full_heads(gates: Any) -> tuple[tuple[bool, ...], ...]:
  """[L][N] which KV heads keep everything: those with a gate above 1/2.

  >>> full_heads([[1.0, 0.2], [0.5, 0.7]])
  ((True, False), (False, True))
  """
  return tuple(tuple(bool(gate > 0.5) for gate in row) for row in gates)
