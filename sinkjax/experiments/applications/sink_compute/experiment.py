"""How much attention could be left out, and how much of it is provable?

Dormant blocks of queries, and blocks of keys that hardly matter, are left out
under a bound of the error: from summaries of the keys, from keys in a few
bits, from all scores; beside what the pattern itself allows, with the sink
and without it. Then loss and KL divergence, and time against length.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.data import corpus
from sinkjax.experiments.applications.sink_compute import (
  skipped_blocks as blocks,
)
from sinkjax.experiments.applications.sink_compute.claims import claims
from sinkjax.experiments.applications.sink_compute.timing import (
  faster_fused,
  times_of,
)
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import ends_of, mean_over
from sinkjax.experiments.harness.timing import saved
from sinkjax.experiments.shared.sink_removal import loss_from
from sinkjax.models.transformer import logits_of

NAME, TITLE = "sink_compute", "Attention that hardly matters, left out"


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    lengths: T of the shares, multiples of the block, increasing.
    counts: texts at each of them.
    fitting: texts apart, of the greatest length, to fit the codes on.
    length: T of loss and errors, one of `lengths`; claims are of it.
    tolerances: weight that a query may lose.
    at: one of them, of which claims and times are.
    bits: of a key's numbers, in codes.
    best: of `bits`, with which loss and time are measured.
    slacks: nats by which scores are taken to be known, up and down.
    block: queries, and keys, in a block.
    window: blocks before a query's own that are always read.
    timed: T of the timings.
    rounds: of these.
    corpus: of the texts, see `data.corpus`.
    seed: of the choice of texts.
  """

  lengths: tuple[int, ...] = (256, 1024, 4096)
  counts: tuple[int, ...] = (8, 8, 3)
  fitting: int = 2
  length: int = 1024
  tolerances: tuple[float, ...] = (0.3, 1e-1, 1e-2, 1e-3, 1e-4)
  at: float = 1e-1
  bits: tuple[int, ...] = (4, 6, 8)
  best: int = 6
  slacks: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
  block: int = 16
  window: int = 1
  timed: tuple[int, ...] = (512, 1024, 2048, 4096)
  rounds: int = 5
  corpus: str = "sotu"
  seed: int = 0


