"""What the experiment `sink_compute` says of attention that is left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments import skipped_blocks as blocks
from sinkjax.experiments.result import AGREES, DISAGREES, Claim, direction
from sinkjax.experiments.skipping_times import (
  FUSED,
  KNOWN,
  LOOP,
  PROVEN,
  ROWS,
)
from sinkjax.experiments.timing import saved
from sinkjax.experiments.uncertainty import Mean, mean_over

MUCH, SOME, LITTLE = 0.5, 0.1, 0.01
"""Shares: of what the pattern allows; of blocks of queries; of anything."""

WITHIN = 0.01
"""An increase of the loss that is none."""

SOURCE = "2504.02732 section 3.2"


def _over(values) -> Mean:
  return mean_over(values, range(len(values)))


def _percent(mean: Mean, sign: str = "") -> str:
  ends = [f"{100 * x:{sign}.2f}" for x in mean[:3]]
  return f"{ends[0]} ({ends[1]} to {ends[2]}) %"


def claims(
  config: Any,
  by_text: Mapping[tuple[int, str, float], np.ndarray],
  relative: Mapping[tuple[str, float], np.ndarray],
  worst: float,
  seconds: Mapping[tuple[int, int], Mapping[str, np.ndarray]],
  left_out: Mapping[tuple[int, int], float],
  layers: tuple[int, int],
) -> list[Claim]:
  """Those of shares, of the loss, of the bound, of time.

  Args:
    config: of `sink_compute`.
    by_text: [P] shares left out, by (length, way, tolerance).
    relative: [P] loss increase over the mean loss, by (way, tolerance).
    worst: greatest error over its bound.
    seconds: [R] by way, by (layer, length).
    left_out: share that the timed blocks leave out.
    layers: that were timed, the one of the greatest share first.
  """
  return [
    *_shares(config, by_text), *_sink(config, by_text),
    _loss(config, relative), _bound(worst),
    *_times(config, seconds, left_out, layers),
  ]  # fmt: skip


def _shares(config: Any, by_text) -> list[Claim]:
  at, codes = config.at, blocks.bits_name(config.best)

  def share(name):
    return by_text[config.length, name, at]

  rows, bound = (
    _over(share(x)) for x in (blocks.ROWS_KNOWN, blocks.ROWS_BOUND)
  )
  summary, oracle = _over(share(blocks.SUMMARIES)), share(blocks.ORACLE)
  coded = _over(share(codes) - MUCH * oracle)
  size = (f"{config.length} tokens, blocks of {config.block}, a query may lose "
          f"{at:g} of its weight")  # fmt: skip
  every = ", ".join(
    f"{blocks.bits_name(x)} {_percent(_over(share(blocks.bits_name(x))))}"
    for x in config.bits
  )
  return [
    Claim(
      "Queries rest on the sink in whole blocks: a tenth of the attention "
      "could be left out with them.", SOURCE, "no number",
      f"{_percent(rows)} by the pattern, {_percent(bound)} by a bound",
      direction(rows.low - SOME, rows.high - SOME), f"{size}; above 10 %",
    ),
    Claim(
      "Summaries of a block's keys prove that it hardly matters.",
      "ours, after Quest 2406.10774", "no number",
      f"{_percent(summary)} of blocks left out; the pattern allows "
      f"{_percent(_over(oracle))}",
      direction(summary.low - LITTLE, summary.high - LITTLE),
      f"{size}; the best of a ball, a box and a ball in a fitted basis; above "
      "1 %",
    ),
    Claim(
      "Keys in a few bits prove most of what the pattern allows.", "ours",
      "no number",
      f"{every}; from all scores {_percent(_over(share(blocks.SCORES)))}; the "
      f"pattern allows {_percent(_over(oracle))}",
      direction(coded.low, coded.high),
      f"{size}; {codes}: above half, 95 % interval of the difference",
    ),
  ]  # fmt: skip


def _sink(config: Any, by_text) -> list[Claim]:
  at, codes = config.at, blocks.bits_name(config.best)
  found = []
  for name, sentence in (
    (blocks.ORACLE, "The sink makes attention sparse: without its key less "
     "could be left out."),
    (codes, "The sink makes sparsity provable: without its key less is "
     "proven."),
  ):  # fmt: skip
    own = by_text[config.length, name, at]
    none = by_text[config.length, name + blocks.NO_SINK, at]
    gap = _over(own - none)
    found.append(Claim(
      sentence, SOURCE, "no number",
      f"{name}: {_percent(_over(own))}, without the first key "
      f"{_percent(_over(none))}",
      direction(gap.low, gap.high),
      f"{config.length} tokens, a query may lose {at:g}; same queries and "
      "keys, the first key out of the softmax; 95 % interval of the "
      "difference",
    ))  # fmt: skip
  short, long = config.lengths[0], config.lengths[-1]
  ends = [by_text[length, blocks.ORACLE, at] for length in (short, long)]
  both = min(map(len, ends))  # the same texts, cut at two lengths
  gap = _over(ends[1][:both] - ends[0][:both])
  found.append(Claim(
    "The longer the text, the more can be left out.", "ours", "no number",
    f"{_percent(_over(ends[0][:both]))} at {short} tokens, "
    f"{_percent(_over(ends[1][:both]))} at {long}, by the pattern",
    direction(gap.low, gap.high),
    f"a query may lose {at:g}; {both} texts, 95 % interval of the difference",
  ))  # fmt: skip
  return found


def _loss(config: Any, relative) -> Claim:
  at, name = config.at, blocks.bits_name(config.best)
  mean = _over(relative[name, at])
  others = ", ".join(
    f"{x:g}: {_percent(_over(relative[name, x]), '+')}"
    for x in config.tolerances
    if x != at
  )
  return Claim(
    "What provably hardly matters can be left out within 1 % of the loss.",
    "ours", "no number",
    f"a query may lose {at:g} in every layer and head, {name}: loss "
    f"{_percent(mean, '+')}" + (f"; {others}" if others else ""),
    direction(WITHIN - mean.high, WITHIN - mean.low),
    f"{config.length} tokens; 95 % over texts",
  )  # fmt: skip


def _bound(worst: float) -> Claim:
  return Claim(
    "The error is never above its bound.",
    "ours",
    "1",
    f"greatest error over bound {worst:.3f}",
    AGREES if worst <= 1 else DISAGREES,
    "over all layers, heads, queries, texts and tolerances; rounding of "
    f"{blocks.FLOOR:g} of the largest value is no breach",
  )


def _times(config: Any, seconds, left_out, layers) -> list[Claim]:
  layer, length = layers[0], config.timed[-1]
  one, other = (seconds[x, length] for x in layers)
  found = []
  for name, sentence in (
    (KNOWN, "With the blocks known for nothing, leaving them out is faster "
     "than fused attention."),
    (PROVEN, "With the bounds paid for, it is."),
  ):  # fmt: skip
    best = min((FUSED, ROWS), key=lambda x: float(np.median(one[x])))
    gain = saved(one[name], one[best])
    found.append(Claim(
      sentence, "ours", "no number",
      f"{_percent(gain, '+')} of the time of the faster fused one ({best}) "
      f"saved at {length} tokens, {100 * left_out[layer, length]:.0f} % left "
      f"out; {_percent(saved(one[name], one[LOOP]), '+')} of the same loop "
      f"over all blocks. Layer {layers[1]}, of the median share: "
      f"{_percent(saved(other[name], other[best]), '+')}, "
      f"{100 * left_out[layers[1], length]:.0f} % left out",
      direction(gain.low, gain.high),
      f"layer {layer}, of which most can be left out; {config.rounds} "
      "interleaved rounds on this machine's processor",
    ))  # fmt: skip
  return found
