"""A task that a softmax cannot do without a sink (arXiv 2603.11487).

At a trigger the output is the mean of the tokens before, at any other token
nothing. Weights that must sum to one can add up to nothing only on a value
that is nothing: that of the first token. Weights that need not can be zero.
One attention layer is all there is; its output is the answer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sinkjax.config import ModelConfig
from sinkjax.data.synthetic import sample_trigger_mean
from sinkjax.experiments.harness.api import Claim, Result, direction
from sinkjax.experiments.harness.history import histories
from sinkjax.experiments.harness.jobs import Job, run_jobs
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.metrics.norms import value_norm_ratio
from sinkjax.metrics.sinks import attention_share
from sinkjax.models.transformer import forward, init_params
from sinkjax.train.optimizer import OptimizerConfig, make_optimizer
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import replace
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "trigger_mean", "A task that a softmax cannot do without a sink"
SOURCE = "arXiv 2603.11487"

MODELS: dict[str, dict[str, Any]] = {
  "softmax": {},
  "normalized_sigmoid": {"normalizer": "normalized_sigmoid"},
  "sink_logit": {"sink_logit": True},
  "head_gate": {"gate": "head"},
  "relu": {"normalizer": "relu"},
  "sigmoid": {"normalizer": "sigmoid"},
}
"""What each model has otherwise than a plain layer."""

FORCED = ("softmax", "normalized_sigmoid")
"""Those whose weights sum to one and are not gated."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained; every model with every seed.

  Attributes:
    models: names of `MODELS`; softmax is what the others are compared with.
    seeds: of parameters and data.
    length: T, the first token among them.
    width: D, two of them marks.
    batch: rows a step.
    steps: of a run.
    peak: the learning rate, after `warmup` steps.
    warmup: steps.
    every: steps between two measurements.
    held_out: rows that are measured on, the same for all runs.
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
          f"{NAME} has no model {name!r}; it has {', '.join(MODELS)}"
        )


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"seeds": (0,), "steps": 600},
  "cpu": {},
  "gpu": {
    "length": 64,
    "width": 64,
    "batch": 1024,
    "steps": 10_000,
    "every": 200,
  },
  "paper": {
    "length": 64,
    "width": 64,
    "batch": 1024,
    "steps": 10_000,
    "every": 200,
  },
}
"""Fields of `Config` by --scale; the paper's own sizes are not known to us."""


def jobs(config: Config) -> list[Job]:
  """Every run of the sweep."""
  request = dataclasses.asdict(config)
  for name in ("models", "seeds"):
    del request[name]

  def job(model: str, seed: int) -> Job:
    def work(folder, device, advance):
      return train(config, model, seed, advance=advance)

    what = {"model": model, "seed": seed}
    return Job(f"{model}-{seed}", config.steps, {**request, **what}, work)

  return [job(model, seed) for model in config.models for seed in config.seeds]


def plan(config: Config) -> list[str]:
  """What will be trained, in words."""
  runs = len(config.models) * len(config.seeds)
  rows = config.steps * config.batch
  return [
    f"{runs} runs ({', '.join(config.models)}; seeds "
    f"{', '.join(map(str, config.seeds))}), {config.steps:,} steps and "
    f"{rows:,} rows of {config.length} tokens each"
  ]


def model_of(config: Config, model: str) -> ModelConfig:
  """One layer of one head that knows no positions; the MLP is not read."""
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
    **MODELS[model],
  )


def answer(cfg: ModelConfig, observers: dict[str, Any] | None = None):
  """`f(params, inputs [B, T, D]) -> trace`: "answer" [1, B, T, D], and others.

  The inputs are put in the embedding's place.
  """
  watch = {"answer": ("attn_out", lambda x: x), **(observers or {})}

  def f(params, inputs):
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

  Returns:
    {"history": a row of `measure` for each measurement; "trigger": where it
    is in a held-out row, "map": the attention on that row as shares}.
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
    jax.random.key(2**31), config.held_out, config.length, config.width
  )
  look = jax.jit(measure(cfg, held))
  history = [{"step": 0, **jax.device_get(look(params))}]
  for number in range(1, config.steps + 1):
    params, state = step(params, state, number)
    if number % config.every == 0 or number == config.steps:
      history.append({"step": number, **jax.device_get(look(params))})
      advance(number)
  shares = answer(
    cfg, {"map": ("pattern", lambda p: attention_share(p)[0, 0])}
  )(params, held.inputs[:1])["map"][0]
  return {
    "history": history,
    "trigger": int(np.argmax(held.trigger[0])),
    "map": jax.device_get(shares),
  }


