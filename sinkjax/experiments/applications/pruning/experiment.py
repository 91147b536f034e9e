"""Heads that only rest on the sink, taken out: what is lost, what is gained.

Heads are ranked on some texts by how little they do, and the loss is measured
on others: with the least of them removed for good (their output zero, or its
mean), and with heads skipped only at queries that rest on the first token.
Then the time that a model really without them takes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.applications.pruning.claims import (
  claims,
  share_at,
  without,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of, mean_over
from sinkjax.experiments.harness.timing import interleaved, saved
from sinkjax.experiments.shared.prompt_corpus import Text, apart, gather
from sinkjax.experiments.shared.sink_removal import loss_from
from sinkjax.inference.head_scores import (
  HeadScores,
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
from sinkjax.inference.skip import SkipForetold, SkipResting
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import AblateHeads
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "pruning", "Heads that rest, taken out"
RANKS = (
  "beside_sink",
  "off_sink",
  "output",
  "dormant",
  "weights",
  "beside_norm",
  "output_norm",
)
RANDOM = "random"
KINDS = (
  "sink's part kept",
  "sink alone",
  "foretold",
  "random queries",
  "random queries, sink alone",
)
WHOLE, RAGGED = "whole", "whole, unrolled"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`; half of them
      rank the heads, on the others the loss is measured.
    tokens: T of each; shorter texts are left out.
    shares: of the heads removed; with those of the claims, 0.04 and 0.14.
    seeds: orders at random.
    thresholds: a head is skipped where the first token has more.
    shapes: (KV groups, query heads in each) of smaller models that are timed;
      those that the model has not are left out.
    timed: tokens of the text that is timed.
    unrolled: shares of the heads that are really gone from models that are
      timed, some of `shares`; the first decides.
    rounds: of timing.
    batch: texts in one forward pass.
    seed: of the choice of texts.
  """

  count: int = 6
  tokens: int = 96
  shares: tuple[float, ...] = (0.01, 0.02, 0.04, 0.07, 0.14, 0.3, 0.5)
  seeds: int = 3
  thresholds: tuple[float, ...] = (0.5, 0.7, 0.9, 0.99)
  shapes: tuple[tuple[int, int], ...] = ((3, 2), (2, 3), (2, 2), (1, 3))
  timed: int = 256
  unrolled: tuple[float, ...] = (0.07, 0.3, 0.5)
  rounds: int = 9
  batch: int = 8
  seed: int = 0


class Quality(NamedTuple):
  """On the texts kept back.

  Attributes:
    loss: [P] nats per token.
    right: [P] share of next tokens that have the greatest logit.
    skipped: [P] share of (head, query) pairs that are skipped, 0 unless so.
  """

  loss: np.ndarray
  right: np.ndarray
  skipped: np.ndarray


