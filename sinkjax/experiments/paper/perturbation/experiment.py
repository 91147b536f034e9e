"""Does a small change spread further without the sink? (section 3.1, figure 2)

One word of a text is swapped for another of as many tokens, and both texts
are run: with the sink, with it hidden from a layer on, as a control with
another token hidden, and, where texts start with BOS, without it. What differs
after the change is how far it has spread.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sinkjax.experiments.harness.api import (
  AGREES,
  UNTESTED,
  Claim,
  Result,
  Subject,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, format_ratio, mean_over
from sinkjax.experiments.shared.sink_removal import with_layer
from sinkjax.experiments.shared.swap_texts import TEXTS, parse_swaps
from sinkjax.metrics.spread import spread
from sinkjax.models.transformer import forward
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edits import knockout
from sinkjax.transforms.intervene import intervene

NAME, TITLE = "perturbation", "How far a swapped word spreads"
SINK, HIDDEN, CONTROL = "with the sink", "sink hidden", "control hidden"
NO_BOS = "without BOS"
CONTROL_KEY = 1
"""The token that is hidden instead of the sink: the next one."""

FIRST_PLACE = 3
"""A swap must be at this position of the text or later."""

AFTER = 4
"""As many tokens must follow it."""

AROUND = (4, 40)
"""Tokens before and after the change that are averaged for the map."""


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    texts: with places to swap; see `swaps.parse_swaps`.
    from_layer: the first layer at which a token is hidden; `None` for the
      one that leaves the fewest sinks, see `sink_removal`.
    threshold: a position is reached where it changes by more than this
      share of its norm.
    batch: pairs in one forward pass.
    shown: the swap that is drawn by itself, as the paper draws its own; the
      first one where the texts have no such swap.
  """

  texts: str = TEXTS
  from_layer: int | None = None
  threshold: float = 0.1
  batch: int = 8
  shown: tuple[str, str] = ("greatest", "best")


class Pair(NamedTuple):
  """Two texts of equal length in tokens that differ in one place.

  Attributes:
    text: number of the text.
    words: what was swapped.
    ids: of the text as it stands.
    changed: of the other.
    first: the first position that differs.
    last: the last one.
  """

  text: int
  words: tuple[str, str]
  ids: list[int]
  changed: list[int]
  first: int
  last: int


def pairs_of(subject: Subject, texts: str) -> tuple[list[Pair], int]:
  """The swaps that change no token count, and how many others there are."""
  found, others = [], 0
  for swap in parse_swaps(texts):
    ids, changed = (
      subject.prefix + subject.tokenizer.encode(text)
      for text in (swap.before, swap.after)
    )
    differ = [
      i for i, (a, b) in enumerate(zip(ids, changed, strict=False)) if a != b
    ]
    usable = len(ids) == len(changed) and differ
    if (
      not usable
      or differ[0] < FIRST_PLACE + len(subject.prefix)
      or len(ids) - 1 - differ[-1] < AFTER
    ):
      others += 1
      continue
    found.append(
      Pair(swap.text, swap.words, ids, changed, differ[0], differ[-1])
    )
  return found, others


def gaps_of(conditions: dict[str, Callable]) -> Callable:
  """`f(params, ids [B, T], changed [B, T])`: relative change, [C, L, B, T].

  The condition `NO_BOS` leaves out position 0, which differs in nothing.
  """
  watch = {"x": ("resid_post", lambda x: x)}

  @jax.jit
  def gaps(params, ids, changed):
    found = []
    for name, fn in conditions.items():
      cut, watched = int(name == NO_BOS), capture(fn, watch)
      before, after = (
        watched(params, t[:, cut:]).trace["x"] for t in (ids, changed)
      )
      gap = spread(before, after, relative=True)
      found.append(jnp.pad(gap, [(0, 0), (0, 0), (cut, 0)]))
    return jnp.stack(found)

  return gaps


