"""One attention layer that learns to write a mean at a trigger."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.data.synthetic import TriggerMean, sample_trigger_mean
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.history import histories
from sinkjax.experiments.harness.jobs import Advance, Job, run_jobs
from sinkjax.metrics.norms import value_norm_ratio
from sinkjax.metrics.sinks import attention_share
from sinkjax.models.transformer import Params, forward, init_params
from sinkjax.train.optimizer import OptimizerConfig, make_optimizer
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import replace
from sinkjax.transforms.intervene import intervene

HELD_OUT_KEY = 2**31
"""Seed of the held-out rows, beyond every seed of a run."""


class Model(NamedTuple):
  """One kind of attention.

  Attributes:
    words: it in a sentence.
    fields: of `ModelConfig` in which it differs from a plain layer.
  """

  words: str
  fields: Mapping[str, Any]


MODELS = {
  "softmax": Model("softmax attention", {}),
  "normalized_sigmoid": Model(
    "normalised sigmoid attention", {"normalizer": "normalized_sigmoid"}
  ),
  "sink_logit": Model("a learned sink logit", {"sink_logit": True}),
  "head_gate": Model("a gated head", {"gate": "head"}),
  "relu": Model("ReLU attention", {"normalizer": "relu"}),
  "sigmoid": Model("sigmoid attention", {"normalizer": "sigmoid"}),
}

FORCED = ("softmax", "normalized_sigmoid")
"""Models whose weights sum to one and are not gated."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained; every model with every seed.

  Attributes:
    models: names of `MODELS`; the others are compared with softmax.
    seeds: of parameters and data.
    length: T, the first token among them.
    width: D, two of them marks.
    batch: rows a step.
    steps: of a run.
    peak: the learning rate, after `warmup` steps.
    warmup: steps.
    every: steps between two measurements.
    held_out: rows on which models are measured, the same for all runs.
  """

  models: tuple[str, ...] = tuple(MODELS)
  seeds: tuple[int, ...] = (0, 1, 2)
  length: int = 16
  width: int = 32
  batch: int = 256
  steps: int = 1000
  peak: float = 5e-3
  warmup: int = 50
  every: int = 100
  held_out: int = 1024

  def __post_init__(self):
    for name in self.models:
      if name not in MODELS:
        raise ValueError(
          f"trigger_mean has no model {name!r}; it has {', '.join(MODELS)}"
        )


_LARGE = {
  "length": 64,
  "width": 64,
  "batch": 1024,
  "steps": 10_000,
  "every": 200,
}

SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "steps": 600},
  "cpu": {},
  "gpu": _LARGE,
  "paper": _LARGE,
}
"""Fields of `Config` by --scale; we do not know the paper's own sizes."""


def jobs(config: Config) -> list[Job]:
  """Every run of the sweep."""
  request = dataclasses.asdict(config)
  for name in ("models", "seeds"):
    del request[name]

  def job(model: str, seed: int) -> Job:
    def work(folder: pathlib.Path, device: jax.Device, advance: Advance):
      return train(config, model, seed, advance=advance)

    what = {"model": model, "seed": seed}
    return Job(f"{model}-{seed}", config.steps, {**request, **what}, work)

  return [job(model, seed) for model in config.models for seed in config.seeds]


def plan(config: Config) -> list[str]:
  """What will be trained, for --dry_run."""
  runs = len(config.models) * len(config.seeds)
  rows = config.steps * config.batch
  return [
    f"{runs} runs ({', '.join(config.models)}; seeds "
    f"{', '.join(map(str, config.seeds))}), {config.steps:,} steps and "
    f"{rows:,} rows of {config.length} tokens each"
  ]


def model_of(config: Config, model: str) -> ModelConfig:
  """One layer of one head without positions; the MLP's output is not used."""
  width = config.width
  return ModelConfig(
    vocab_size=1,
    d_model=width,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    head_dim=width,
    d_ff=1,
    max_len=config.length,
    positions="none",
    qkv_bias=True,
    scan_layers=False,
    **MODELS[model].fields,
  )


def answer(
  cfg: ModelConfig, observers: Mapping[str, Any] | None = None
) -> Callable[[Params, Array], dict[str, Any]]:
  """`f(params, inputs [B, T, D]) -> trace`: "answer" [1, B, T, D], and others.

  The inputs replace the embeddings.

  Args:
    cfg: the model.
    observers: what else is traced, see `capture`.
  """
  watch = {"answer": ("attn_out", lambda x: x), **(observers or {})}

  def f(params: Params, inputs: Array) -> dict[str, Any]:
    fn = intervene(forward(cfg), {"embed": replace(inputs)})
    tokens = jnp.zeros(inputs.shape[:2], jnp.int32)
    return capture(fn, watch)(params, tokens).trace

  return f