def run(
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
    ValueError: for fewer than eight texts that are long enough, or shares
      and thresholds that are none.

  Cost: a forward pass of half of the texts for each condition: shares times
    (rankings and seeds) twice, and five for each threshold.
  """
  _check(config)
  ranking, held = _split(subject, config, texts)
  seen = _look(subject, ranking, config.batch)
  scores = scores_of(subject.params, seen)
  measure = _measurer(subject, held, config.batch)
  orders = _orders(scores, config)
  removals = len(orders) * len(config.shares) * 2
  total, done = removals + len(config.thresholds) * len(KINDS) + 2, 0

  def step(value):
    nonlocal done
    done += 1
    progress(done, total)
    return value

  mean = jnp.asarray(seen.mean, jnp.float32)
  plain = step(
    measure({"z": AblateHeads(jnp.zeros(scores.output.shape, bool), 0 * mean)})
  )
  removed = {
    (name, share, how): step(
      measure(
        {
          "z": AblateHeads(
            jnp.asarray(lowest(order, round(share * order.size))), flag * mean
          )
        }
      )
    )
    for name, order in orders.items()
    for share in config.shares
    for how, flag in (("zero", 0.0), ("mean", 1.0))
  }
  skips = {}
  for threshold in config.thresholds:
    skips |= _skip(subject, held, seen, threshold, measure, config.seed, step)
  times = step(_times(subject, config, scores, measure))
  return _result(
    subject,
    config,
    scores,
    plain,
    removed,
    skips,
    times,
    (len(ranking), len(held)),
  )


def _check(config: Config) -> None:
  inside = all(0 < x < 1 for x in (*config.shares, *config.thresholds))
  if not inside or list(config.shares) != sorted(config.shares):
    raise ValueError(
      "shares and thresholds must be between 0 and 1, shares increasing, got "
      f"{config.shares} and {config.thresholds}"
    )
  if not config.unrolled or not set(config.unrolled) <= set(config.shares):
    raise ValueError(
      f"unrolled must be some of shares={config.shares}, got {config.unrolled}"
    )


def _split(subject, config, texts) -> tuple[np.ndarray, np.ndarray]:
  """(ids that rank, ids kept back), [P, T] each."""
  texts = gather(config.count, config.seed) if texts is None else texts
  rows = [subject.prefix + subject.tokenizer.encode(x.text) for x in texts]
  ids = [row[: config.tokens] for row in rows if len(row) >= config.tokens]
  if len(ids) < 8:
    raise ValueError(
      f"{len(ids)} texts have {config.tokens} tokens; at least 8 are needed"
    )
  return apart(np.array(ids), len(ids) // 2, config.seed)


def _look(subject: Subject, ids: np.ndarray, batch: int):
  f = jax.jit(capture(forward(subject.cfg), observers()))
  parts = [
    jax.tree.map(np.asarray, f(subject.params, jnp.asarray(part)).trace)
    for part in np.array_split(ids, -(-len(ids) // batch))
  ]
  return seen_of(jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts))


def _cut(pattern):
  """[B] share of rows after the first that read the first key at most."""
  others = jnp.sum(jnp.abs(pattern[:, :, 1:, 1:]), axis=-1)
  return jnp.mean(others == 0, axis=(1, 2))


def _measurer(subject: Subject, ids: np.ndarray, batch: int) -> Callable:
  """`measure(edits) -> Quality`; compiled once for each kind of edit."""
  f = forward(subject.cfg)

  @jax.jit
  def each(params, ids, edits):
    g = intervene(f, edits)
    if set(edits) & {"scores", "pattern"}:
      g = capture(g, {"cut": ("pattern", _cut)})
    out = g(params, ids)
    right = jnp.argmax(out.logits[:, :-1], axis=-1) == ids[:, 1:]
    cut = out.trace["cut"].mean(axis=0) if out.trace else 0.0 * ids[:, 0]
    return loss_from(out.logits, ids, 1), right.mean(axis=-1), cut

  def measure(edits, rows=None) -> Quality:
    parts = []
    for at in range(0, len(ids), batch):
      part = ids[at : at + batch]
      full = np.resize(part, (batch, part.shape[1]))  # one shape, one compile
      mine = edits if rows is None else rows(edits, at, batch)
      out = each(subject.params, jnp.asarray(full), mine)
      parts.append([np.asarray(x, np.float64)[: len(part)] for x in out])
    return Quality(*map(np.concatenate, zip(*parts, strict=True)))

  return measure


def _orders(scores: HeadScores, config: Config) -> dict[str, np.ndarray]:
  """Scores by which heads are removed, the lowest first."""
  rng = np.random.default_rng(config.seed)
  drawn = {
    f"{RANDOM} {i}": rng.random(scores.output.shape)
    for i in range(config.seeds)
  }
  return {name: getattr(scores, name) for name in RANKS} | drawn


def _skip(subject, held, seen, threshold, measure, seed, step):
  """{(kind, threshold): Quality} of heads skipped by query."""
  cfg, at = subject.cfg, jnp.asarray(threshold, jnp.float32)
  kept, alone, foretold, by_chance, by_chance_alone = KINDS
  level = jnp.asarray(seen.level, jnp.float32)
  found = {
    kept: step(measure({"pattern": SkipResting(at, jnp.asarray(jnp.nan))})),
    alone: step(measure({"pattern": SkipResting(at, jnp.asarray(1.0))})),
    foretold: step(measure({"scores": SkipForetold(at, level)})),
  }
  shape = (cfg.n_layers, len(held), cfg.n_heads, held.shape[1])
  drawn = np.random.default_rng(seed).random(shape)

  def at_random(like, weight):
    """As many as there, anywhere, and the first key's weight as there."""
    chosen = drawn < float(found[like].skipped.mean())

    def rows(edits, start, batch):
      mine = chosen[:, start : start + batch]
      mine = np.pad(mine, [(0, 0), (0, batch - mine.shape[1]), (0, 0), (0, 0)])
      edit = edits["pattern"]
      return {"pattern": dataclasses.replace(edit, chosen=jnp.asarray(mine))}

    return step(
      measure({"pattern": SkipResting(at, jnp.asarray(weight))}, rows)
    )

  found[by_chance] = at_random(kept, jnp.nan)
  found[by_chance_alone] = at_random(foretold, 1.0)
  return {(kind, threshold): one for kind, one in found.items()}


def _times(subject: Subject, config: Config, scores, measure):
  """(seconds [R] by model, heads left, loss of those with equal layers)."""
  params, cfg = subject.params, subject.cfg
  ids = np.random.default_rng(config.seed).integers(
    cfg.vocab_size, size=(1, config.timed)
  )
  ids, works, left, losses = jnp.asarray(ids), {}, {}, {}

  def add(name, f, params, heads):
    compiled = jax.jit(lambda p, x: f(p, x))
    works[name] = lambda: compiled(params, ids)
    left[name] = heads

  def logits(cfg):
    return lambda params, ids: forward(cfg)(params, ids).logits

  add(WHOLE, logits(cfg), params, 1.0)
  for groups, each in config.shapes:
    if groups > cfg.n_kv_heads or each > cfg.group_size:
      continue
    gone = structured(cfg, scores.beside_sink, groups, each)
    name = f"{groups} group{'s' * (groups > 1)} of {each}"
    small, its = remove_heads(params, cfg, gone)
    add(name, logits(its), small, its.n_heads / cfg.n_heads)
    zero = jnp.zeros((*gone.shape, cfg.head_dim))
    losses[name] = measure({"z": AblateHeads(jnp.asarray(gone), zero)})
  for share in (0.0, *config.unrolled):
    gone = lowest(scores.beside_sink, round(share * scores.output.size))
    small, cfgs = remove_by_layer(params, cfg, gone)
    name = without(share) if share else RAGGED
    add(name, ragged_forward(cfg, cfgs), small, 1 - gone.mean())
  return interleaved(works, config.rounds), left, losses


def _relative(quality: Quality, plain: Quality) -> np.ndarray:
  """[P] loss increase over the mean loss of the whole model."""
  return (quality.loss - plain.loss) / plain.loss.mean()


def _relative_right(quality: Quality, plain: Quality) -> np.ndarray:
  """[P] of next tokens that are right; in shares where the whole has none."""
  return (quality.right - plain.right) / (plain.right.mean() or 1.0)


def _result(subject, config, scores, plain, removed, skips, times, texts):
  by_order = _curves(config, plain, removed)
  by_skip = {
    kind: (
      np.stack([skips[kind, x].skipped for x in config.thresholds]),
      np.stack([_relative(skips[kind, x], plain) for x in config.thresholds]),
    )
    for kind in KINDS
  }
  seconds, left, losses = times
  gains = {
    name: saved(one, seconds[WHOLE if "unrolled" not in name else RAGGED])
    for name, one in seconds.items()
    if name not in (WHOLE, RAGGED)
  }
  at_one = {
    f"{name}, {how}": share_at(config.shares, by_order[name, how]["loss"])
    for name, how in by_order
  } | {
    kind: share_at(x.mean(axis=1)[::-1], y[::-1])
    for kind, (x, y) in by_skip.items()
  }
  numbers = {
    "texts_that_rank": texts[0],
    "texts": texts[1],
    "tokens": config.tokens,
    "heads": scores.output.size,
    "loss": mean_over(plain.loss, range(texts[1]))._asdict(),
    "right": mean_over(plain.right, range(texts[1]))._asdict(),
    "share_at_one_percent": at_one,
    "saved": {name: one._asdict() for name, one in gains.items()},
    "seconds": {name: float(np.median(x)) for name, x in seconds.items()},
  }
  small = {name: _relative(one, plain) for name, one in losses.items()}
  ranked = by_order["beside_sink", "zero"]["loss"]
  for share in config.unrolled:
    small[without(share)] = ranked[config.shares.index(share)]
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(config, by_order, by_skip, gains, left, at_one, small),
    numbers=numbers,
    tables={
      "removal.csv": _removal_table(config, by_order),
      "queries.csv": _query_table(config, by_skip),
      "time.csv": _time_table(seconds, left, gains, small),
      "heads.csv": _head_table(scores),
    },
    arrays={
      "shares": np.array(config.shares),
      **{
        f"loss, {name}, {how}": one["loss"]
        for (name, how), one in by_order.items()
      },
      **{
        f"right, {name}, {how}": one["right"]
        for (name, how), one in by_order.items()
      },
      **{f"loss, {name}": x for name, x in small.items()},
      **{f"skipped, {kind}": x for kind, (x, _) in by_skip.items()},
      **{f"loss, {kind}": y for kind, (_, y) in by_skip.items()},
      **{f"score, {name}": x for name, x in scores._asdict().items()},
      **{f"seconds, {name}": x for name, x in seconds.items()},
    },
  )


