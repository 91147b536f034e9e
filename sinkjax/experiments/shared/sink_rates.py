"""The sink rates of a model over texts, as one row of a table of models."""

import dataclasses
from typing import Any

from sinkjax.analysis.sink_profile import sink_profile
from sinkjax.experiments.harness.api import Subject
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.weights import registry
from sinkjax.weights.offload import open_layers


@dataclasses.dataclass(frozen=True)
class SinkRateConfig:
  """How the sink rates of a model are measured.

  Attributes:
    texts: as `swap_texts.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text, at most; texts are cut where a tokenizer has more.
    eps: thresholds of the sink rate.
    offload: read models that are named, not given, one layer at a time.
  """

  texts: str = SWAP_TEXTS
  tokens: int = 46
  eps: tuple[float, ...] = (0.3, 0.5, 0.8)
  offload: bool = False


def measure_named(name: str, config: SinkRateConfig) -> dict[str, Any]:
  """The sinks of a model by its name or path, as a row of the table.

  Raises:
    ValueError: for a model that is not there, has no tokenizer, or makes
      fewer than two texts long enough.
  """
  if config.offload:
    with open_layers(name) as layers:
      return _of(name, layers, layers.cfg, layers.tokenizer, config)
  params, cfg, tokenizer = registry.load(name)
  return _of(name, params, cfg, tokenizer, config)


def _of(
  name: str, params: Any, cfg: Any, tokenizer: Any, config: SinkRateConfig
) -> dict[str, Any]:
  if tokenizer is None:
    raise ValueError(f"{name} has no tokenizer.json: texts cannot be encoded")
  prefix = [tokenizer.bos_id] if tokenizer.add_bos else []
  return measure(Subject(name, params, cfg, tokenizer, prefix), config)


def measure(subject: Subject, config: SinkRateConfig) -> dict[str, Any]:
  """The sinks of a loaded model, as a row of the table."""
  ids = texts_of(subject, config.texts, config.tokens)
  profile = sink_profile(subject.params, subject.cfg, ids.tolist())
  texts = list(range(len(ids)))
  cfg = subject.cfg
  _, _, parameters = registry.peek(subject.name) or (None, None, None)
  return {
    "model": subject.name,
    "parameters": parameters,
    "layers": cfg.n_layers,
    "heads": cfg.n_heads,
    "all_heads": cfg.n_layers * cfg.n_heads,
    "bos": subject.has_bos(),
    "texts": len(texts),
    "loss": mean_over(profile.nll, texts),
    "rates": {
      eps: mean_over((profile.alpha > eps).mean(axis=(1, 2)), texts)
      for eps in config.eps
    },
    "alpha": profile.alpha.mean(axis=0),
  }
