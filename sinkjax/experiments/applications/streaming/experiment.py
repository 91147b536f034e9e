"""Streams a long text through caches, and times a token."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.data.corpus import speeches
from sinkjax.experiments.applications.streaming.config import (
  KEPT,
  Config,
  Run,
  runs_of,
  sample,
)
from sinkjax.experiments.applications.streaming.losses import (
  Losses,
  Streams,
  numbered,
)
from sinkjax.experiments.applications.streaming.results import Times, result_of
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.timing import interleaved
from sinkjax.experiments.shared.steps import Steps
from sinkjax.inference import kv_policy
from sinkjax.inference.scoring import (
  dense_nats,
  last_logits,
  recompute_nats,
  stream_nats,
)
from sinkjax.models.cache import advance, init_cache, split_layers


def measure(
  subject: Subject,
  config: Config,
  *,
  text: str | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Streams the text, and times a token.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    text: another text than the addresses.
    progress: called with (tokens that went through the model, in all), and
      with one more when a token has been timed.

  Raises:
    ValueError: for a text that is too short, a config that leaves out what
      the claims are about, or a model with learned positions.

  Cost: N tokens through the model for each of `sinks`, `fewer` for each of
    the others, `dense` at a full cache, `recomputed` times `total` anew; of
    memory the parameters twice.
  """
  runs = runs_of(config)
  config.check(len(subject.prefix))
  ids, params = _ids(subject, config, text), split_layers(subject.params)
  total = sum(len(_before(subject, x)) + x.tokens for x in runs)
  total += len(subject.prefix) + config.dense
  step = Steps(progress, total + config.recomputed * config.total + 1)
  streams = Streams(
    {x: _stream(subject, config, params, ids, x, step) for x in runs},
    _dense(subject, config, params, ids, step),
    _recomputed(subject, config, ids, step),
  )
  times = _times(subject, config, params, ids)
  step()
  source = "given"
  if text is None:
    source = (
      f"addresses on the state of the union by {config.speaker}, from "
      f"{config.years[0]} on"
    )
  about = {
    "text": source,
    "context": subject.cfg.max_len,
    "prefix": list(subject.prefix),
  }
  return result_of(config, about, streams, times)


def _ids(subject: Subject, config: Config, text: str | None) -> np.ndarray:
  """[N + 1] ids: the first is given, the others are predicted."""
  if text is None:
    first, last = config.years
    text = "\n\n".join(
      address.strip()
      for name, address in speeches().items()
      if first <= int(name[:4]) <= last and name[5:].startswith(config.speaker)
    )
  ids = subject.tokenizer.encode(text)
  if len(ids) <= config.tokens:
    raise ValueError(
      f"the text has {len(ids)} tokens, {config.tokens + 1} are needed: give "
      "more years, or fewer tokens"
    )
  return np.array(ids[: config.tokens + 1])


def _before(subject: Subject, one: Run) -> list[int]:
  """What is put before the text: prefix and start, `KEPT` tokens with one."""
  before = list(subject.prefix)
  if one.start:
    token = subject.tokenizer.encode(one.start)[0]
    # As many as are kept, so that nothing of the text itself is.
    before += [token] * (KEPT - len(before))
  return before


def _stream(
  subject: Subject,
  config: Config,
  params: Any,
  ids: np.ndarray,
  one: Run,
  step: Steps,
) -> Losses:
  policy = kv_policy.sinks(one.sinks, one.total - one.sinks, chunk=config.chunk)
  text = ids[one.begin : one.begin + one.tokens + 1]
  before = _before(subject, one)
  with step.of(len(before) + one.tokens):
    nats = subject.kept(
      "stream",
      stream_nats,
      subject.cfg,
      params,
      [*before, *text],
      policy=policy,
      progress=step,
    )
  return numbered(nats, one.tokens, one.begin)


def _dense(
  subject: Subject, config: Config, params: Any, ids: np.ndarray, step: Steps
) -> Losses:
  with step.of(len(subject.prefix) + config.dense):
    nats = subject.kept(
      "dense",
      dense_nats,
      subject.cfg,
      params,
      [*subject.prefix, *ids[: config.dense + 1]],
      room=config.room,
      chunk=config.chunk,
      progress=step,
    )
  return numbered(nats, config.dense, 0)


def _recomputed(
  subject: Subject, config: Config, ids: np.ndarray, step: Steps
) -> Losses:
  at = sample(config)
  with step.of(config.recomputed * config.total):
    nats = subject.kept(
      "recomputed",
      recompute_nats,
      subject.cfg,
      subject.params,
      ids,
      at=at,
      total=config.total,
      prefix=subject.prefix,
      batch=config.batch,
      progress=step,
    )
  return Losses(at, nats)


def _times(
  subject: Subject, config: Config, params: Any, ids: np.ndarray
) -> Times:
  """Seconds and bytes of one token more, by the size of the cache."""
  cfg, works, kept, working = subject.cfg, {}, [], []
  totals = sorted({config.total, *config.totals})
  for total in totals:
    # Token by token, as text is generated.
    policy = kv_policy.sinks(KEPT, total - KEPT, chunk=1)
    state = [init_cache(cfg, policy)]
    kept.append(sum(x.nbytes for x in jax.tree.leaves(state[0].layers)))
    # The old cache is given up, or every token would copy it.
    step = jax.jit(advance(cfg, policy, logits="last"), donate_argnums=2)
    token = jnp.asarray(ids[None, :1], jnp.int32)
    step = step.lower(params, token, state[0]).compile()
    rows = jnp.asarray(ids[None, :total], jnp.int32)
    anew = last_logits(cfg).lower(subject.params, rows).compile()
    working.append((_working(step), _working(anew)))
    # Several tokens in one measurement: a single one is too short to time.
    works[f"cached {total}"] = _stepper(step, params, token, state, config)
    works[f"anew {total}"] = lambda f=anew, rows=rows: f(subject.params, rows)
  seconds = interleaved(works, config.rounds, seed=config.seed)
  cached = [seconds[f"cached {total}"] / config.steps for total in totals]
  return Times(
    totals,
    np.array(cached),
    np.array([seconds[f"anew {total}"] for total in totals]),
    kept,
    working,
  )


def _stepper(
  step: Callable, params: Any, token: jax.Array, state: list, config: Config
) -> Callable[[], jax.Array]:
  """`steps` tokens more; the cache goes on from call to call."""

  def work() -> jax.Array:
    for _ in range(config.steps):
      logits, state[0] = step(params, token, state[0])
    return logits

  return work


def _working(compiled: Any) -> int:
  size = getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)
  return -1 if size is None else int(size)