def _curves(config, plain, removed):
  """{(ranking, how): {"loss", "right": [shares, P]}}, seeds averaged."""
  found = {}
  for how in ("zero", "mean"):
    for name in (*RANKS, RANDOM):
      members = (
        [name]
        if name != RANDOM
        else [f"{RANDOM} {i}" for i in range(config.seeds)]
      )
      each = [
        [removed[m, share, how] for share in config.shares] for m in members
      ]
      found[name, how] = {
        what: np.mean([[f(q, plain) for q in row] for row in each], axis=0)
        for what, f in (("loss", _relative), ("right", _relative_right))
      }
  return found


def _removal_table(config, by_order):
  header = ["ranking", "output", "share"]
  header += [
    f"{what}{end}"
    for what in ("loss", "right")
    for end in ("_change", "_low", "_high")
  ]
  rows = [
    [name, how, share, *ends_of(one["loss"][i]), *ends_of(one["right"][i])]
    for (name, how), one in by_order.items()
    for i, share in enumerate(config.shares)
  ]
  return header, rows


def _query_table(config, by_skip):
  header = [
    "kind",
    "threshold",
    "share",
    "loss_change",
    "loss_low",
    "loss_high",
  ]
  rows = [
    [kind, threshold, float(x[i].mean()), *ends_of(y[i])]
    for kind, (x, y) in by_skip.items()
    for i, threshold in enumerate(config.thresholds)
  ]
  return header, rows


def _time_table(seconds, left, gains, small):
  header = [
    "model",
    "heads_left",
    "median_seconds",
    "saved",
    "saved_low",
    "saved_high",
    "loss_change",
    "loss_low",
    "loss_high",
  ]
  rows = [
    [
      name,
      left[name],
      float(np.median(x)),
      *(gains[name][:3] if name in gains else [None] * 3),
      *(ends_of(small[name]) if name in small else [None] * 3),
    ]
    for name, x in seconds.items()
  ]
  return header, rows


def _head_table(scores: HeadScores):
  layers, heads = scores.output.shape
  rows = [
    [layer, head, *(float(x[layer, head]) for x in scores)]
    for layer in range(layers)
    for head in range(heads)
  ]
  return ["layer", "head", *scores._fields], rows
