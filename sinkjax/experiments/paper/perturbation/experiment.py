"""Swapped words under every condition: what is run and measured."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import Mean, mean_over
from sinkjax.experiments.paper.perturbation.pairs import Pair, pairs_of
from sinkjax.experiments.shared.layer_plots import layer_table
from sinkjax.experiments.shared.sink_removal import hide, resolve_from_layer
from sinkjax.experiments.shared.swap_texts import SWAP_TEXTS
from sinkjax.metrics.spread import spread
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture


class Condition(enum.StrEnum):
  """How the pairs of texts are run; the values are keys of recorded results."""

  SINK = "with the sink"
  HIDDEN = "sink hidden"
  CONTROL = "control hidden"
  NO_BOS = "without BOS"


CONTROL_KEY = 1
"""The token hidden as a control, counted after the prefix: it is no sink, but
nearly as many queries see it as see the first."""

AROUND = (4, 40)
"""Tokens before and after the swap that are averaged for the map: most texts
have as many."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: with places to swap; see `swap_texts.parse_swaps`.
    from_layer: the first layer at which a token is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    threshold: a position is reached where it changes by more than this
      share of its norm.
    batch: pairs in one forward pass.
    shown: the swap that has a figure of its own, as in the paper; the first
      swap where the texts have no such words.
  """

  texts: str = SWAP_TEXTS
  from_layer: int | None = None
  threshold: float = 0.1
  batch: int = 8
  shown: tuple[str, str] = ("greatest", "best")


def gaps_of(conditions: Mapping[Condition, Callable]) -> Callable:
  """`f(params, ids [B, T], changed [B, T])`: relative change, [C, L, B, T].

  Without BOS, position 0 is left out; it differs in nothing.
  """
  watch = {"x": ("resid_post", lambda x: x)}

  @jax.jit
  def gaps(params: Any, ids: jax.Array, changed: jax.Array) -> jax.Array:
    stacked = []
    for condition, fn in conditions.items():
      cut, watched = int(condition is Condition.NO_BOS), capture(fn, watch)
      before, after = (
        watched(params, t[:, cut:]).trace["x"] for t in (ids, changed)
      )
      gap = spread(before, after, relative=True)
      # Padded in front, so that a place means the same token in all conditions.
      stacked.append(jnp.pad(gap, [(0, 0), (0, 0), (cut, 0)]))
    return jnp.stack(stacked)

  return gaps


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Every swap under every condition.

  Args:
    subject: the model; its weights in memory.
    config: what is run.
    progress: called with (pairs done, pairs in all).

  Raises:
    ValueError: if fewer than two texts have a swap that keeps the number of
      tokens, or `from_layer` is not a layer.
    ArithmeticError: if anything before the swap differs, which would be a
      fault of the model's code.

  Cost: six forward passes a swap.
  """
  pairs, others = pairs_of(subject, config.texts)
  if len({pair.text for pair in pairs}) < 2:
    raise ValueError(
      f"of {len(pairs) + others} swaps only {len(pairs)} keep the number of "
      "tokens; two texts with one each are needed"
    )
  config = resolve_from_layer(subject, config)
  f = forward(subject.cfg)
  control = CONTROL_KEY + len(subject.prefix)
  conditions = {
    Condition.SINK: f,
    Condition.HIDDEN: hide(f, config.from_layer),
    Condition.CONTROL: hide(f, config.from_layer, control),
  }
  if subject.has_bos():
    conditions[Condition.NO_BOS] = f
  gaps = _all_gaps(subject, pairs, gaps_of(conditions), config.batch, progress)
  result = _result(subject, config, list(conditions), pairs, gaps)
  result.numbers["unusable_swaps"] = others
  return result


def _all_gaps(
  subject: Subject,
  pairs: Sequence[Pair],
  gaps_of_batch: Callable,
  batch: int,
  progress: Callable[[int, int], Any],
) -> list[np.ndarray]:
  """[C, L, T] of every pair, padded texts cut to their length again."""
  length = max(len(pair.ids) for pair in pairs)
  gaps = []
  for start in range(0, len(pairs), batch):
    part = pairs[start : start + batch]
    # The last batch is filled up, so that one shape is compiled.
    full = part + [part[-1]] * (batch - len(part))
    ids, changed = (
      # Any token may fill up a row: the model is causal, so what comes after a
      # text changes nothing in it.
      jnp.asarray([row + [0] * (length - len(row)) for row in rows])
      for rows in ([p.ids for p in full], [p.changed for p in full])
    )
    out = subject.kept("batch", gaps_of_batch, subject.params, ids, changed)
    for row, pair in enumerate(part):
      gap = out[:, :, row, : len(pair.ids)]
      # Exactly zero: equal tokens go through the same program in both runs, so
      # even rounding is the same.
      if gap[..., : pair.first].any():
        raise ArithmeticError(
          f"tokens before the swapped {pair.words} differ: the model is not "
          "causal"
        )
      gaps.append(gap)
    progress(len(gaps), len(pairs))
  return gaps


def _after(
  pairs: Sequence[Pair], gaps: Sequence[np.ndarray], reduce: Callable
) -> np.ndarray:
  """[P, C, L] of what comes after each swap."""
  return np.stack(
    [
      reduce(gap[..., pair.last + 1 :])
      for pair, gap in zip(pairs, gaps, strict=True)
    ]
  )