def run(
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
    ValueError: if no swap has as many tokens before as after, or from_layer
      is not a layer.
    ArithmeticError: if anything before the change differs, which would be a
      fault of the model's code.

  Cost: six forward passes a swap.
  """
  cfg = subject.cfg
  pairs, others = pairs_of(subject, config.texts)
  if len({pair.text for pair in pairs}) < 2:
    raise ValueError(
      f"of {len(pairs) + others} swaps only {len(pairs)} keep the number of "
      "tokens; two texts with one each are needed"
    )
  config = with_layer(subject, config)
  f = forward(cfg)

  def hiding(key):
    return intervene(f, {"scores": knockout(key, from_layer=config.from_layer)})

  conditions = {
    SINK: f,
    HIDDEN: hiding(0),
    CONTROL: hiding(CONTROL_KEY + len(subject.prefix)),
  }
  if subject.has_bos():
    conditions[NO_BOS] = f
  gaps = gaps_of(conditions)
  found = _measure(subject, pairs, gaps, config.batch, progress)
  return _result(subject, config, list(conditions), pairs, others, found)


def _measure(subject, pairs, gaps, batch: int, progress) -> list[np.ndarray]:
  """[C, L, T] of every pair, padded texts cut to their length again."""
  length = max(len(pair.ids) for pair in pairs)
  found = []
  for start in range(0, len(pairs), batch):
    part = pairs[start : start + batch]
    full = part + [part[-1]] * (batch - len(part))
    ids, changed = (
      jnp.asarray([row + [0] * (length - len(row)) for row in rows])
      for rows in ([p.ids for p in full], [p.changed for p in full])
    )
    out = np.asarray(gaps(subject.params, ids, changed))
    for row, pair in enumerate(part):
      mine = out[:, :, row, : len(pair.ids)]
      if mine[..., : pair.first].any():
        raise ArithmeticError(
          f"tokens before the swapped {pair.words} differ: the model is not "
          "causal"
        )
      found.append(mine)
    progress(len(found), len(pairs))
  return found


def _after(pairs: Sequence[Pair], found, reduce: Callable) -> np.ndarray:
  """[P, C, L] of what comes after each change."""
  return np.stack(
    [
      reduce(gap[..., pair.last + 1 :])
      for pair, gap in zip(pairs, found, strict=True)
    ]
  )


def _shown(pairs: Sequence[Pair], words: tuple[str, str]) -> int:
  """Which swap is of these words; the first if none is."""
  same = [i for i, pair in enumerate(pairs) if pair.words == tuple(words)]
  return same[0] if same else 0


def _aligned(pairs: Sequence[Pair], found) -> np.ndarray:
  """[C, L, N] mean relative change by place relative to the change."""
  before, after = AROUND
  conditions, layers, _ = found[0].shape
  total = np.zeros((conditions, layers, before + after + 1))
  count = np.zeros(before + after + 1)
  for pair, gap in zip(pairs, found, strict=True):
    low = max(0, pair.first - before)
    mine = gap[..., low : pair.first + after + 1]
    at = slice(
      low - pair.first + before, low - pair.first + before + mine.shape[-1]
    )
    total[..., at] += mine
    count[at] += 1
  return total / np.maximum(count, 1)


def _result(subject, config, names, pairs, others, found) -> Result:
  groups = [pair.text for pair in pairs]
  change = _after(pairs, found, lambda gap: gap.mean(axis=-1))
  reached = _after(
    pairs, found, lambda gap: (gap > config.threshold).mean(axis=-1)
  )
  last = np.log(change[:, :, -1])
  sink, hidden, control = range(3)
  shown = _shown(pairs, config.shown)
  decode = subject.tokenizer.decode
  contrasts = {
    "log_change_last_layer": contrast(last, names, groups),
    "log_change_all_layers": contrast(
      np.log(change.mean(axis=-1)), names, groups
    ),
    "reached": contrast(reached[:, :, -1], names, groups),
  }
  by_layer = {
    name: [
      mean_over(change[:, i, layer], groups) for layer in range(change.shape[2])
    ]
    for i, name in enumerate(names)
  }
  numbers = {
    "conditions": names,
    "swaps": len(pairs),
    "texts": len(set(groups)),
    "unusable_swaps": others,
    "from_layer": config.from_layer,
    "threshold": config.threshold,
    "contrasts": {name: one.plain() for name, one in contrasts.items()},
    "swaps_that_spread_further": float(
      np.mean(last[:, hidden] > last[:, sink])
    ),
    "first_position_is_bos": subject.has_bos(),
    "shown": {
      "words": pairs[shown].words,
      "first": pairs[shown].first,
      "tokens": [decode([i]) for i in pairs[shown].ids],
    },
  }
  return Result(
    name=NAME,
    title=TITLE,
    claims=_claims(subject, config, pairs, *contrasts.values()),
    numbers=numbers,
    tables={
      "swaps.csv": _swap_table(subject, names, pairs, change, reached),
      "layers.csv": _layer_table(by_layer),
    },
    arrays={
      "aligned": _aligned(pairs, found),
      "shown": found[shown],
      "by_layer": np.array([[list(m[:3]) for m in by_layer[n]] for n in names]),
      "log_ratio": last[:, hidden] - last[:, sink],
      "log_ratio_control": last[:, control] - last[:, sink],
      "text": np.array(groups),
    },
  )


class Contrast(NamedTuple):
  """A measure under every condition, against two others.

  Attributes:
    over_sink: how much more than with the sink, for every other condition.
    beyond: how much more with the sink hidden than with the control hidden.
  """

  over_sink: dict[str, Mean]
  beyond: Mean

  def verdict(self) -> str:
    """On "more without the sink": more than both, less than one, or neither."""
    sink = self.over_sink[HIDDEN]
    low = min(sink.low, self.beyond.low)
    return direction(low, min(sink.high, self.beyond.high))

  def plain(self) -> dict[str, Any]:
    """For result.json."""
    more = {name: mean._asdict() for name, mean in self.over_sink.items()}
    return {"over_sink": more, "beyond_control": self.beyond._asdict()}


def contrast(values: np.ndarray, names, groups) -> Contrast:
  """Of `values` [P, C], the conditions in the order of `names`."""
  sink, hidden, control = range(3)
  over_sink = {
    name: mean_over(values[:, i] - values[:, sink], groups)
    for i, name in enumerate(names)
    if i
  }
  beyond = mean_over(values[:, hidden] - values[:, control], groups)
  return Contrast(over_sink, beyond)


def _claims(subject, config, pairs, last, early, reach):
  other = f"token {CONTROL_KEY + len(subject.prefix)}"
  texts = f"{len(pairs)} swaps in {last.beyond.groups} texts"
  hidden = f"token 0 hidden from layer {config.from_layer} on"
  ratio = functools.partial(format_ratio, form=".2f")

  def claim(text, one, what, shown, paper):
    sink, control = one.over_sink[HIDDEN], one.over_sink[CONTROL]
    return Claim(
      text,
      "section 3.1, figure 2",
      paper,
      f"{shown(sink)} {what}, {hidden}; {shown(control)} with {other} hidden "
      f"instead; the first over the second {shown(one.beyond)}",
      one.verdict(),
      f"{texts}; agrees if it is more than with the sink and more than with "
      f"{other} hidden; sign-flip p = {sink.p:.2g} and {one.beyond.p:.2g}",
    )

  def points(mean):
    scaled = (100 * x for x in mean[:3])
    return "{:+.1f} ({:+.1f} to {:+.1f}) points".format(*scaled)

  claims = [
    Claim(
      "A change is exactly invisible before its position.",
      "section 3.1, figure 2",
      "zero (Gemma 7B)",
      f"exactly 0 in {texts}",
      AGREES,
      "checked at every layer",
    ),
    claim(
      "Without the sink a swapped word changes later tokens more.",
      last,
      "the relative change at the last layer",
      ratio,
      "no number; visible in one prompt (Gemma 7B)",
    ),
    claim(
      "The spread is larger at most layers, not the last alone.",
      early,
      "the relative change, mean of layers",
      ratio,
      "no number; from earlier layers (Gemma 7B)",
    ),
    claim(
      f"It reaches more tokens (change above {config.threshold:g}).",
      reach,
      "of later tokens",
      points,
      "no number (Gemma 7B)",
    ),
  ]
  without = last.over_sink.get(NO_BOS)
  claims.append(
    Claim(
      "Leaving out the BOS that a model was trained with does the same.",
      "section 3.1, figure 2",
      "no number (Gemma 7B)",
      "not measured" if without is None else f"{ratio(without)} the change",
      UNTESTED if without is None else direction(without.low, without.high),
      f"{subject.name} has no BOS before its texts"
      if without is None
      else f"sign-flip p = {without.p:.2g}",
    )
  )
  return claims


def _swap_table(subject, names, pairs, change, reached):
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


def _layer_table(by_layer):
  header = ["layer"]
  for name in by_layer:
    header += [name, f"{name}, low", f"{name}, high"]
  layers = len(next(iter(by_layer.values())))
  rows = [
    [
      layer,
      *(float(x) for means in by_layer.values() for x in means[layer][:3]),
    ]
    for layer in range(layers)
  ]
  return header, rows
