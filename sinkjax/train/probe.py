"""What a training run watches: sinks and their company, on fixed texts.

One forward pass, reduced inside the layers: as cheap as an evaluation step.
"""

import importlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from sinkjax.config import ModelConfig
from sinkjax.metrics.collapse import effective_rank
from sinkjax.metrics.norms import kurtosis, massive_activation, value_norm_ratio
from sinkjax.metrics.sinks import attention_entropy, attention_share, sink_score
from sinkjax.models.normalizers import UNNORMALIZED
from sinkjax.models.transformer import Params, forward
from sinkjax.transforms.capture import capture

EPS = (0.1, 0.3, 0.5, 0.8)
"""Thresholds of the sink rate."""


def uniform_mass(length: int) -> float:
  """Mean attention on the first token if every row were uniform.

      1/T sum_i 1/i

  >>> round(uniform_mass(64), 3)
  0.074
  """
  return sum(1 / i for i in range(1, length + 1)) / length


def make_probe(
  cfg: ModelConfig,
  *,
  eps: Sequence[float] = EPS,
  statistics: Sequence[str] = (),
) -> Callable[[Params, Int[Array, "B T"]], dict[str, Array]]:
  """`probe(params, tokens [B, T]) -> {name: value}`, jitted.

  Args:
    cfg: the model.
    eps: thresholds of the sink rate.
    statistics: what else to measure: "package.module:function" of functions
      `f(cfg) -> (observers, statistic)`. The observers are `capture`'s; the
      `Statistic` is updated with their trace, {name: [B, L, ...]}, and what
      it comes to is told as "function.key".

  Raises:
    ValueError: for a statistic that cannot be imported, or an observer of a
      name that there is already.

  Returns:
    Scalars, means over rows, layers and heads: `sink_rate_EPS`, share of heads
    whose sink score exceeds EPS; `first_mass`, the score itself (compare
    `uniform_mass`); `entropy_share`, row entropy over its maximum;
    `row_sum`, what a query gives in all; `value_ratio`, the first value's norm
    over the others' (their median over layers and heads); `massive_ratio`, the
    largest activation over the median one, and `kurtosis`, each of the layer
    where it is greatest; `effective_rank`, of the last layer's tokens. And
    `alpha` [L, H], the sink score by head.

    Where a normaliser's rows sum to anything, score and entropy are of the
    proxy `attention_share`.
  """
  proxy = cfg.normalizer in UNNORMALIZED
  share = attention_share if proxy else lambda pattern: pattern
  observers = {
    "alpha": ("pattern", lambda p: sink_score(share(p))),
    "entropy": (
      "pattern",
      lambda p: attention_entropy(share(p), normalize=True),
    ),
    "sum": ("pattern", lambda p: jnp.sum(p, axis=-1)),
    "value": ("v", value_norm_ratio),
    "massive": ("resid_post", lambda x: massive_activation(x).ratio),
    "kurtosis": ("resid_post", kurtosis),
    "rank": ("final", effective_rank),
  }
  plugged = {name: _imported(name)(cfg) for name in statistics}
  for name, (more, _) in plugged.items():
    twice = sorted(set(more) & set(observers))
    if twice:
      raise ValueError(f"{name}: there is an observer {twice[0]!r} already")
    observers |= more
  watched = capture(forward(cfg), observers)

  @jax.jit
  def probe(params, tokens):
    trace = watched(params, tokens).trace
    alpha = trace["alpha"]  # [L, B, H]
    return {
      **{
        f"sink_rate_{threshold:g}": jnp.mean(alpha > threshold)
        for threshold in eps
      },
      "first_mass": jnp.mean(alpha),
      "entropy_share": jnp.mean(trace["entropy"]),
      "row_sum": jnp.mean(trace["sum"]),
      "value_ratio": jnp.median(trace["value"]),
      "massive_ratio": jnp.max(jnp.mean(trace["massive"], axis=1)),
      "kurtosis": jnp.max(jnp.mean(trace["kurtosis"], axis=1)),
      "effective_rank": jnp.mean(trace["rank"]),
      "alpha": jnp.mean(alpha, axis=1),
      **_plugged(plugged, trace),
    }

  return probe


def _imported(name: str) -> Callable:
  module, colon, function = name.partition(":")
  try:
    return getattr(importlib.import_module(module), function)
  except (AttributeError, ImportError, ValueError) as error:
    raise ValueError(
      f"statistics: {name!r} cannot be imported as package.module:function: "
      f"{error}"
    ) from None


def _plugged(plugged, trace) -> dict[str, Array]:
  found = {}
  for name, (observers, statistic) in plugged.items():
    value = {key: jnp.moveaxis(trace[key], 1, 0) for key in observers}
    result = statistic.finalize(statistic.update(statistic.init(), value))
    for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]:
      key = jax.tree_util.keystr(path, simple=True, separator=".")
      found[f"{name.partition(':')[2]}.{key}"] = leaf
  return found
