"""Measures what can be skipped, what skipping costs, and what time it saves."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.data import corpus
from sinkjax.experiments.applications.sink_compute import (
  skipped_blocks as blocks,
)
from sinkjax.experiments.applications.sink_compute.config import (
  SCORES,
  Config,
  bits_name,
  check_model,
)
from sinkjax.experiments.applications.sink_compute.results import (
  Cost,
  Measured,
  result_of,
)
from sinkjax.experiments.applications.sink_compute.timing import times_of
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.shared.sink_removal import loss_from
from sinkjax.experiments.shared.steps import Steps
from sinkjax.inference.key_codes import Codec
from sinkjax.models.transformer import logits_of

CHARACTERS = 12
"""Characters of a text that are encoded, for each token needed: English has
four to five a token, and whole books take minutes."""


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[str] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Shares, errors, times.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of the corpus.
    progress: called with (steps done, in all).

  Raises:
    ValueError: for attention without a bound, texts that are too few, or
      lengths, counts and bits that do not fit.

  Cost: `shares_of` of each text, and twice as many passes at `length` as
    there are tolerances.
  """
  # Before anything is measured: a bound of softmax holds for nothing else.
  check_model(subject.cfg)
  config.check(subject.cfg.max_len)
  fitting, held = rows_of(subject, config, texts)
  codecs = blocks.fit_codecs(subject, fitting, config.block)
  texts_at = dict(zip(config.lengths, config.counts, strict=True))
  costs = 2 * len(config.tolerances) * texts_at[config.length]
  total = sum(config.counts) + len(config.timed) + costs
  step, seen, skipped = Steps(progress, total), {}, {}
  for length, count in texts_at.items():
    seen[length] = []
    for row in held[:count]:
      skips = length == config.length
      with step.of(1 + costs // count * skips):
        shares, *found = subject.kept(
          "text", _text, subject, config, codecs, row[:length], skips, step
        )
      seen[length].append(blocks.Shares(*shares))
      for way, (what, *losses) in zip(_ways(config), found, strict=False):
        cost = Cost(blocks.Skipped(*what), *map(float, losses))
        skipped.setdefault(way, []).append(cost)
  layers = _layers_timed(config, seen[config.length])
  inputs = blocks.inputs_of(subject, held[0][None, : max(config.timed)])
  times = {}
  for length in config.timed:
    for layer in layers:
      times[layer, length] = times_of(
        subject, config, inputs, codecs, layer, length
      )
    step()
  return result_of(config, Measured(seen, skipped, times, layers))


def rows_of(
  subject: Subject, config: Config, texts: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray]:
  """(ids to fit on [P, T], other rows of the greatest length)."""
  if texts is None:
    texts = subject.texts
  if texts is None:
    texts = corpus.gather((config.corpus,)).texts
  most = max(*config.lengths, *config.timed)
  need, found = config.fitting + max(config.counts), []
  # At random: neighbours in the corpus are of one author and year.
  order = np.random.default_rng(config.seed).permutation(len(texts))
  for start in range(0, len(order), need):
    some = [texts[i][: CHARACTERS * most] for i in order[start : start + need]]
    found += [row[:most] for row in subject.encode(some) if len(row) >= most]
    if len(found) >= need:
      break
  if len(found) < need:
    raise ValueError(
      f"{len(found)} texts have {most} tokens; {need} are needed"
    )
  found = np.array(found[:need])
  longest = max(config.lengths)
  # The rows that are measured are not among those that codes are fitted on.
  return found[: config.fitting, :longest], found[config.fitting :]


def _ways(config: Config) -> list[tuple[str, float]]:
  """(bits, tolerance) of every way to skip whose cost is measured."""
  # All scores are the best that a bound can do; codes are what is proposed.
  return [
    (bits_name(bits), at)
    for bits in (None, config.best)
    for at in config.tolerances
  ]


def _text(
  subject: Subject,
  config: Config,
  codecs: list[Codec],
  ids: np.ndarray,
  skips: bool,
  step: Steps,
) -> tuple[blocks.Shares | Cost, ...]:
  """What can be skipped in one text, then what that costs in each of `_ways`.

  Args:
    subject: the model.
    config: what is run.
    codecs: of each layer.
    ids: [T].
    skips: whether the costs are measured.
    step: called after each pass.
  """
  final, shares = blocks.shares_of(subject, ids, codecs, config)
  step()
  found = []
  for bits in (None, config.best) if skips else ():
    for at in config.tolerances:
      out, what = blocks.skip(subject, ids, codecs, config, at, bits)
      found.append(Cost(what, *costs_of(subject, final, out, ids)))
      step()
  return (shares, *found)


def costs_of(
  subject: Subject, plain: Array, final: Array, ids: np.ndarray
) -> tuple[float, float, float]:
  """(loss of the whole model, loss, KL), nats a token of one text.

  Args:
    subject: the model.
    plain: the output of the whole model's final norm.
    final: that of the model that skips blocks.
    ids: [T].
  """
  params, cfg = subject.params, subject.cfg
  found = _costs_of(plain, final, params, jnp.asarray(ids)[None], cfg=cfg)
  return tuple(float(x) for x in found)


@functools.partial(jax.jit, static_argnames="cfg")
def _costs_of(
  plain: Array, final: Array, params: Any, ids: Array, *, cfg: ModelConfig
) -> tuple[Array, Array, Array]:
  with jax.default_matmul_precision(cfg.precision):
    logits = [logits_of(cfg, x, params) for x in (plain, final)]
  logs = [jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits]
  kl = jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)
  losses = (loss_from(x, ids, 1)[0] for x in logits)
  return (*losses, jnp.mean(kl))


def _layers_timed(
  config: Config, seen: Sequence[blocks.Shares]
) -> tuple[int, int]:
  """(the layer in which most can be skipped, that of the median share)."""
  at = config.tolerances.index(config.at)
  shares = np.mean([one.shares[SCORES][..., at] for one in seen], axis=(0, 2))
  # The best case for skipping, and a typical one.
  order = np.argsort(shares)
  return int(order[-1]), int(order[len(order) // 2])
