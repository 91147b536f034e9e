"""The metrics of a training run, measured on fixed texts while it goes.

One forward pass, reduced inside the layers: as cheap as an evaluation step.
What is measured is said by `sinkjax.metrics.table`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from sinkjax import mesh_context
from sinkjax.config import ModelConfig
from sinkjax.metrics import registry
from sinkjax.metrics.sinks import uniform_mass as uniform_mass
from sinkjax.models.normalizers import UNNORMALIZED
from sinkjax.models.transformer import Params, forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.statistics import Statistic

EPS = (0.1, 0.3, 0.5, 0.8)
"""Thresholds of the sink rate: those of the papers, 0.3 and 0.8, and two more
that show a sink while it forms."""


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
      `Statistic` is updated with their trace, {name: [B, L, ...]}, and its
      results are recorded as "function.key".

  Raises:
    ValueError: for a statistic that cannot be imported, or an observer of a
      name that there is already.

  Returns:
    Every metric that `sinkjax.metrics.table` shows in the probe, under the
    keys it has there: scalars over rows, layers and heads, with one
    `sink_rate_EPS` for each threshold, and `alpha` [L, H], the sink score by
    head. Compare `first_mass` with `uniform_mass`. The results of
    `statistics` come after them.

    Where a normaliser's rows do not sum to one, metrics of shares are computed
    from `metrics.sinks.attention_share`.
  """
  observers = registry.observers(
    registry.shown_in("probe"),
    share=cfg.normalizer in UNNORMALIZED,
    learned_sink=cfg.learned_sink,
    experts=cfg.n_experts > 0,
    mixing=cfg.mixing != "none",
  )
  observers = {
    name: (site, mesh_context.by_rows(reducer))
    for name, (site, reducer) in observers.items()
  }
  plugged = {name: _imported(name)(cfg) for name in statistics}
  for name, (more, _) in plugged.items():
    twice = sorted(set(more) & set(observers))
    if twice:
      raise ValueError(f"{name}: there is an observer {twice[0]!r} already")
    observers |= more
  watched = capture(forward(cfg), observers)

  @jax.jit
  def probe(params: Params, tokens: Int[Array, "B T"]) -> dict[str, Array]:
    trace = watched(params, tokens).trace
    record = registry.probe_record(trace, eps=eps)
    return {**record, **_plugged(plugged, trace)}

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


def _plugged(
  plugged: Mapping[str, tuple[Mapping, Statistic]], trace: Mapping[str, Any]
) -> dict[str, Array]:
  results = {}
  for name, (observers, statistic) in plugged.items():
    value = {key: jnp.moveaxis(trace[key], 1, 0) for key in observers}
    result = statistic.finalize(statistic.update(statistic.init(), value))
    for path, leaf in jax.tree_util.tree_flatten_with_path(result)[0]:
      key = jax.tree_util.keystr(path, simple=True, separator=".")
      results[f"{name.partition(':')[2]}.{key}"] = leaf
  return results