def run(
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

  Cost: a `measure` of each text, and twice as many passes at `length` as
    there are tolerances.
  """
  _check(subject, config)
  fitting, held = _rows(subject, config, texts)
  codecs = blocks.fit_codecs(subject, fitting, config.block)
  ways = (None, config.best)
  total = (
    sum(config.counts)
    + len(config.timed)
    + (
      config.counts[config.lengths.index(config.length)]
      * len(ways)
      * len(config.tolerances)
    )
  )
  done = 0

  def step(value):
    nonlocal done
    done += 1
    progress(done, total)
    return value

  seen, skipped = {}, {}
  for length, count in zip(config.lengths, config.counts, strict=True):
    seen[length] = []
    for row in held[:count]:
      ids = row[:length]
      final, one = step(blocks.measure(subject, ids, codecs, config))
      seen[length].append(one)
      if length != config.length:
        continue
      for bits in ways:
        for at in config.tolerances:
          out, what = blocks.skip(subject, ids, codecs, config, at, bits)
          cost = _costs(subject, final, out, ids)
          skipped.setdefault((blocks.bits_name(bits), at), []).append(
            (what, *step(cost))
          )
  layers = _layers_timed(config, seen)
  inputs = blocks.inputs_of(subject, held[0][None, : max(config.timed)])
  times = {}
  for length in config.timed:
    for layer in layers:
      times[layer, length] = times_of(
        subject, config, inputs, codecs, layer, length
      )
    step(None)
  return _result(config, seen, skipped, times, layers)


def _check(subject: Subject, config: Config) -> None:
  blocks.check(subject.cfg)
  every = (*config.lengths, *config.timed)
  if any(x % config.block or x < 4 * config.block for x in every):
    raise ValueError(
      f"lengths must be multiples of block={config.block}, four at least, got "
      f"{config.lengths} and {config.timed}"
    )
  if max(every) > subject.cfg.max_len:
    raise ValueError(
      f"lengths must be at most {subject.cfg.max_len}, got {max(every)}"
    )
  if config.length not in config.lengths or config.best not in config.bits:
    raise ValueError(
      f"length must be one of {config.lengths} and best one of "
      f"{config.bits}, got {config.length} and {config.best}"
    )
  many = len(config.counts) == len(config.lengths)
  if not many or min(config.counts) < 2 or config.fitting < 1:
    raise ValueError(
      "counts must be 2 or more for each of lengths, and fitting 1 or more, "
      f"got {config.counts} and {config.fitting}"
    )
  inside = all(0 < x < 1 for x in config.tolerances)
  if not inside or config.at not in config.tolerances:
    raise ValueError(
      "tolerances must be between 0 and 1 and at one of them, got "
      f"{config.tolerances} and {config.at}"
    )


def _rows(subject: Subject, config: Config, texts):
  """(ids to fit on [P, T], rows of the greatest length, kept apart)."""
  if texts is None:
    texts = corpus.gather((config.corpus,)).texts
  most = max(*config.lengths, *config.timed)
  need, found = config.fitting + max(config.counts), []
  for i in np.random.default_rng(config.seed).permutation(len(texts)):
    row = subject.tokenizer.encode(texts[i][: 12 * most])
    row = [*subject.prefix, *row][:most]
    if len(row) == most:
      found.append(row)
    if len(found) == need:
      break
  if len(found) < need:
    raise ValueError(
      f"{len(found)} texts have {most} tokens; {need} are needed"
    )
  found = np.array(found)
  longest = max(config.lengths)
  return found[: config.fitting, :longest], found[config.fitting :]


def _costs(subject: Subject, plain, final, ids: np.ndarray):
  """(loss of the whole model, loss, KL), nats a token of one text."""
  params, cfg = subject.params, subject.cfg
  table = params["embed" if cfg.tie_embeddings else "unembed"]
  found = _costs_of(plain, final, table, jnp.asarray(ids)[None], cfg=cfg)
  return tuple(float(x) for x in found)


@functools.partial(jax.jit, static_argnames="cfg")
def _costs_of(plain, final, table, ids, *, cfg):
  with jax.default_matmul_precision(cfg.precision):
    logits = [logits_of(cfg, x, table) for x in (plain, final)]
  logs = [jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits]
  kl = jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)
  return (
    loss_from(logits[0], ids, 1)[0],
    loss_from(logits[1], ids, 1)[0],
    (jnp.mean(kl)),
  )


def _layers_timed(config: Config, seen) -> tuple[int, int]:
  """(the layer of which most can be left out, that of the median)."""
  at = config.tolerances.index(config.at)
  shares = np.mean(
    [one.shares[blocks.SCORES][..., at] for one in seen[config.length]],
    axis=(0, 2),
  )
  order = np.argsort(shares)
  return int(order[-1]), int(order[len(order) // 2])


def _result(config, seen, skipped, times, layers) -> Result:
  names = list(seen[config.length][0].shares)
  share = {
    length: np.stack([[one.shares[name] for name in names] for one in each])
    for length, each in seen.items()
  }  # [P, way, L, H, E]
  slack = {
    name: np.stack([one.slack[name] for one in seen[config.length]])
    for name in seen[config.length][0].slack
  }  # [P, L, H]
  relative = {
    key: np.array([(loss - plain) for _, plain, loss, _ in each])
    / np.mean([plain for _, plain, _, _ in each])
    for key, each in skipped.items()
  }
  worst = max(
    float(what.worst.max()) for each in skipped.values() for what, *_ in each
  )
  by_text = {
    (length, name, at): values[:, i, ..., j].mean(axis=(1, 2))
    for length, values in share.items()
    for i, name in enumerate(names)
    for j, at in enumerate(config.tolerances)
  }
  first = next(iter(skipped.values()))
  seconds = {key: one for key, (one, _) in times.items()}
  left_out = {key: x for key, (_, x) in times.items()}
  return Result(
    name=NAME,
    title=TITLE,
    claims=claims(config, by_text, relative, worst, seconds, left_out, layers),
    numbers={
      **dataclasses.asdict(config),
      "ways": names,
      "layers_timed": layers,
      "worst_error_over_bound": worst,
      "slack": {
        name: mean_over(x.mean(axis=(1, 2)), range(len(x)))._asdict()
        for name, x in slack.items()
      },
      "loss": float(np.mean([p for _, p, *_ in first])),
    },
    tables={
      "shares.csv": (
        ["tokens", "texts", "way", "tolerance", "share", "low", "high"],
        [
          [length, len(x), name, at, *ends_of(x)]
          for (length, name, at), x in by_text.items()
        ],
      ),
      "layers.csv": _layer_table(config, names, share[config.length], slack),
      "slack.csv": _slack_table(config, by_text, slack),
      "errors.csv": _error_table(skipped, relative),
      "time.csv": _time_table(seconds, left_out),
    },
    arrays={
      **{f"share, {length}": x for length, x in share.items()},
      **{f"slack, {name}": x for name, x in slack.items()},
      **{
        f"seconds, layer {layer}, {length}, {name}": x
        for (layer, length), one in seconds.items()
        for name, x in one.items()
      },
    },
  )


def _layer_table(config: Config, names, share, slack):
  """Shares of every layer and head at one tolerance."""
  mean = share[..., config.tolerances.index(config.at)].mean(axis=0)
  off = {name: x.mean(axis=0) for name, x in slack.items()}
  header = ["layer", "head", *names, *(f"slack of {x}" for x in off)]
  rows = [
    [
      layer,
      head,
      *map(float, mean[:, layer, head]),
      *(float(x[layer, head]) for x in off.values()),
    ]
    for layer in range(mean.shape[1])
    for head in range(mean.shape[2])
  ]
  return header, rows


def _slack_table(config: Config, by_text, slack):
  """How far off a way is, and what share it still leaves out."""
  off = {name: ends_of(x.mean(axis=(1, 2))) for name, x in slack.items()}
  off |= {blocks.slack_name(x): [x, None, None] for x in config.slacks}
  header = ["way", "nats_off", "nats_low", "nats_high"]
  for at in config.tolerances:
    header += [f"share_at_{at:g}", f"low_at_{at:g}", f"high_at_{at:g}"]
  rows = [
    [
      name,
      *ends,
      *(
        x
        for at in config.tolerances
        for x in ends_of(by_text[config.length, name, at])
      ),
    ]
    for name, ends in off.items()
  ]
  return header, rows


def _error_table(skipped, relative):
  header = ["way", "tolerance", "share"]
  header += [
    f"{what}{end}"
    for what in ("loss_change", "kl", "error", "bound")
    for end in ("", "_low", "_high")
  ]
  rows = []
  for (name, at), each in skipped.items():
    what = [one for one, *_ in each]
    values = (
      relative[name, at],
      [kl for *_, kl in each],
      [one.error.mean() for one in what],
      [one.bound.mean() for one in what],
    )
    rows.append(
      [
        name,
        at,
        float(np.mean([one.share for one in what])),
        *(x for some in values for x in ends_of(some)),
        float(max(one.worst.max() for one in what)),
      ]
    )
  return [*header, "worst_error_over_bound"], rows


def _time_table(seconds, left_out):
  header = [
    "layer",
    "tokens",
    "left_out",
    "way",
    "median_seconds",
    "saved_of_faster_fused",
    "low",
    "high",
  ]
  rows = [
    [
      layer,
      length,
      left_out[layer, length][name],
      name,
      float(np.median(x)),
      *saved(x, one[faster_fused(one)])[:3],
    ]
    for (layer, length), one in seconds.items()
    for name, x in one.items()
  ]
  return header, rows
