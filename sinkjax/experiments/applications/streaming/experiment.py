"""A long text through caches with and without its first tokens.

One text, the addresses of one speaker in order, goes through caches that keep
its first tokens and a window, the window alone, or everything, past the context
that the model was trained on; and, at a sample of its tokens, through a forward
pass on the window anew. Loss by position, time, memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.data.corpus import speeches
from sinkjax.experiments.applications.streaming.claims import claims
from sinkjax.experiments.applications.streaming.config import (
  DENSE,
  KEPT,
  RECOMPUTE,
  Config,
  Found,
  Run,
  Times,
  check,
  numbered,
  plan_of,
  sample,
)
from sinkjax.experiments.applications.streaming.tables import (
  curves,
  near_context,
  table_of_sinks,
  table_of_starts,
  table_of_time,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.timing import interleaved
from sinkjax.inference import kv_policy
from sinkjax.inference.scoring import (
  dense_nats,
  last_logits,
  recompute_nats,
  stream_nats,
)
from sinkjax.models.cache import advance, init_cache, split_layers

NAME, TITLE = "streaming", "A long text at constant memory"


def run(
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
  plan = plan_of(config)
  check(subject, config)
  ids = _ids(subject, config, text)
  params = split_layers(subject.params)
  total = sum(len(_before(subject, x)) + x.tokens for x in plan)
  total += len(subject.prefix) + config.dense
  total, done = total + config.recomputed * config.total + 1, 0

  def step(tokens):
    nonlocal done
    done += tokens
    progress(done, total)

  found = {x: _stream(subject, config, params, ids, x, step) for x in plan}
  nats = dense_nats(
    subject.cfg,
    params,
    [*subject.prefix, *ids[: config.dense + 1]],
    room=config.room,
    chunk=config.chunk,
    progress=step,
  )
  found[DENSE] = numbered(nats, config.dense, 0)
  at = sample(config)
  found[RECOMPUTE] = Found(
    at,
    recompute_nats(
      subject.cfg,
      subject.params,
      ids,
      at=at,
      total=config.total,
      prefix=subject.prefix,
      batch=config.batch,
      progress=step,
    ),
  )
  times = _times(subject, config, params, ids)
  step(1)
  return _result(subject, config, text, found, times)


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
    before += [token] * (KEPT - len(before))
  return before


def _stream(subject, config, params, ids, one: Run, step) -> Found:
  policy = kv_policy.sinks(one.sinks, one.total - one.sinks, chunk=config.chunk)
  text = ids[one.begin : one.begin + one.tokens + 1]
  nats = stream_nats(
    subject.cfg,
    params,
    [*_before(subject, one), *text],
    policy=policy,
    progress=step,
  )
  return numbered(nats, one.tokens, one.begin)


def _times(subject: Subject, config: Config, params, ids) -> Times:
  """Seconds and bytes of one token more, by the size of the cache."""
  cfg, works, kept, working = subject.cfg, {}, [], []
  totals = sorted({config.total, *config.totals})
  for total in totals:
    policy = kv_policy.sinks(KEPT, total - KEPT, chunk=1)
    state = [init_cache(cfg, policy)]
    kept.append(sum(x.nbytes for x in jax.tree.leaves(state[0].layers)))
    step = jax.jit(advance(cfg, policy, logits="last"), donate_argnums=2)
    token = jnp.asarray(ids[None, :1], jnp.int32)
    step = step.lower(params, token, state[0]).compile()
    rows = jnp.asarray(ids[None, :total], jnp.int32)
    anew = last_logits(cfg).lower(subject.params, rows).compile()
    working.append((_working(step), _working(anew)))
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


def _stepper(step, params, token, state, config: Config):
  """`steps` tokens more; the cache goes on from call to call."""

  def work():
    for _ in range(config.steps):
      logits, state[0] = step(params, token, state[0])
    return logits

  return work


def _working(compiled) -> int:
  size = getattr(compiled.memory_analysis(), "temp_size_in_bytes", None)
  return -1 if size is None else int(size)


def _result(subject, config, text, found, times) -> Result:
  long = {s: found[Run(s, config.total, config.tokens)] for s in config.sinks}
  source = (
    "given"
    if text is not None
    else (
      f"addresses on the state of the union by {config.speaker}, from "
      f"{config.years[0]} on"
    )
  )
  context = subject.cfg.max_len
  numbers = {
    "text": source,
    "tokens": config.tokens,
    "total": config.total,
    "fewer": config.fewer,
    "dense": config.dense,
    "context": context,
    "recomputed": config.recomputed,
    "block": config.block,
    "chunk": config.chunk,
    "sinks": list(config.sinks),
    "kept": KEPT,
    "prefix": list(subject.prefix),
    "totals": times.totals,
    "seconds": {
      "cached": np.median(times.cached, axis=1).tolist(),
      "anew": np.median(times.anew, axis=1).tolist(),
    },
    "bytes": {
      "cached": times.kept,
      "dense": times.kept[0] // times.totals[0] * config.dense,
      "working": [list(pair) for pair in times.working],
    },
  }
  size = config.block
  blocks = {
    f"block_loss, {s} first": np.array(
      [one.nats[i : i + size].mean() for i in range(0, len(one.nats), size)]
    )
    for s, one in long.items()
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(config, found, long, times, context - len(subject.prefix)),
    numbers=numbers,
    tables={
      "positions.csv": curves(config, long, found),
      "context.csv": near_context(config, long, found, context),
      "sinks.csv": table_of_sinks(config, found),
      "starts.csv": table_of_starts(config, found, long[KEPT]),
      "time.csv": table_of_time(times),
    },
    arrays={
      **blocks,
      "dense": found[DENSE].nats.astype(np.float32),
      "recompute": found[RECOMPUTE].nats,
      "recomputed_at": found[RECOMPUTE].at,
      "seconds_cached": times.cached,
      "seconds_anew": times.anew,
    },
  )