def measure(cfg: ModelConfig, held) -> Callable:
  """`f(params) -> {name: scalar}` on rows of the task.

  Losses are sums of squares: of the whole row (`loss`), at the trigger
  (`loss_trigger`), and at all others (`loss_rest`), which is the square of
  what is written where nothing should be. `rest_first` is the attention on
  the first token of queries that are neither it nor the trigger, as a share
  of what they give in all, `rest_sum` that sum, and `trigger_first` the
  trigger's share. `value_ratio` is the first value's norm over the others'.
  """
  trigger = held.trigger
  rest = (~trigger).at[:, 0].set(False)

  def over(rows, where):
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(where)

  def shares(pattern):
    first = attention_share(pattern)[:, 0, :, 0]
    return {
      "rest_first": over(first, rest),
      "trigger_first": over(first, trigger),
      "rest_sum": over(jnp.sum(pattern[:, 0], axis=-1), rest),
    }

  f = answer(
    cfg,
    {
      "shares": ("pattern", shares),
      "value": ("v", lambda v: jnp.mean(value_norm_ratio(v))),
    },
  )

  def look(params):
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

  return look


def uniform_first(config: Config) -> float:
  """`rest_first` of attention that is even, by the trigger's places.

  The trigger is equally often at every place from 2 on.
  """
  share = 1 / (1 + np.arange(config.length))
  weight = np.ones(config.length)
  weight[0] = 0
  weight[2:] -= 1 / (config.length - 2)
  return float((share * weight).sum() / weight.sum())


def run(
  config: Config,
  *,
  folder: Any,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Trains what is left of the sweep, and says what came of it.

  Args:
    config: the sweep.
    folder: where runs are kept.
    progress: called with (steps done, steps in all).

  Raises:
    ValueError: as `jobs.run_jobs`.

  Cost: 15 ms a step of the cpu scale on two cores.
  """
  found = run_jobs(jobs(config), folder, progress=progress)
  names, steps, arrays, table = histories(
    found, ("model", "seed"), len(config.seeds)
  )
  uniform = uniform_first(config)
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(config, arrays, uniform),
    numbers={
      "models": list(config.models),
      "seeds": list(config.seeds),
      "steps": steps,
      "uniform_first": uniform,
      "trigger": found[0]["trigger"],
      "last": {
        model: {name: arrays[name][i, :, -1] for name in names}
        for i, model in enumerate(config.models)
      },
    },
    tables={"history.csv": table},
    arrays={
      **arrays,
      "steps": np.array(steps),
      "maps": np.array([one["map"] for one in found[:: len(config.seeds)]]),
    },
  )


def claims(config: Config, arrays, uniform: float) -> list[Claim]:
  """The two theorems, and what else frees a model of its sink."""
  if "softmax" not in config.models or len(config.seeds) < 2:
    return []

  def last(name, model):
    return arrays[name][config.models.index(model), :, -1]

  def told(name, model, form=".3f"):
    return mean_over(last(name, model), config.seeds).text(form)

  def claim(text, paper, values, ours):
    off = mean_over(np.asarray(values), config.seeds)
    return Claim(
      text,
      SOURCE,
      paper,
      ours,
      direction(off.low, off.high),
      f"95 % interval over {len(config.seeds)} seeds",
    )

  found = []
  for model in FORCED:
    if model not in config.models:
      continue
    words = model.replace("_", " ")
    found.append(
      claim(
        f"Where weights sum to one ({words}), queries with nothing to do give "
        "nearly all of theirs to the first token.",
        "a theorem: at least 1 - eps of them"
        if model == "softmax"
        else "not tried",
        last("rest_first", model) - 0.9,
        f"{told('rest_first', model)} of their attention, against 0.9; even "
        f"attention gives {uniform:.3f}; loss {told('loss', model, '.1e')}",
      )
    )
    found.append(
      claim(
        f"Its value drains away ({words}).",
        "what is read of it must be 0",
        1 - last("value_ratio", model),
        f"{told('value_ratio', model)} of the others' norm; what is written "
        f"where nothing should be: {told('loss_rest', model, '.1e')}",
      )
    )
  for model in config.models:
    if model in FORCED:
      continue
    words = model.replace("_", " ")
    found.append(
      claim(
        f"With {words} attention no sink forms.",
        "a theorem: loss 0 without one" if model == "relu" else "not tried",
        0.5 - last("rest_first", model),
        f"{told('rest_first', model)} of their attention, against 0.5, of "
        f"rows that sum to {told('rest_sum', model)}; loss "
        f"{told('loss', model, '.1e')} against "
        f"{told('loss', 'softmax', '.1e')} with softmax",
      )
    )
  return found
