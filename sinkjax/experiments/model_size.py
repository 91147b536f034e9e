"""Sink rates of any list of models, side by side (section 4.2, table 1).

The paper compares three sizes of one family, trained alike. Models that
differ in more than size are a table, not a test, and the claim says so.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sinkjax.experiments.result import UNTESTED, Claim, Result, Subject
from sinkjax.experiments.sink_profile import sink_profile
from sinkjax.experiments.sink_removal import texts_of
from sinkjax.experiments.swaps import TEXTS
from sinkjax.experiments.uncertainty import mean_over
from sinkjax.weights import registry
from sinkjax.weights.offload import open_layers

NAME, TITLE = "model_size", "Sinks by model"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured.

  Attributes:
    models: names or paths, beside the subject; one is not measured twice.
    texts: as `swaps.parse_swaps` takes them; the swaps are not used.
    tokens: T of each text, at most; texts are cut where a tokenizer has more.
    eps: thresholds of the sink rate.
    offload: read these models one layer at a time.
  """

  models: tuple[str, ...] = ("glassllm-en", "glassllm-pt")
  texts: str = TEXTS
  tokens: int = 46
  eps: tuple[float, ...] = (0.3, 0.5, 0.8)
  offload: bool = False


def run(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """The sink rates of the subject and of every other model.

  Args:
    subject: a model that is loaded.
    config: what is measured.
    progress: called with (models done, models in all).

  Raises:
    ValueError: for a model that is not there, has no tokenizer, or makes
      fewer than two texts long enough.

  Cost: one forward pass a text and model; one model in memory beside the
    subject, or one of its layers.
  """
  others = [name for name in config.models if name != subject.name]
  rows = [_measure(subject, config)]
  progress(1, 1 + len(others))
  for done, name in enumerate(others):
    rows.append(measure(name, config))
    progress(done + 2, 1 + len(others))
  return _result(config, rows)


def measure(name: str, config: Config) -> dict[str, Any]:
  """The sinks of a model by its name or path, as a row of the table.

  Raises:
    ValueError: as `run`.
  """
  if config.offload:
    with open_layers(name) as layers:
      return _of(name, layers, layers.cfg, layers.tokenizer, config)
  params, cfg, tokenizer = registry.load(name)
  return _of(name, params, cfg, tokenizer, config)


def _of(name, params, cfg, tokenizer, config):
  if tokenizer is None:
    raise ValueError(f"{name} has no tokenizer.json: texts cannot be encoded")
  prefix = [tokenizer.bos_id] if tokenizer.add_bos else []
  return _measure(Subject(name, params, cfg, tokenizer, prefix), config)


def _measure(subject: Subject, config: Config) -> dict[str, Any]:
  ids = texts_of(subject, config.texts, config.tokens)
  profile = sink_profile(subject.params, subject.cfg, ids.tolist())
  texts = list(range(len(ids)))
  cfg = subject.cfg
  _, _, parameters = registry.peek(subject.name) or (None, None, None)
  return {
    "model": subject.name, "parameters": parameters, "layers": cfg.n_layers,
    "heads": cfg.n_heads, "all_heads": cfg.n_layers * cfg.n_heads,
    "bos": subject.has_bos(), "texts": len(texts),
    "loss": mean_over(profile.nll, texts),
    "rates": {
      eps: mean_over((profile.alpha > eps).mean(axis=(1, 2)), texts)
      for eps in config.eps
    },
    "alpha": profile.alpha.mean(axis=0),
  }  # fmt: skip


def _result(config: Config, rows) -> Result:
  header = ["model", "parameters", "layers", "heads", "all_heads", "bos",
            "texts", "loss"]  # fmt: skip
  table = []
  for row in rows:
    cells = [row[name] for name in header[:-1]] + [row["loss"].value]
    for eps in config.eps:
      cells += [100 * x for x in row["rates"][eps][:3]]
    table.append(cells)
  for eps in config.eps:
    header += [f"sink_rate_{eps:g}", f"low_{eps:g}", f"high_{eps:g}"]
  eps = config.eps[-1]
  ours = "; ".join(
    f"{row['model']} ({row['all_heads']} heads) "
    + row["rates"][eps]._replace(
      value=100 * row["rates"][eps].value, low=100 * row["rates"][eps].low,
      high=100 * row["rates"][eps].high,
    ).text(".1f", " %")
    for row in rows
  )  # fmt: skip
  claim = Claim(
    "Larger models of one family have more sinks.", "section 4.2, table 1",
    "45.97, 73.49 and 78.29 % of heads at eps 0.8 (Llama 3.1 8B, 70B, 405B)",
    f"at eps {eps:g}: {ours}", UNTESTED,
    "these models differ in data and training, not in size alone",
  )  # fmt: skip
  return Result(
    name=NAME, title=TITLE, claims=[claim],
    numbers={
      "tokens": config.tokens, "eps": list(config.eps),
      "models": [
        {k: v for k, v in row.items() if k != "alpha"} for row in rows
      ],
    },
    tables={"models.csv": (header, table)},
    arrays={f"alpha_{i}": np.asarray(jax.device_get(row["alpha"]))
            for i, row in enumerate(rows)},
  )  # fmt: skip
