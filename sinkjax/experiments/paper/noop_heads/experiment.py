"""Heads that act on a trigger and else rest on the sink (section 3.2, fig. 4).

The paper's example: one head attends to an apostrophe if that is the previous
token, and else to BOS, whose value is small. Here such heads are searched for
in the whole model, and nothing is said about what their triggers might be.

The search is in `triggers`. Also here: sinks of which the value is small, so
that attending to them does nothing, against those that send something to all.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  Result,
  Subject,
  direction,
)
from sinkjax.experiments.harness.stats import mean_over
from sinkjax.experiments.paper.noop_heads.triggers import (
  RESTS,
  TRIGGERS,
  Head,
  Seen,
  find,
  look,
  parts,
)
from sinkjax.experiments.shared.prompt_corpus import Text, gather
from sinkjax.experiments.shared.sink_removal import texts_of
from sinkjax.experiments.shared.swap_texts import TEXTS
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture

NAME, TITLE = "noop_heads", "Heads that act on a trigger, else rest"
NOP, BROADCAST = 0.2, 0.8
"""A sink is no-op where its value's norm over the others' is less than the
first, and broadcast where it is more than the second; arXiv 2606.08105."""

DRAWN, DRAWN_TEXT = 18, 46
"""Tokens of a drawing, and of the texts that it is taken from."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    count: texts of each domain, as in the experiment `prompts`.
    tokens: T of each; shorter texts are left out.
    resting: a head is looked at if the share of its queries that rest is
      within these.
    auroc: and its trigger tells acting from resting queries at least so well
      on the texts that choose.
    output: and its output at rest has at most so much of the norm that it has
      when it acts.
    eps: a head has a sink where its score exceeds this; for the kinds.
    drawn: heads that are drawn, on texts of our own.
    texts: those; see `swaps.parse_swaps`.
    seed: of the choice of texts, and of which text serves for what.
  """

  count: int = 20
  tokens: int = 96
  resting: tuple[float, float] = (0.5, 0.98)
  auroc: float = 0.8
  output: float = 0.5
  eps: float = 0.3
  drawn: int = 6
  texts: str = TEXTS
  seed: int = 0


def run(
  subject: Subject,
  config: Config,
  *,
  texts: Sequence[Text] | None = None,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Finds the heads, tests them on other texts, and draws the best.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    texts: other texts than those of `gather`.
    progress: called with (texts done, texts in all).

  Raises:
    ValueError: if fewer than ten texts are long enough.

  Cost: one forward pass of every text.
  """
  texts = gather(config.count, config.seed) if texts is None else texts
  rows = [subject.prefix + subject.tokenizer.encode(x.text) for x in texts]
  ids = [row[: config.tokens] for row in rows if len(row) >= config.tokens]
  if len(ids) < 10:
    raise ValueError(
      f"{len(ids)} texts have {config.tokens} tokens; at least 10 are needed"
    )
  order = np.random.default_rng(config.seed).permutation(len(ids))
  seen = look(subject, np.array(ids)[order], progress)
  heads = find(
    seen, resting=config.resting, output=config.output, least=config.auroc
  )
  drawings = [_drawing(subject, config, h) for h in heads[: config.drawn]]
  return _result(subject, config, seen, heads, drawings)


def _drawing(subject: Subject, config: Config, head: Head) -> dict[str, Any]:
  """A stretch of our own texts in which the head both acts and rests.

  Returns:
    The pattern [W, W + 1] of queries start, start + 1, ... and keys 0, start,
    ..., the norms of these keys' values, their tokens and `start`.
  """
  ids = texts_of(subject, config.texts, DRAWN_TEXT)
  layer, number = head.layer, head.head
  kv = number // subject.cfg.group_size
  watch = {
    "pattern": ("pattern", lambda p: p[:, number]),
    "value": ("v", lambda v: jnp.linalg.norm(v[:, :, kv], axis=-1)),
  }
  out = jax.jit(capture(forward(subject.cfg), watch))(
    subject.params, jnp.asarray(ids)
  ).trace
  pattern, value = (np.asarray(out[name][layer]) for name in watch)
  acts = pattern[:, :, 0] <= RESTS
  width = min(DRAWN, ids.shape[1] - 1)
  best = max(
    (
      (text, start)
      for text in range(len(ids))
      for start in range(1, ids.shape[1] - width + 1)
    ),
    key=lambda at: _both(acts[at[0], at[1] : at[1] + width]),
  )
  text, start = best
  keys = [0, *range(start, start + width)]
  return {
    "pattern": pattern[text][np.ix_(keys[1:], keys)],
    "value": value[text][keys],
    "tokens": [subject.tokenizer.decode([int(i)]) for i in ids[text][keys]],
    "start": start,
  }


def _both(acts: np.ndarray) -> int:
  """Pairs of a query that acts and one that rests."""
  return int(acts.sum() * (~acts).sum())


def _over_texts(values) -> Any:
  values = np.asarray(values, float)
  values = values[np.isfinite(values)]
  return mean_over(values, range(len(values))) if len(values) > 1 else None


