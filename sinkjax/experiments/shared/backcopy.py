"""Training on the Bigram-Backcopy task (Guo et al., arXiv 2410.13835).

A head that copies at triggers has nothing to do at any other token. What is
trained, measured and drawn is the same for the experiments `bigram_backcopy`,
of one layer, and `residual_peak`, of three; each has claims of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.data.corpus import gather
from sinkjax.data.synthetic import (
  Backcopy,
  backcopy_optimum,
  backcopy_task,
  sample_backcopy,
)
from sinkjax.experiments.harness import history
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.history import histories
from sinkjax.experiments.harness.jobs import Job, run_jobs
from sinkjax.experiments.harness.stats import compare, mean
from sinkjax.metrics.norms import token_norms, value_norm_ratio
from sinkjax.metrics.sinks import attention_share
from sinkjax.models.transformer import forward
from sinkjax.train.optimizer import OptimizerConfig, make_optimizer
from sinkjax.train.step import init_state, make_step
from sinkjax.transforms.capture import capture

DRAWN = 40
"""Tokens of the attention maps."""


@dataclasses.dataclass(frozen=True)
class BackcopyConfig:
  """What is trained; every normaliser with every seed.

  Attributes:
    normalizers: of the attention, see `models.normalizers`; softmax is what
      the others are compared with.
    layers: of every model.
    seeds: of parameters and data.
    corpus: whose characters give the bigrams.
    triggers: how many characters are triggers.
    length: T, with BOS.
    batch: rows a step.
    steps: of a run.
    d_model: width; one head of it.
    peak: the learning rate, after `warmup` steps.
    warmup: steps.
    schedule: of the learning rate, see `train.optimizer`.
    b2: of AdamW.
    weight_decay: of AdamW.
    every: steps between two measurements.
    held_out: rows that are measured on, the same for all runs.
  """

  normalizers: tuple[str, ...] = ("softmax", "relu", "sigmoid")
  layers: int = 1
  seeds: tuple[int, ...] = (0, 1, 2)
  corpus: tuple[str, ...] = ("sotu",)
  triggers: int = 3
  length: int = 64
  batch: int = 64
  steps: int = 360
  d_model: int = 128
  peak: float = 1e-3
  warmup: int = 20
  schedule: str = "cosine"
  b2: float = 0.95
  weight_decay: float = 1e-4
  every: int = 20
  held_out: int = 128


_LARGE = {"length": 256, "batch": 512, "d_model": 256, "peak": 3e-4}

LARGE_SCALES: dict[str, dict[str, Any]] = {
  "gpu": _LARGE | {"steps": 3000, "every": 50},
  "paper": _LARGE | {"steps": 10_000, "every": 100},
}
"""Fields of `BackcopyConfig` by --scale, where there is a card."""


def jobs(config: BackcopyConfig) -> list[Job]:
  """Every run of the sweep."""
  request = dataclasses.asdict(config)
  del request["normalizers"], request["seeds"]
  task = None

  def shared() -> Backcopy:
    nonlocal task
    if task is None:
      text = "\n".join(gather(config.corpus).texts)
      task = backcopy_task(text, triggers=config.triggers)
    return task

  def job(normalizer: str, seed: int) -> Job:
    what = {"normalizer": normalizer, "seed": seed}

    def work(folder, device, advance):
      return train(config, shared(), **what, advance=advance)

    return Job(f"{normalizer}-{seed}", config.steps, {**request, **what}, work)

  return [
    job(normalizer, seed)
    for normalizer in config.normalizers
    for seed in config.seeds
  ]


def plan(config: BackcopyConfig) -> list[str]:
  """What will be trained, in words."""
  runs = len(config.normalizers) * len(config.seeds)
  tokens = config.steps * config.batch * config.length
  return [
    f"{runs} runs ({', '.join(config.normalizers)}; seeds "
    f"{', '.join(map(str, config.seeds))}) of {config.layers} "
    f"layer{'s' * (config.layers > 1)}, {config.steps:,} steps and {tokens:,} "
    "tokens each"
  ]


def model_of(config: BackcopyConfig, task: Backcopy, normalizer: str):
  """The `ModelConfig` of a run."""
  return ModelConfig(
    vocab_size=task.vocab_size,
    d_model=config.d_model,
    n_layers=config.layers,
    n_heads=1,
    n_kv_heads=1,
    head_dim=config.d_model,
    d_ff=2 * config.d_model,
    max_len=config.length,
    normalizer=normalizer,
    init_std=0.02,
    scan_layers=False,
  )


def train(
  config: BackcopyConfig,
  task: Backcopy,
  *,
  normalizer: str,
  seed: int,
  advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Any]:
  """One run.

  Returns:
    {"history": a row of `measure` for each measurement; "tokens": the start of
    a held-out row, "map": the last layer's attention on it as shares}.
  """
  cfg = model_of(config, task, normalizer)
  optimizer = make_optimizer(
    OptimizerConfig(
      peak=config.peak,
      warmup=config.warmup,
      schedule=config.schedule,
      b2=config.b2,
      weight_decay=config.weight_decay,
    ),
    config.steps,
  )
  start, data = jax.random.split(jax.random.key(seed))
  state = init_state(cfg, optimizer, start)
  step = make_step(cfg, optimizer, separated=False)
  held = sample_backcopy(
    task, jax.random.key(2**31), config.held_out, config.length
  )
  look = jax.jit(measure(cfg, task, held))
  weights = jnp.ones((config.batch, config.length), bool).at[:, 0].set(False)
  positions = jnp.broadcast_to(jnp.arange(config.length), weights.shape)
  history = [{"step": 0, **jax.device_get(look(state.params))}]
  for number in range(1, config.steps + 1):
    key = jax.random.fold_in(data, number)
    tokens = sample_backcopy(task, key, config.batch, config.length)
    batch = {"tokens": tokens, "positions": positions, "weights": weights}
    state, _ = step(state, batch)
    if number % config.every == 0 or number == config.steps:
      found = jax.device_get(look(state.params))
      history.append({"step": number, **found})
      advance(number)
  row = held[:1, :DRAWN]
  shares = capture(
    forward(cfg),
    {"map": ("pattern", lambda p: jnp.mean(attention_share(p)[0], axis=0))},
  )(state.params, row).trace["map"]
  return {
    "history": history,
    **jax.device_get({"tokens": row[0], "map": shares[-1]}),
  }


def measure(cfg: ModelConfig, task: Backcopy, tokens) -> Callable:
  """`f(params) -> {name: scalar}` on rows of the task.

  `excess_*` is the mean of KL(true next token || model): the loss above the
  least that there is, without the noise of a sample. A query is active where
  its token is a trigger, else dormant; position 0 is neither. Attention is a
  share of the row, see `metrics.sinks.attention_share`, and the mean over
  layers, but for the trigger's on its previous token: of the layer that has
  most.
  """
  tokens = jnp.asarray(tokens)
  length = tokens.shape[1]
  active = jnp.asarray(task.triggers)[tokens].at[:, 0].set(False)
  dormant = (~active).at[:, 0].set(False)
  before = jnp.maximum(jnp.arange(length) - 1, 0)

  def over(rows, where):
    """The mean of [B, T] where a mask holds."""
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(where)

  def shares(pattern):
    share = jnp.mean(attention_share(pattern), axis=1)  # over heads, [B, T, S]
    previous = share[:, jnp.arange(length), before]
    return {
      "dormant_first": over(share[:, :, 0], dormant),
      "active_first": over(share[:, :, 0], active),
      "active_previous": over(previous, active),
    }

  def lifted(scores):
    """BOS's score above the mean of the others that a dormant query sees."""
    row, seen = jnp.mean(scores, axis=1), jnp.arange(length)
    others = (seen[None] <= seen[:, None]) & (seen[None] > 0)
    total = jnp.sum(jnp.where(others[None], row, 0), axis=-1)
    return over(row[:, :, 0] - total / jnp.maximum(seen, 1)[None], dormant)

  def peak(resid):
    norms = token_norms(resid)
    return jnp.mean(norms[:, 0] / jnp.mean(norms[:, 1:], axis=1))

  watched = capture(
    forward(cfg),
    {
      "shares": ("pattern", shares),
      "sink_logit": ("scores", lifted),
      "value_ratio": ("v", lambda v: jnp.mean(value_norm_ratio(v))),
      "residual_peak": ("resid_post", peak),
    },
  )
  # p(next | the past): the row of a token, or the token before a trigger.
  table = jnp.asarray(task.bigram, jnp.float32)[tokens]
  copied = jax.nn.one_hot(tokens[:, before], task.vocab_size)
  true = jnp.where(active[:, :, None], copied, table)[:, :-1]

  def look(params):
    logits, trace = watched(params, tokens)
    logp = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    kl = jnp.sum(jax.scipy.special.xlogy(true, true) - true * logp, axis=-1)
    here = active[:, :-1]
    found = {
      "excess": jnp.mean(kl),
      "excess_active": over(kl, here),
      "excess_dormant": over(kl, ~here),
      "sink_logit": jnp.mean(trace["sink_logit"]),
      "value_ratio": jnp.mean(trace["value_ratio"]),
      "residual_peak": jnp.max(trace["residual_peak"]),
    }
    attention = trace["shares"]
    return found | {
      "dormant_first": jnp.mean(attention["dormant_first"]),
      "active_first": jnp.mean(attention["active_first"]),
      "active_previous": jnp.max(attention["active_previous"]),
    }

  return look


def uniform_first(config: BackcopyConfig, task: Backcopy) -> float:
  """`dormant_first` of attention that is even, on the held-out rows."""
  tokens = sample_backcopy(
    task, jax.random.key(2**31), config.held_out, config.length
  )
  dormant = ~task.triggers[np.asarray(tokens)]
  dormant[:, 0] = False
  share = 1 / (1 + np.arange(config.length))
  return float((dormant * share).sum() / dormant.sum())


def trained(
  name: str,
  title: str,
  config: BackcopyConfig,
  folder: Any,
  progress: Callable[[int, int], Any],
  claims: Callable,
) -> Result:
  """Of what is trained, with `claims(config, arrays, even attention)`."""
  found = run_jobs(jobs(config), folder, progress=progress)
  text = "\n".join(gather(config.corpus).texts)
  task = backcopy_task(text, triggers=config.triggers)
  names, steps, arrays, table = histories(
    found, ("normalizer", "layers", "seed"), len(config.seeds)
  )
  uniform = uniform_first(config, task)
  return Result(
    name=name,
    title=title,
    claims=claims(config, arrays, uniform),
    numbers={
      "models": list(config.normalizers),
      "layers": config.layers,
      "seeds": list(config.seeds),
      "steps": steps,
      "optimum": float(backcopy_optimum(task, config.length).mean()),
      "uniform_first": uniform,
      "tokens": [
        "BOS" if i == 0 else task.characters[i - 1] for i in found[0]["tokens"]
      ],
      "triggers": list(task.characters[: config.triggers]),
      "last": {
        model: {name: arrays[name][i, :, -1] for name in names}
        for i, model in enumerate(config.normalizers)
      },
    },
    tables={"history.csv": table},
    arrays={
      **arrays,
      "steps": np.array(steps),
      "maps": np.array([one["map"] for one in found[:: len(config.seeds)]]),
    },
  )


def claim(
  text: str, paper: str, values, against: float, what: str, form: str = ".3f"
) -> Claim:
  """A claim of Guo et al. that holds where `values`, one a seed, are above."""
  ours = mean(values, form) + what
  source = "Guo et al., section 2"
  return compare(text, source, paper, values, ours, against=against)


def schedule(result) -> bytes:
  """The six quantities of the task through training."""
  panels = {
    "dormant_first": "dormant queries: attention on BOS",
    "active_previous": "triggers: attention on the token before",
    "excess": "loss above the least possible, nats",
    "value_ratio": "BOS's value norm over the others'",
    "sink_logit": "BOS's score above the others'",
    "residual_peak": "BOS's residual norm over the others'",
  }
  return history.schedule(
    result,
    panels,
    rows=2,
    height=5.6,
    even="dormant_first",
    scales={"excess": {"value": "log"}},
  )
