"""An edit that mixes full attention with that of a sink and a window."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sinkjax.config import ModelConfig
from sinkjax.metrics.precision import divide, wide
from sinkjax.taps import Layer
from sinkjax.transforms.edit_indices import check_leading
from sinkjax.transforms.edits import pytree_dataclass

SLOPED = 1e-12
"""Largest weight on what is kept, below which a row's renormalised part is held
constant in derivatives: its slope is the weight's inverse, which beside the
softmax's own slope of that size would be infinity times zero."""


@pytree_dataclass
class MixStreaming:
  """Heads between full attention and a sink with a window.

  For the site "pattern". With p a row, M the keys that streaming keeps, the
  first S and those less than W positions back,

      p_s -> a p_s + (1 - a) 1[s in M] p_s / sum_{r in M} p_r

  of which the second is exactly the softmax over M alone. Source: arXiv
  2410.10819 (DuoAttention), where outputs are mixed, which is the same.

  Attributes:
    gate: [L, N] a of every KV head, from 0, streaming, to 1, full.
    sinks: S.
    window: W, the query itself included.
    positions: [B, T] of the tokens, as `forward` was given them; `None` for
      0 to T - 1.
  """

  gate: Any
  sinks: Any
  window: Any
  positions: Any = None

  def placed(self, cfg: ModelConfig, length: int, site: str) -> Any:
    """The same, checked against the model.

    Raises:
      ValueError: for gates of other sizes, or a model whose rows are no softmax
        over tokens alone.
    """
    check_leading("gate", self.gate, cfg.n_layers)
    if jnp.shape(self.gate)[1:] != (cfg.n_kv_heads,):
      raise ValueError(
        f"gate must be [L, N] = [{cfg.n_layers}, {cfg.n_kv_heads}], got shape "
        f"{list(jnp.shape(self.gate))}"
      )
    if cfg.normalizer != "softmax" or cfg.learned_sink:
      raise ValueError(
        "streaming heads renormalise rows, which is attention over fewer keys "
        "only where a row is a softmax over tokens; choose another model"
      )
    return dataclasses.replace(self)

  def __call__(
    self, pattern: Float[Array, "B H T S"], layer: Layer
  ) -> Float[Array, "B H T S"]:
    """The mixed pattern."""
    p = wide(pattern)
    seen = self.kept(pattern.shape[2])
    part = jnp.where(seen, p, 0)
    top = jax.lax.stop_gradient(jnp.max(part, axis=-1, keepdims=True))
    part = jnp.where(top > SLOPED, part, jax.lax.stop_gradient(part))
    # Of the order of one before they are added up, however small they are.
    part = divide(part, top)
    streaming = divide(part, jnp.sum(part, axis=-1, keepdims=True))
    gate = jnp.asarray(self.gate, p.dtype)[layer]
    gate = jnp.repeat(gate, p.shape[1] // gate.shape[0])[None, :, None, None]
    return (gate * p + (1 - gate) * streaming).astype(pattern.dtype)

  def kept(self, length: int) -> Bool[Array, "#B 1 T S"]:
    """Which keys streaming lets each query see, if they are not later ones."""
    at = self.positions
    at = jnp.arange(length)[None] if at is None else jnp.asarray(at)
    back = at[:, :, None] - at[:, None, :]
    near = (back < self.window) | (at[:, None, :] < self.sinks)
    return near[:, None]
