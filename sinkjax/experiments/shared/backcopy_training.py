"""A model of the Bigram-Backcopy task: how it is trained and measured."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.data.synthetic import Backcopy, sample_backcopy
from sinkjax.metrics.norms import token_norms, value_norm_ratio
from sinkjax.metrics.sinks import attention_share
from sinkjax.models.transformer import Params, forward
from sinkjax.train.optimizer import OptimizerConfig, make_optimizer
from sinkjax.train.step import init_state, make_step
from sinkjax.transforms.capture import capture

DRAWN = 40
"""Tokens of the attention maps: more labels cannot be read."""

HELD_OUT_KEY = 2**31
"""Seed of the held-out rows, beyond every seed of a run."""


@dataclasses.dataclass(frozen=True)
class BackcopyConfig:
  """What is trained; every normaliser with every seed.

  Attributes:
    normalizers: of the attention, see `models.normalizers`; the others are
      compared with softmax.
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
    held_out: rows on which models are measured, the same for all runs.
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


def model_of(
  config: BackcopyConfig, task: Backcopy, normalizer: str
) -> ModelConfig:
  """The model of a run: one head a layer."""
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


def held_out_rows(config: BackcopyConfig, task: Backcopy) -> Array:
  """[held_out, T] rows on which every model is measured."""
  key = jax.random.key(HELD_OUT_KEY)
  return sample_backcopy(task, key, config.held_out, config.length)


def train(
  config: BackcopyConfig,
  task: Backcopy,
  *,
  normalizer: str,
  seed: int,
  advance: Callable[[int], Any] = lambda steps: None,
) -> dict[str, Any]:
  """One run.

  Args:
    config: of the sweep.
    task: that is learned.
    normalizer: of the attention.
    seed: of parameters and data.
    advance: called with the steps done.

  Returns:
    {"history": a row of `quantities` for each measurement; "tokens": the start
    of a held-out row, "map": the last layer's attention on it as shares}.
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
  held = held_out_rows(config, task)
  measured = jax.jit(quantities(cfg, task, held))
  weights = jnp.ones((config.batch, config.length), bool).at[:, 0].set(False)
  positions = jnp.broadcast_to(jnp.arange(config.length), weights.shape)
  history = [{"step": 0, **jax.device_get(measured(state.params))}]
  for number in range(1, config.steps + 1):
    key = jax.random.fold_in(data, number)
    tokens = sample_backcopy(task, key, config.batch, config.length)
    batch = {"tokens": tokens, "positions": positions, "weights": weights}
    state, _ = step(state, batch)
    if number % config.every == 0 or number == config.steps:
      found = jax.device_get(measured(state.params))
      history.append({"step": number, **found})
      advance(number)
  row = held[:1, :DRAWN]
  shares = _last_map(cfg, state.params, row)
  return {
    "history": history,
    **jax.device_get({"tokens": row[0], "map": shares}),
  }


def _last_map(cfg: ModelConfig, params: Params, row: Array) -> Array:
  """[T, T] the last layer's attention on one row, as shares."""
  watch = {"map": ("pattern", lambda p: jnp.mean(attention_share(p)[0], 0))}
  return capture(forward(cfg), watch)(params, row).trace["map"][-1]


def quantities(
  cfg: ModelConfig, task: Backcopy, tokens: Array | np.ndarray
) -> Callable[[Params], dict[str, Array]]:
  """`f(params) -> {name: scalar}` on rows of the task.

  `excess_*` is the mean of KL(true next token || model): the loss above the
  lowest possible, without the noise of a sample. A query is active where its
  token is a trigger, else dormant; position 0 is neither. Attention is a
  share of the row, see `metrics.sinks.attention_share`, and averaged over
  layers, except that of triggers on the previous token: it is the greatest of
  a layer.
  """
  tokens = jnp.asarray(tokens)
  active = jnp.asarray(task.triggers)[tokens].at[:, 0].set(False)
  dormant = (~active).at[:, 0].set(False)
  before = jnp.maximum(jnp.arange(tokens.shape[1]) - 1, 0)
  # p(next | the past): the row of a token, or the token before a trigger.
  table = jnp.asarray(task.bigram, jnp.float32)[tokens]
  copied = jax.nn.one_hot(tokens[:, before], task.vocab_size)
  true = jnp.where(active[:, :, None], copied, table)[:, :-1]

  def shares(pattern: Array) -> dict[str, Array]:
    share = jnp.mean(attention_share(pattern), axis=1)  # over heads, [B, T, S]
    previous = share[:, jnp.arange(tokens.shape[1]), before]
    return {
      "dormant_first": _mean_where(share[:, :, 0], dormant),
      "active_first": _mean_where(share[:, :, 0], active),
      "active_previous": _mean_where(previous, active),
    }

  watched = capture(
    forward(cfg),
    {
      "shares": ("pattern", shares),
      "sink_logit": ("scores", lambda s: _sink_logit(s, dormant)),
      "value_ratio": ("v", lambda v: jnp.mean(value_norm_ratio(v))),
      "residual_peak": ("resid_post", _residual_peak),
    },
  )

  def measure(params: Params) -> dict[str, Array]:
    logits, trace = watched(params, tokens)
    logp = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    kl = jnp.sum(jax.scipy.special.xlogy(true, true) - true * logp, axis=-1)
    here, attention = active[:, :-1], trace["shares"]
    return {
      "excess": jnp.mean(kl),
      "excess_active": _mean_where(kl, here),
      "excess_dormant": _mean_where(kl, ~here),
      "sink_logit": jnp.mean(trace["sink_logit"]),
      "value_ratio": jnp.mean(trace["value_ratio"]),
      "residual_peak": jnp.max(trace["residual_peak"]),
      "dormant_first": jnp.mean(attention["dormant_first"]),
      "active_first": jnp.mean(attention["active_first"]),
      "active_previous": jnp.max(attention["active_previous"]),
    }

  return measure


def _mean_where(rows: Array, where: Array) -> Array:
  """The mean of [B, T] where a mask holds."""
  return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(where)


def _sink_logit(scores: Array, dormant: Array) -> Array:
  """BOS's score above the mean of the others that a dormant query sees."""
  row = jnp.mean(scores, axis=1)
  seen = jnp.arange(row.shape[-1])
  others = (seen[None] <= seen[:, None]) & (seen[None] > 0)
  total = jnp.sum(jnp.where(others[None], row, 0), axis=-1)
  above = row[:, :, 0] - total / jnp.maximum(seen, 1)[None]
  return _mean_where(above, dormant)


def _residual_peak(resid: Array) -> Array:
  """BOS's residual norm over the mean of the other tokens'."""
  norms = token_norms(resid)
  return jnp.mean(norms[:, 0] / jnp.mean(norms[:, 1:], axis=1))


def uniform_first(config: BackcopyConfig, task: Backcopy) -> float:
  """`dormant_first` of uniform attention, on the held-out rows."""
  dormant = ~task.triggers[np.asarray(held_out_rows(config, task))]
  dormant[:, 0] = False
  share = 1 / (1 + np.arange(config.length))
  return float((dormant * share).sum() / dormant.sum())
