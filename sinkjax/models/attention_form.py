"""Which attention a layer can do without its pattern, and what it still knows.

By the config alone: whether a layer in which no tap looks at scores or pattern
writes them, how its weights are made by blocks of keys, which keys a token
sees; and the sums over a pattern that was not written.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.metrics.norms import token_norms
from sinkjax.metrics.precision import wide
from sinkjax.metrics.row_statistic import PatternSums
from sinkjax.models import normalizers
from sinkjax.models.online_sums import online_sums, weight_on
from sinkjax.models.projection import softcapped
from sinkjax.taps import Layer

LONG = 128
"""Queries from which on attention is arranged for large products.

Where no tap looks at it the pattern is then not written at all. Where one does,
axes of the batch and of heads come first in every product, and the pattern is
kept as a whole: XLA's CPU backend makes slow loops of other orders, and would
compute the softmax again for every reader. For short texts neither gains.
"""


class OnlineForm(NamedTuple):
  """How `online_attention` makes a model's weights; see its arguments."""

  scores: Callable[[Array], Array] | None
  weights: Callable[[Array], Array] | None


@functools.cache  # one object a config: functions are compared by identity
def online_form(cfg: ModelConfig) -> OnlineForm | None:
  """`None` for what has no such form: ALiBi, roles, some normalisers."""
  if cfg.positions == "alibi" or cfg.control_heads:
    return None
  cap = None
  if cfg.attn_softcap is not None:
    cap = functools.partial(softcapped, cap=cfg.attn_softcap)
  if cfg.normalizer in ("softmax", "softmax1"):
    return OnlineForm(cap, None)
  if cfg.normalizer in normalizers.ELEMENTWISE:
    return OnlineForm(cap, normalizers.ELEMENTWISE[cfg.normalizer])
  if cfg.normalizer == "normalized_sigmoid":  # a softmax of log-sigmoids

    def scores(s: Array) -> Array:
      return jax.nn.log_sigmoid(s if cap is None else cap(s))

    return OnlineForm(scores, None)
  return None


def has_sums(cfg: ModelConfig, length: int) -> bool:
  """Whether `Attention.with_sums` serves where no tap looks at the rows."""
  return needs_no_pattern(cfg, length) and online_form(cfg) is not None


def needs_no_pattern(cfg: ModelConfig, length: int) -> bool:
  """Whether a layer in which no tap looks at scores or pattern writes none."""
  if cfg.attention == "fused":
    return True
  if cfg.attention == "einsum" or online_form(cfg) is None:
    return False
  return length >= LONG


def window_of_all(cfg: ModelConfig) -> int | None:
  """The window, where every layer has it."""
  every = any(cfg.local_layers) and all(cfg.local_layers)
  return cfg.window if every else None


def window_of(
  cfg: ModelConfig, layer: Layer, length: int
) -> int | Array | None:
  """The keys that a token of a layer sees; `None` for all of them."""
  window = window_of_all(cfg)
  if any(cfg.local_layers) and window is None:
    # `layer` is traced under scan: a global layer's window is the text.
    local = jnp.asarray(cfg.local_layers)[layer]
    window = jnp.where(local, cfg.window, length)
  return window


def pattern_sums(
  cfg: ModelConfig,
  qkv: Sequence[Array],
  lse: Float[Array, "B T H"],
  sinks: Float[Array, "*#B H #T 1"] | None,
  layer: Layer,
  wanted: frozenset[Any],
  known: Mapping[str, Float[Array, "B T H"]],
) -> PatternSums:
  """What is known of a pattern that was not written.

  Args:
    cfg: the model.
    qkv: queries [B, T, H, K], keys [B, T, N, K] and values [B, T, N, W].
    lse: of `models.online` for the same.
    sinks: the logits that take weight and have no key.
    layer: its index.
    wanted: what `RowStatistic`s need, see `models.online_sums`.
    known: those of them that came with `lse`.
  """
  q, k, v = qkv
  form, window = online_form(cfg), window_of(cfg, layer, q.shape[1])
  given = {"scale": cfg.score_scale, **form._asdict()}
  tokens, heads = ("rows", None, "heads", None), ("rows", "heads")
  each = tokens[:3]

  def weights(key: int) -> Array:
    one = functools.partial(weight_on, key=key, **given)
    inputs = tokens, tokens, each, ()
    return mesh_context.per_device(one, inputs, heads)(q, k, lse, window)

  sums = {name: jnp.swapaxes(x, 1, 2) for name, x in known.items()}
  norms = token_norms(v) if "written" in wanted else None
  if form.weights is None:  # then a row's sum is known without a walk
    sums.setdefault("rows", _row_sums(lse, sinks))
  if walked := wanted - set(sums):
    walk = functools.partial(online_sums, wanted=walked, **given)
    inputs = tokens, tokens, each, each, ()
    walk = mesh_context.per_device(walk, inputs, heads)
    sums |= walk(q, k, lse, norms, window)
  if norms is not None:
    norms = jnp.repeat(jnp.moveaxis(norms, 1, 2), cfg.group_size, axis=1)
  return PatternSums(weights, sums, norms)


def _row_sums(lse: Array, sinks: Array | None) -> Float[Array, "B H T"]:
  """What the keys take of a softmax: all but what goes to a sink."""
  lse = jnp.swapaxes(lse, 1, 2)
  if sinks is None:
    return jnp.ones_like(lse)
  return -jnp.expm1(wide(sinks[..., 0]) - lse)