def describe(seen: Seen, head: Head, group: int) -> dict[str, Any]:
  """What a head does on the texts kept back.

  Args:
    seen: of `look`.
    head: which.
    group: heads that share a KV head.

  Returns:
    Norms and shares, and [P] arrays of each text: "sink_ratio", the sink's
    value over the mean of the others; "acted_ratio", that of the key that an
    acting query goes to; NaN where none acts.
  """
  _, _, kept = parts(len(seen.ids))
  layer, number = head.layer, head.head
  mass = seen.mass[layer, kept, number, 1:]
  acts, goes = mass <= RESTS, seen.goes[layer, kept, number, 1:]
  value = seen.value[layer, kept, number // group]
  written = seen.output[layer, kept, number, 1:]
  others = value[:, 1:].mean(axis=-1)
  acted = np.take_along_axis(value, goes, axis=-1)
  each = np.where(acts, acted, 0).sum(axis=-1) / np.maximum(acts.sum(-1), 1)
  back = np.arange(1, seen.ids.shape[1]) - goes
  counted = max(1, int(acts.sum()))
  return {
    "rests": float((~acts).mean()),
    "value_sink": float(value[:, 0].mean()),
    "value_acted": float(acted[acts].mean()) if acts.any() else None,
    "value_rest": float(others.mean()),
    "output_acting": float(written[acts].mean()) if acts.any() else None,
    "output_resting": float(written[~acts].mean()) if (~acts).any() else None,
    "to_itself": int((acts & (back == 0)).sum()) / counted,
    "to_previous": int((acts & (back == 1)).sum()) / counted,
    "sink_ratio": value[:, 0] / others,
    "acted_ratio": np.where(acts.any(axis=-1), each / others, np.nan),
  }


def kinds(seen: Seen, eps: float, group: int) -> dict[str, np.ndarray]:
  """Sinks by what their value is.

  Args:
    seen: of `look`.
    eps: a head has a sink where its score exceeds this.
    group: heads that share a KV head.

  Returns:
    "ratio" [L, P, H], the sink's value over the others', "sink" [L, P, H] bool,
    and [P] shares of the sinks that are "no-op" and "broadcast", NaN for a
    text without any.
  """
  first, rest = seen.value[..., 0], seen.value[..., 1:].mean(axis=-1)
  ratio = np.repeat(first / rest, group, axis=2)
  sink = seen.mass.mean(axis=-1) > eps
  count = sink.sum(axis=(0, 2)).astype(float)
  count[count == 0] = np.nan
  found = {
    "no-op": (sink & (ratio < NOP)).sum(axis=(0, 2)) / count,
    "broadcast": (sink & (ratio > BROADCAST)).sum(axis=(0, 2)) / count,
  }
  return {"ratio": ratio, "sink": sink, **found}


def _result(subject, config, seen: Seen, heads, drawings) -> Result:
  group = subject.cfg.group_size
  told = [describe(seen, head, group) for head in heads]
  by_kind = kinds(seen, config.eps, group)
  decode = subject.tokenizer.decode
  columns = [
    "rests",
    "value_sink",
    "value_acted",
    "value_rest",
    "output_acting",
    "output_resting",
    "to_itself",
    "to_previous",
  ]
  rows = []
  for head, one in zip(heads, told, strict=True):
    words = [
      str(value) if head.trigger == "position" else decode([value])
      for value, _, _ in head.words
      if value >= 0
    ]
    rows.append(
      [
        head.layer,
        head.head,
        head.trigger,
        " ".join(map(repr, words[:6])),
        head.chosen_by,
        head.auroc,
        head.explained,
        *(one[c] for c in columns),
      ]
    )
  best = heads[: config.drawn]
  pooled = {
    "auroc": _mean_of([head.by_text for head in best]),
    "sink_ratio": _mean_of([one["sink_ratio"] for one in told]),
    "acted_ratio": _mean_of([one["acted_ratio"] for one in told]),
    "no-op": _over_texts(by_kind["no-op"]),
    "broadcast": _over_texts(by_kind["broadcast"]),
  }
  ranks = _ranks(seen, by_kind)
  header = [
    "layer",
    "head",
    "trigger",
    "set_off_by",
    "auroc_choosing",
    "auroc",
    "explained",
    *columns,
  ]
  triggers = [head.trigger for head in heads]
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(config, heads, pooled, ranks, seen.mass[:, 0, :, 0].size),
    numbers={
      "texts": len(seen.ids),
      "tokens": config.tokens,
      "seed": config.seed,
      "found": len(heads),
      "heads": seen.mass[:, 0, :, 0].size,
      "conditions": {
        "resting": config.resting,
        "auroc": config.auroc,
        "output": config.output,
      },
      "by_trigger": {name: triggers.count(name) for name in TRIGGERS},
      "words": {
        f"{head.layer}.{head.head}": [
          {"value": value, "mass": mass, "times": times}
          for value, mass, times in head.words
        ]
        for head in best
      },
      "drawn": [
        {
          "layer": head.layer,
          "head": head.head,
          "trigger": head.trigger,
          "auroc": head.auroc,
          "tokens": one["tokens"],
          "start": one["start"],
        }
        for head, one in zip(best, drawings, strict=True)
      ],
      "stable_rank": ranks,
      **{name: mean and mean._asdict() for name, mean in pooled.items()},
    },
    tables={
      "heads.csv": (header, rows),
      "kinds.csv": _kind_table(seen, by_kind),
    },
    arrays={
      "mass": seen.mass.mean(axis=(1, 3)),
      "value_ratio": by_kind["ratio"].mean(axis=1),
      "sink": by_kind["sink"].mean(axis=1),
      "stable_rank": seen.stable_rank.mean(axis=1),
      **{
        f"{what} {i}": one[what]
        for i, one in enumerate(drawings)
        for what in ("pattern", "value")
      },
    },
  )


