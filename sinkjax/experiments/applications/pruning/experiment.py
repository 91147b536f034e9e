"""Ranks heads, removes them, skips them at single queries, and times models."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sinkjax.config import ModelConfig
from sinkjax.experiments.applications.pruning.config import (
  OUTPUTS,
  SCORES,
  UNROLLED,
  WHOLE,
  Config,
  Ranking,
  Skip,
  without,
)
from sinkjax.experiments.applications.pruning.results import (
  Measured,
  Quality,
  Timed,
  result_of,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.timing import interleaved
from sinkjax.experiments.shared.prompt_corpus import Text, apart
from sinkjax.experiments.shared.sink_removal import loss_from
from sinkjax.experiments.shared.steps import Steps
from sinkjax.experiments.shared.text_batches import (
  batches,
  templates_of,
  texts_of_length,
)
from sinkjax.inference.head_scores import (
  HeadScores,
  Seen,
  observers,
  scores_of,
  seen_of,
)
from sinkjax.inference.prune import (
  lowest,
  ragged_forward,
  remove_by_layer,
  remove_heads,
  structured,
)
from sinkjax.inference.skip import SkipDormant, SkipPredicted
from sinkjax.models.transformer import forward
from sinkjax.transforms.attention_edits import AblateHeads
from sinkjax.transforms.capture import capture
from sinkjax.transforms.intervene import intervene

FEWEST = 8
"""Texts, at least: four that rank and four that are measured."""


def measure(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Ranks, removes, skips and times.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (conditions done, conditions in all).

  Raises:
    ValueError: for fewer than eight texts that are long enough, or shares and
      thresholds that cannot be.

  Cost: a forward pass of half of the texts for each condition: shares times
    (rankings and seeds) twice, and five for each threshold.
  """
  config.check()
  # Ranked on other texts: the loss of a choice made on the same would be too
  # low.
  ranking, held = split(subject, config, texts)
  seen = _look(subject, ranking, config.batch)
  scores = scores_of(subject.params, seen)
  orders = _orders(scores, config)
  removals = len(orders) * len(config.shares) * len(OUTPUTS)
  skips = len(config.thresholds) * len(Skip)
  shapes = _fitting(config, subject.cfg)
  # One more for the whole model, and one for all timings.
  step = Steps(progress, removals + skips + len(shapes) + 2)
  quality = Meter(subject, held, config.batch, step)
  mean = jnp.asarray(seen.mean, jnp.float32)
  heads = jnp.zeros(scores.output.shape, bool)
  # Through the same edit with no head chosen: one program, one rounding.
  plain = quality({"z": AblateHeads(heads, 0 * mean)})
  removed = {}
  for name, order in orders.items():
    for share in config.shares:
      chosen = jnp.asarray(lowest(order, round(share * order.size)))
      for output in OUTPUTS:
        # A head that adds a constant costs nothing if the constant stays.
        value = mean if output == "mean" else 0 * mean
        edits = {"z": AblateHeads(chosen, value)}
        removed[name, share, output] = quality(edits)
  skipped = {}
  for at in config.thresholds:
    for kind, one in _skip(subject, held, seen, at, quality, config).items():
      skipped[kind, at] = one
  times = _times(subject, config, scores, quality)
  step()
  counts = {
    "texts_that_rank": len(ranking),
    "texts": len(held),
    "templates": templates_of(held, subject.template),
  }
  measured = Measured(scores, plain, removed, skipped, times)
  return result_of(config, counts, measured)


