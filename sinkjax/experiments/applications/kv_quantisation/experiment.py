"""Measures the cost of every way to quantise, on the same texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.experiments.applications.kv_quantisation.config import (
  Config,
  Kept,
  Layout,
)
from sinkjax.experiments.applications.kv_quantisation.results import (
  Measured,
  result_of,
)
from sinkjax.experiments.applications.kv_quantisation.settings import (
  Kv,
  Limits,
  kept_masks,
  kv_settings,
  layer_settings,
  linear_settings,
  site_settings,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.shared.edited_cost import Cost, meter
from sinkjax.experiments.shared.prompt_corpus import Text, apart
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  templates_of,
  texts_of_length,
)
from sinkjax.inference.quantize_linear import (
  inputs_of,
  limits_of,
  range_observers,
)
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every setting on every text, then single layers and sites.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (batches done, in all), a batch under one setting.

  Raises:
    ValueError: for too few texts that are long enough, or a config that
      names no token, or not the widths that the claims are about.

  Cost: a forward pass of every text for each setting: 3 times 4 layouts times
    the bits, 3 times 3 ranges times the widths, and one for each width of
    weights; 2 L + 8 more of `layer_texts`.
  """
  config.check()
  calibrating, held = split(subject, config, texts)
  # Single layers and sites take many settings, so fewer texts.
  some = held[: config.layer_texts]
  limits = _calibrate(subject, config, calibrating)
  kv = kv_settings(subject, config)
  linear = linear_settings(subject, config, limits)
  sites = site_settings(subject, config, limits)
  single = 2 * subject.cfg.n_layers + 2 * len(inputs_of(subject.cfg))
  total = (len(kv) + len(linear)) * _count(held, config)
  step = Steps(progress, total + single * _count(some, config))
  # The prediction made at a kept token would be better for it alone.
  cost_of = meter(subject, config.batch, config.control + 1, step)
  whole, found = cost_of(held, {**kv, **linear})
  # Single layers are looked at where keeping the token matters most.
  telling = _most_telling({key: found[key] for key in kv})
  layers = layer_settings(subject, config, *telling)
  measured = Measured(
    whole,
    {key: found[key] for key in kv},
    {key: found[key] for key in linear},
    cost_of(some, layers)[1],
    cost_of(some, sites)[1],
  )
  counts = {
    "calibrating": len(calibrating),
    "texts": len(held),
    "templates": templates_of(held, subject.template),
    "layer_texts": len(some),
    "telling": list(telling),
  }
  return result_of(config, counts, measured)


def _count(ids: np.ndarray, config: Config) -> int:
  """How many batches."""
  return -(-len(ids) // config.batch)


def split(
  subject: Subject, config: Config, texts: Sequence[Text] | None
) -> tuple[np.ndarray, np.ndarray]:
  """(ids of texts that calibrate, ids of the others), [P, T] each."""
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed
  )
  if config.calibrating < 1 or len(ids) < config.calibrating + 2:
    raise ValueError(
      f"{len(ids)} texts have {config.tokens} tokens; {config.calibrating} "
      "that calibrate, 1 at least, and 2 more are needed"
    )
  return apart(ids, config.calibrating, config.seed, subject.template)


def _calibrate(subject: Subject, config: Config, ids: np.ndarray) -> Limits:
  """Static ranges of every input, without the token that is kept."""
  f = forward(subject.cfg)

  @jax.jit
  def look(params: Any, ids: Array, keep: Array) -> Any:
    watch = range_observers(keep, sites=inputs_of(subject.cfg))
    return capture(f, watch)(params, ids).trace

  found = {}
  # The kept token does not count in the range, so ranges depend on it.
  for kept, keep in kept_masks(config).items():
    parts = [
      look(subject.params, jnp.asarray(part), jnp.asarray(keep))
      for part in np.array_split(ids, _count(ids, config))
    ]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)
    found[kept] = limits_of(joined)
  return found


def _most_telling(found: Mapping[Kv, Cost]) -> tuple[Layout, int]:
  """The layout and bits at which keeping the sink recovers most nats."""
  gains = {}
  for key in found:
    none, sink = (
      found[key._replace(kept=kept)].loss for kept in (Kept.NOTHING, Kept.SINK)
    )
    # In nats, not as a share: a share of a small loss is mostly noise.
    gains[key.layout, key.bits] = float(np.mean(none - sink))
  return max(gains, key=gains.get)