def _mean_of(arrays):
  """The mean over heads, then its interval over texts."""
  if not arrays:
    return None
  stacked = np.stack(arrays)
  seen = np.isfinite(stacked)
  total = np.where(seen, stacked, 0).sum(axis=0)
  count = seen.sum(axis=0)
  return _over_texts(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _ranks(seen: Seen, by_kind) -> dict[str, float | None]:
  """Mean stable rank of the outputs of heads with a sink, by kind."""
  ratio, sink = by_kind["ratio"], by_kind["sink"]
  where = {
    "no-op": sink & (ratio < NOP),
    "between": sink & (ratio >= NOP) & (ratio <= BROADCAST),
    "broadcast": sink & (ratio > BROADCAST),
    "no sink": ~sink,
  }
  return {
    name: float(seen.stable_rank[at].mean()) if at.any() else None
    for name, at in where.items()
  }


def _kind_table(seen: Seen, by_kind):
  header = ["layer", "head", "share_with_sink", "value_ratio", "stable_rank"]
  sink, ratio = by_kind["sink"].mean(axis=1), by_kind["ratio"].mean(axis=1)
  rank = seen.stable_rank.mean(axis=1)
  rows = [
    [
      layer,
      head,
      float(sink[layer, head]),
      float(ratio[layer, head]),
      float(rank[layer, head]),
    ]
    for layer in range(len(sink))
    for head in range(sink.shape[1])
  ]
  return header, rows


def _claims(config, heads, pooled, ranks, count) -> list[Claim]:
  where = "section 3.2, figure 4"
  paper = "one head of Gemma 7B, first layers: the apostrophe before"
  best = min(config.drawn, len(heads))
  rest = f"at least {config.resting[0]:.0%} of its queries rest"
  if not heads or pooled["auroc"] is None:
    claims = [
      Claim(
        "Some heads act on a trigger and else rest on the first token.",
        where,
        paper,
        f"none of {count} heads",
        DISAGREES,
        f"{rest}, a trigger tells acting queries with AUROC {config.auroc:g}",
      )
    ]
  else:
    one = heads[0]
    told = pooled["auroc"]
    claims = [
      Claim(
        "Some heads act on a trigger and else rest on the first token.",
        where,
        paper,
        f"{len(heads)} of {count} heads; of the best {best} the trigger tells "
        f"acting queries with AUROC {told.text('.3f')}, best layer {one.layer} "
        f"head {one.head} by {one.trigger}",
        direction(told.low - 0.5, told.high - 0.5),
        f"{rest}, AUROC {config.auroc:g} on the texts that chose them; agrees "
        "above 0.5, chance, on texts that took no part",
      )
    ]
  for name, claim, sign in (
    ("sink_ratio", "At rest such a head reads a value of small norm.", -1),
    ("acted_ratio", "When it acts it reads one of large norm.", 1),
  ):
    mean = pooled[name]
    ends = (
      (0, 0)
      if mean is None
      else sorted((sign * (mean.low - 1), sign * (mean.high - 1)))
    )
    claims.append(
      Claim(
        claim,
        where,
        "no number: a bar chart",
        "no such head"
        if mean is None
        else f"{mean.text('.2f')} times the mean of the other tokens'",
        UNTESTED if mean is None else direction(*ends),
        f"{len(heads)} heads, texts kept back; agrees "
        f"{'above' if sign > 0 else 'below'} 1",
      )
    )
  small, large = pooled["no-op"], pooled["broadcast"]
  rank = "; stable rank of the update " + ", ".join(
    f"{ranks[kind]:.2f} ({kind})"
    for kind in ("no-op", "broadcast")
    if ranks[kind] is not None
  )
  return [
    *claims,
    Claim(
      "Sinks are of two kinds: no-op, of small value, and broadcast.",
      "2606.08105",
      f"value ratio below {NOP:g}; about 1",
      "no sinks"
      if small is None
      else f"{_percent(small)} no-op, {_percent(large)} above {BROADCAST:g}{rank}",
      UNTESTED
      if small is None
      else AGREES
      if min(small.low, large.low) > 0.01
      else DISAGREES,
      f"heads above {config.eps:g}; agrees if each is more than 1 % of the sinks",
    ),
  ]


def _percent(mean) -> str:
  scaled = mean._replace(
    value=100 * mean.value, low=100 * mean.low, high=100 * mean.high
  )
  return scaled.text(".1f", " %")