def _shown(pairs: Sequence[Pair], words: tuple[str, str]) -> int:
  """The number of the swap of these words; the first if none is."""
  same = [i for i, pair in enumerate(pairs) if pair.words == tuple(words)]
  return same[0] if same else 0


def _describe(subject: Subject, pair: Pair) -> dict[str, Any]:
  """What the figure of one swap says beside it."""
  tokens = [subject.tokenizer.decode([i]) for i in pair.ids]
  return {"words": pair.words, "first": pair.first, "tokens": tokens}


def _aligned(pairs: Sequence[Pair], gaps: Sequence[np.ndarray]) -> np.ndarray:
  """[C, L, N] mean relative change by place relative to the swap."""
  before, after = AROUND
  conditions, layers, _ = gaps[0].shape
  total = np.zeros((conditions, layers, before + after + 1))
  count = np.zeros(before + after + 1)
  for pair, gap in zip(pairs, gaps, strict=True):
    low = max(0, pair.first - before)
    part = gap[..., low : pair.first + after + 1]
    start = low - pair.first + before
    at = slice(start, start + part.shape[-1])
    total[..., at] += part
    count[at] += 1
  # A place that no text reaches would divide by zero.
  return total / np.maximum(count, 1)


def _result(
  subject: Subject,
  config: Config,
  names: Sequence[Condition],
  pairs: Sequence[Pair],
  gaps: Sequence[np.ndarray],
) -> Result:
  # Swaps in one text are not independent, so intervals are over texts.
  groups = [pair.text for pair in pairs]
  change = _after(pairs, gaps, lambda gap: gap.mean(axis=-1))
  reached = _after(
    pairs, gaps, lambda gap: (gap > config.threshold).mean(axis=-1)
  )
  # In logarithms a difference is a ratio, which does not depend on how much the
  # word itself changes its text.
  last = np.log(change[:, :, -1])
  sink, hidden, control = (
    names.index(name)
    for name in (Condition.SINK, Condition.HIDDEN, Condition.CONTROL)
  )
  shown = _shown(pairs, config.shown)
  by_layer = np.array(
    [
      [mean_over(column, groups)[:3] for column in change[:, i].T]
      for i in range(len(names))
    ]
  )
  return Result(
    numbers={
      "conditions": names,
      "swaps": len(pairs),
      "texts": len(set(groups)),
      "from_layer": config.from_layer,
      "threshold": config.threshold,
      "contrasts": {
        name: contrast(values, names, groups)
        for name, values in {
          "log_change_last_layer": last,
          "log_change_all_layers": np.log(change.mean(axis=-1)),
          "reached": reached[:, :, -1],
        }.items()
      },
      "swaps_that_spread_further": float(
        np.mean(last[:, hidden] > last[:, sink])
      ),
      "first_position_is_bos": subject.has_bos(),
      "control_position": CONTROL_KEY + len(subject.prefix),
      "shown": _describe(subject, pairs[shown]),
    },
    tables={
      "swaps.csv": _swap_table(names, pairs, change, reached),
      "layers.csv": layer_table(names, by_layer),
    },
    arrays={
      "aligned": _aligned(pairs, gaps),
      "shown": gaps[shown],
      "by_layer": by_layer,
      "log_ratio": last[:, hidden] - last[:, sink],
      "log_ratio_control": last[:, control] - last[:, sink],
      "text": np.array(groups),
    },
  )


class Contrast(NamedTuple):
  """A measure under every condition, against two others.

  Attributes:
    over_sink: how much more than with the sink, for every other condition.
    beyond_control: how much more with the sink hidden than with the control
      hidden.
  """

  over_sink: dict[str, Mean]
  beyond_control: Mean

  @classmethod
  def read(cls, stored: Mapping[str, Any]) -> "Contrast":
    """From `result.json`."""
    over_sink = {
      name: Mean.read(mean) for name, mean in stored["over_sink"].items()
    }
    return cls(over_sink, Mean.read(stored["beyond_control"]))


def contrast(
  values: np.ndarray, names: Sequence[Condition], groups: Sequence[int]
) -> Contrast:
  """Of `values` [P, C], the conditions in the order of `names`."""
  by_name = dict(zip(names, np.asarray(values).T, strict=True))
  sink, hidden = by_name[Condition.SINK], by_name[Condition.HIDDEN]
  over_sink = {
    name: mean_over(one - sink, groups)
    for name, one in by_name.items()
    if name is not Condition.SINK
  }
  beyond = mean_over(hidden - by_name[Condition.CONTROL], groups)
  return Contrast(over_sink, beyond)


def _swap_table(
  names: Sequence[Condition],
  pairs: Sequence[Pair],
  change: np.ndarray,
  reached: np.ndarray,
) -> tuple[list[str], list[list[Any]]]:
  header = ["text", "before", "after", "position", "tokens"]
  header += [f"change, {name}" for name in names]
  header += [f"reached, {name}" for name in names]
  rows = [
    [
      pair.text + 1,
      *pair.words,
      pair.first,
      len(pair.ids),
      *map(float, change[i, :, -1]),
      *map(float, reached[i, :, -1]),
    ]
    for i, pair in enumerate(pairs)
  ]
  return header, rows