def split(
  subject: Subject, config: Config, texts: Sequence[Text] | None
) -> tuple[np.ndarray, np.ndarray]:
  """(ids that rank, ids that are measured), [P, T] each."""
  ids = texts_of_length(
    subject, texts, config.count, config.tokens, config.seed, fewest=FEWEST
  )
  return apart(ids, len(ids) // 2, config.seed, subject.template)


def _look(subject: Subject, ids: np.ndarray, batch: int) -> Seen:
  f = jax.jit(capture(forward(subject.cfg), observers()))
  parts = [
    jax.tree.map(np.asarray, f(subject.params, jnp.asarray(part)).trace)
    # Even parts, at most two shapes: means weigh every text the same.
    for part in np.array_split(ids, -(-len(ids) // batch))
  ]
  return seen_of(jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts))


def _orders(scores: HeadScores, config: Config) -> dict[str, np.ndarray]:
  """Scores by which heads are removed, the lowest first."""
  rng = np.random.default_rng(config.seed)
  drawn = {
    f"{Ranking.RANDOM} {i}": rng.random(scores.output.shape)
    for i in range(config.seeds)
  }
  named = {
    name: getattr(scores, SCORES[name])
    for name in Ranking
    if name != Ranking.RANDOM
  }
  return named | drawn


def _cut(pattern: Array) -> Array:
  """[B] share of rows after the first that read the first key at most."""
  others = jnp.sum(jnp.abs(pattern[:, :, 1:, 1:]), axis=-1)
  return jnp.mean(others == 0, axis=(1, 2))


class Meter:
  """`Quality` of the model under edits; compiled once for each kind of edit.

  Args:
    subject: the model.
    ids: [P, T] the texts.
    batch: texts in one forward pass.
    step: called after each measurement.
  """

  def __init__(
    self, subject: Subject, ids: np.ndarray, batch: int, step: Steps
  ):
    self._subject, self._ids, self._batch = subject, ids, batch
    self._step, f = step, forward(subject.cfg)

    @jax.jit
    def each(
      params: Any, ids: Array, edits: dict[str, Any]
    ) -> tuple[Array, Array, Array]:
      g = intervene(f, edits)
      # Observing the pattern costs a forward pass's memory: only where asked.
      if set(edits) & {"scores", "pattern"}:
        g = capture(g, {"cut": ("pattern", _cut)})
      out = g(params, ids)
      right = jnp.argmax(out.logits[:, :-1], axis=-1) == ids[:, 1:]
      cut = out.trace["cut"].mean(axis=0) if out.trace else 0.0 * ids[:, 0]
      return loss_from(out.logits, ids, 1), right.mean(axis=-1), cut

    self._each = each

  def __call__(
    self,
    edits: dict[str, Any],
    of_batch: Callable[..., dict[str, Any]] = lambda edits, start, batch: edits,
  ) -> Quality:
    """Measures edits.

    Args:
      edits: of `intervene`.
      of_batch: `of_batch(edits, start, batch)`, those of one batch of texts.
    """
    parts = []
    for start, count, rows in batches(self._ids, self._batch):
      mine = of_batch(edits, start, self._batch)
      out = self._subject.kept(
        "batch", self._each, self._subject.params, jnp.asarray(rows), mine
      )
      # The filling of the last batch is dropped here.
      parts.append([x.astype(np.float64)[:count] for x in out])
    self._step()
    return Quality(*map(np.concatenate, zip(*parts, strict=True)))


def _skip(
  subject: Subject,
  held: np.ndarray,
  seen: Seen,
  threshold: float,
  quality: Meter,
  config: Config,
) -> dict[Skip, Quality]:
  """Heads skipped at single queries, and at as many random ones."""
  cfg, at = subject.cfg, jnp.asarray(threshold, jnp.float32)
  level = jnp.asarray(seen.level, jnp.float32)

  def dormant(weight: float) -> dict[str, Any]:
    return {"pattern": SkipDormant(at, jnp.asarray(weight))}

  found = {
    Skip.SINK_TERM: quality(dormant(jnp.nan)),
    Skip.SINK_VALUE: quality(dormant(1.0)),
    Skip.PREDICTED: quality({"scores": SkipPredicted(at, level)}),
  }
  shape = (cfg.n_layers, len(held), cfg.n_heads, held.shape[1])
  # One draw for all thresholds: a larger share contains the smaller.
  drawn = np.random.default_rng(config.seed).random(shape)

  def at_random(like: Skip, weight: float) -> Quality:
    """As many as there, anywhere, and the first key's weight as there."""
    chosen = drawn < float(found[like].skipped.mean())

    def rows(edits: dict[str, Any], start: int, batch: int) -> dict[str, Any]:
      mine = chosen[:, start : start + batch]
      # Up to the one shape of a batch; padded texts are dropped later.
      mine = np.pad(mine, [(0, 0), (0, batch - mine.shape[1]), (0, 0), (0, 0)])
      edit = edits["pattern"]
      return {"pattern": dataclasses.replace(edit, chosen=jnp.asarray(mine))}

    return quality(dormant(weight), rows)

  found[Skip.RANDOM] = at_random(Skip.SINK_TERM, jnp.nan)
  found[Skip.RANDOM_VALUE] = at_random(Skip.PREDICTED, 1.0)
  return found


def _fitting(config: Config, cfg: ModelConfig) -> list[tuple[int, int]]:
  """The shapes of smaller models that the model is large enough for."""
  return [
    (groups, each)
    for groups, each in config.shapes
    if groups <= cfg.n_kv_heads and each <= cfg.group_size
  ]


def _times(
  subject: Subject, config: Config, scores: HeadScores, quality: Meter
) -> Timed:
  """Seconds of smaller models, and the loss of those with equal layers."""
  params, cfg = subject.params, subject.cfg
  # Time does not depend on what the text says.
  ids = np.random.default_rng(config.seed).integers(
    cfg.vocab_size, size=(1, config.timed)
  )

  def logits(cfg: ModelConfig) -> Callable:
    return lambda params, ids: forward(cfg)(params, ids).logits

  models = {WHOLE: (logits(cfg), params)}
  left, losses = {WHOLE: 1.0}, {}
  for groups, each in _fitting(config, cfg):
    removed = structured(cfg, scores.nonsink_update, groups, each)
    name = f"{groups} group{'s' * (groups > 1)} of {each}"
    small, its = remove_heads(params, cfg, removed)
    models[name] = logits(its), small
    left[name] = its.n_heads / cfg.n_heads
    zero = jnp.zeros((*removed.shape, cfg.value_dim))
    losses[name] = quality({"z": AblateHeads(jnp.asarray(removed), zero)})
  # Layers of unequal size cannot be scanned: compared with the whole model
  # unrolled as well, which alone changes the time.
  for share in (0.0, *config.unrolled):
    count = round(share * scores.output.size)
    removed = lowest(scores.nonsink_update, count)
    small, cfgs = remove_by_layer(params, cfg, removed)
    name = without(share) if share else UNROLLED
    models[name] = ragged_forward(cfg, cfgs), small
    left[name] = float(1 - removed.mean())
  works = {
    name: functools.partial(jax.jit(f), its, jnp.asarray(ids))
    for name, (f, its) in models.items()
  }
  return Timed(interleaved(works, config.rounds), left, losses)
