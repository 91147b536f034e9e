"""What is trained, and what is read of each trained model."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.experiments.harness.sweep_config import chosen, text_run
from sinkjax.experiments.shared.controlled import (
  DEMO,
  ControlConfig,
  Row,
  positions_for,
)
from sinkjax.experiments.shared.controlled import SCALES as BY_SCALE
from sinkjax.metrics.precision import wide
from sinkjax.metrics.sinks import attention_share
from sinkjax.models.transformer import forward
from sinkjax.train.run_config import TrainConfig
from sinkjax.transforms.capture import capture

FULL, SHALLOW = "full", "shallow"


@dataclasses.dataclass(frozen=True)
class Config(ControlConfig):
  """What is trained: every variant with every seed.

  Attributes:
    variants: of full, shallow, halting and routed.
    share: of the tokens that a routed layer takes in training.
    goal: share of the layers behind which half of the prior of halting lies;
      tokens take more, as later predictions are better.
    halt_weight: of PonderNet's term. It is ten times the source's, since the
      predictions of two layers of a language model differ by tenths of a nat.
  """

  variants: tuple[str, ...] = (FULL, SHALLOW, "halting", "routed")
  share: float = 0.5
  goal: float = 0.5
  halt_weight: float = 0.1


SCALES = BY_SCALE | {"demo": DEMO}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each variant.

  Raises:
    ValueError: for a name that is no variant, or a goal that is no share.
  """
  if not 0 < config.goal <= 1:
    raise ValueError(f"goal must be in (0, 1], got {config.goal}")
  longest, layers = positions_for(config), config.layers
  # Half of a geometric prior lies behind log 2 / -log(1 - prior) layers.
  prior = 1 - 2 ** (-1 / (config.goal * layers))
  fewer = math.ceil(layers * (1 + config.share) / 2)
  runs = {
    FULL: text_run(config, model=longest),
    SHALLOW: text_run(config, model=longest | {"n_layers": fewer}),
    "halting": text_run(
      config,
      model=longest | {"depth": "halting"},
      halt_weight=config.halt_weight,
      halt_prior=prior,
    ),
    "routed": text_run(
      config, model=longest | {"depth": "routed", "depth_share": config.share}
    ),
  }
  return chosen(runs, config.variants, "adaptive_depth")


def tokens_of(cfg: ModelConfig, params: Any, rows: jax.Array) -> dict[str, Any]:
  """Which tokens take which layers, on texts [B, T].

  Returns:
    `taken` [L, T], the share of texts whose token takes a layer; `first_share`,
    attention on the first token of the rows of tokens that take the layer, as
    in `sink_score` of those alone; `stops` and `goes`, the same of tokens that
    take a layer and not the next, and of those that take both, mean over the
    layers in which there are some of each, `None` where there are none; and
    `nats_few` and `nats_many`, the loss at tokens that take fewer layers than
    the median token and at the others, likewise.
  """

  def first(pattern: jax.Array) -> jax.Array:
    return wide(attention_share(pattern))[..., 0].mean(axis=1)

  watch = {"first": ("pattern", first)}
  if cfg.depth != "none":
    watch["taken"] = ("depth_open", wide)
  out = jax.jit(capture(forward(cfg), watch))(params, rows)
  on_first = np.asarray(out.trace["first"], np.float64)  # [L, B, T]
  taken = np.ones(on_first.shape, bool)
  if cfg.depth != "none":
    taken = np.asarray(out.trace["taken"]) > 0
  logs = jax.nn.log_softmax(wide(out.logits))[:, :-1]
  nats = -jnp.take_along_axis(logs, rows[:, 1:, None], axis=-1)[..., 0]
  # The first token has nothing else to attend to.
  after, open_after = on_first[..., 1:], taken[..., 1:]
  found = {
    "taken": taken.mean(axis=1).tolist(),
    "first_share": float(after[open_after].mean()),
  }
  found["stops"], found["goes"] = _stopping(after, open_after)
  few, many = _by_depth(np.asarray(nats)[:, 1:], taken[:, :, 1:-1].sum(axis=0))
  return found | {"nats_few": few, "nats_many": many}


def _stopping(first: np.ndarray, taken: np.ndarray) -> tuple[Any, Any]:
  """Attention on the first token of tokens that stop and of those that go."""
  pairs = []
  for layer in range(len(taken) - 1):
    stops = taken[layer] & ~taken[layer + 1]
    goes = taken[layer] & taken[layer + 1]
    if stops.any() and goes.any():
      pairs.append([first[layer][x].mean() for x in (stops, goes)])
  return tuple(np.mean(pairs, axis=0).tolist()) if pairs else (None, None)


def _by_depth(nats: np.ndarray, layers: np.ndarray) -> tuple[Any, Any]:
  """Mean nats of tokens that take few layers, and of the others."""
  few = layers < np.median(layers)
  if not few.any():  # the median is the least: few are those that take it
    few = layers <= np.median(layers)
  if few.all():
    return None, None
  return float(nats[few].mean()), float(nats[~few].mean())


def work(row: Row) -> np.ndarray:
  """[S] layers that a token takes."""
  return np.asarray(row["taken"], float).mean(axis=2).sum(axis=1)