def train(
  config: Config,
  model: str,
  seed: int,
  *,
  advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Any]:
  """One run.

  Args:
    config: of the sweep.
    model: a name of `MODELS`.
    seed: of parameters and data.
    advance: called with the steps done.

  Returns:
    {"history": a row of `quantities` for each measurement; "trigger": its
    position in a held-out row, "map": the attention on that row as shares}.
  """
  cfg = model_of(config, model)
  optimizer = make_optimizer(
    OptimizerConfig(
      peak=config.peak, warmup=config.warmup, weight_decay=0.0, final=0.01
    ),
    config.steps,
  )
  start, data = jax.random.split(jax.random.key(seed))
  params = init_params(cfg, start)
  state = optimizer.init(params)
  f = answer(cfg)

  def loss(params, task):
    off = f(params, task.inputs)["answer"][0] - task.targets
    return jnp.mean(jnp.sum(off * off, axis=(1, 2)))

  @jax.jit
  def step(params, state, number):
    key = jax.random.fold_in(data, number)
    task = sample_trigger_mean(key, config.batch, config.length, config.width)
    updates, state = optimizer.update(
      jax.grad(loss)(params, task), state, params
    )
    return optax.apply_updates(params, updates), state

  held = sample_trigger_mean(
    jax.random.key(HELD_OUT_KEY), config.held_out, config.length, config.width
  )
  measured = jax.jit(quantities(cfg, held))
  history = [{"step": 0, **jax.device_get(measured(params))}]
  for number in range(1, config.steps + 1):
    params, state = step(params, state, number)
    if number % config.every == 0 or number == config.steps:
      history.append({"step": number, **jax.device_get(measured(params))})
      advance(number)
  shares = answer(
    cfg, {"map": ("pattern", lambda p: attention_share(p)[0, 0])}
  )(params, held.inputs[:1])["map"][0]
  return {
    "history": history,
    "trigger": int(np.argmax(held.trigger[0])),
    "map": jax.device_get(shares),
  }


def quantities(
  cfg: ModelConfig, held: TriggerMean
) -> Callable[[Params], dict[str, Array]]:
  """`f(params) -> {name: scalar}` on rows of the task.

  Losses are sums of squares: of the whole row (`loss`), at the trigger
  (`loss_trigger`), and at all other tokens (`loss_rest`), where it is the
  square of the output. A query is dormant if it is neither the first token nor
  the trigger: `rest_first` is the attention of dormant queries on the first
  token as a share of their total, `rest_sum` that total, and `trigger_first`
  the trigger's share. `value_ratio` is the first value's norm over the others'.
  """
  trigger = held.trigger
  dormant = (~trigger).at[:, 0].set(False)

  def over(rows: Array, where: Array) -> Array:
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(where)

  def shares(pattern: Array) -> dict[str, Array]:
    first = attention_share(pattern)[:, 0, :, 0]
    return {
      "rest_first": over(first, dormant),
      "trigger_first": over(first, trigger),
      "rest_sum": over(jnp.sum(pattern[:, 0], axis=-1), dormant),
    }

  f = answer(
    cfg,
    {
      "shares": ("pattern", shares),
      "value": ("v", lambda v: jnp.mean(value_norm_ratio(v))),
    },
  )

  def measured(params: Params) -> dict[str, Array]:
    trace = f(params, held.inputs)
    squares = jnp.sum((trace["answer"][0] - held.targets) ** 2, axis=-1)
    at = jnp.where(trigger, squares, 0)
    found = {
      "loss": jnp.mean(jnp.sum(squares, axis=1)),
      "loss_trigger": jnp.mean(jnp.sum(at, axis=1)),
      "loss_rest": jnp.mean(jnp.sum(squares - at, axis=1)),
      "value_ratio": trace["value"][0],
    }
    return found | {name: x[0] for name, x in trace["shares"].items()}

  return measured


def uniform_first(config: Config) -> float:
  """`rest_first` of uniform attention, over the trigger's positions.

  The trigger is equally often at every position from 2 on.
  """
  share = 1 / (1 + np.arange(config.length))
  weight = np.ones(config.length)
  weight[0] = 0
  weight[2:] -= 1 / (config.length - 2)
  return float((share * weight).sum() / weight.sum())


def measure(
  config: Config,
  *,
  folder: pathlib.Path,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains the runs that are missing and collects what all came to.

  Args:
    config: of the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `run_jobs`.

  Cost: 15 ms a step of the cpu scale on two CPU cores.
  """
  found = run_jobs(jobs(config), folder, progress=progress)
  measured = histories(found, ("model", "seed"), len(config.seeds))
  return Result(
    numbers={
      "models": list(config.models),
      "seeds": list(config.seeds),
      "steps": measured.steps,
      "uniform_first": uniform_first(config),
      "trigger": found[0]["trigger"],
      "last": measured.last(config.models),
    },
    tables={"history.csv": measured.table},
    arrays={
      **measured.arrays,
      "steps": np.array(measured.steps),
      "maps": np.array([one["map"] for one in found[:: len(config.seeds)]]),
    },
  )
