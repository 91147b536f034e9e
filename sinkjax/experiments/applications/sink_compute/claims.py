"""What the experiment `sink_compute` says of attention that is left out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.sink_compute import (
  skipped_blocks as blocks,
)
from sinkjax.experiments.applications.sink_compute.timing import (
  KNOWN,
  LOOP,
  PROVEN,
  SCORED,
  faster_fused,
)
from sinkjax.experiments.harness.api import (
  AGREES,
  DISAGREES,
  UNTESTED,
  Claim,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, mean_over
from sinkjax.experiments.harness.timing import saved

MUCH, SOME, LITTLE = 0.5, 0.1, 0.01
"""Shares: of what is left out with the pattern known; of blocks of queries; of
anything."""

WITHIN = 0.01
"""An increase of the loss that is none."""

SOURCE = "ours, after 2504.02732 section 3.2"


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
  left_out: Mapping[tuple[int, int], Mapping[str, float]],
  layers: tuple[int, int],
) -> list[Claim]:
  """Those of shares, of the loss, of the bound, of time.

  Args:
    config: of `sink_compute`.
    by_text: [P] shares left out, by (length, way, tolerance).
    relative: [P] loss increase over the mean loss, by (way, tolerance).
    worst: greatest error over its bound.
    seconds: [R] by way, by (layer, length).
    left_out: share that each timed way leaves out.
    layers: that were timed, the one of the greatest share first.
  """
  return [
    *_shares(config, by_text),
    _sink(config, by_text),
    _length(config, by_text),
    _loss(config, relative),
    _bound(config, worst),
    *_times(config, seconds, left_out, layers),
  ]


def _shares(config: Any, by_text) -> list[Claim]:
  at, codes = config.at, blocks.bits_name(config.best)

  def share(name):
    return by_text[config.length, name, at]

  rows, bound = (
    _over(share(x)) for x in (blocks.ROWS_KNOWN, blocks.ROWS_BOUND)
  )
  summary, oracle = _over(share(blocks.SUMMARIES)), share(blocks.ORACLE)
  coded = _over(share(codes) - MUCH * oracle)
  size = (
    f"{config.length} tokens, blocks of {config.block}, a query may lose "
    f"{at:g} of its weight"
  )
  every = ", ".join(
    f"{blocks.bits_name(x)} {_percent(_over(share(blocks.bits_name(x))))}"
    for x in config.bits
  )
  return [
    Claim(
      "Queries rest on the sink in whole blocks: a tenth of the attention "
      "could be left out with them.",
      SOURCE,
      "no number",
      f"{_percent(rows)} by the pattern, {_percent(bound)} by a bound",
      direction(rows.low - SOME, rows.high - SOME),
      f"{size}; above 10 %",
    ),
    Claim(
      "Summaries of a block's keys prove that it hardly matters.",
      "ours, after Quest 2406.10774",
      "no number",
      f"{_percent(summary)} of blocks left out; by the same rule with the "
      f"pattern known {_percent(_over(oracle))}",
      direction(summary.low - LITTLE, summary.high - LITTLE),
      f"{size}; the best of a ball, a box and a ball in a fitted basis; above "
      "1 %",
    ),
    Claim(
      "Keys in a few bits prove most of what the same rule leaves out with the "
      "pattern known.",
      "ours",
      "no number",
      f"{every}; from all scores {_percent(_over(share(blocks.SCORES)))}; with "
      f"the pattern known {_percent(_over(oracle))}",
      direction(coded.low, coded.high),
      f"{size}; {codes}: above half, 95 % interval of the difference",
    ),
  ]


def _sink(config: Any, by_text) -> Claim:
  """That less is left out without the sink's key holds by construction: what
  a query may lose is then a share of less. What part is proven does not."""
  at, codes = config.at, blocks.bits_name(config.best)
  own, proven, own_none, proven_none = (
    by_text[config.length, name + end, at]
    for end in ("", blocks.NO_SINK)
    for name in (blocks.ORACLE, codes)
  )
  some = np.stack([own, own_none, proven, proven_none])
  shares = [_percent(_over(x)) for x in some]
  with np.errstate(invalid="ignore", divide="ignore"):
    parts = np.stack([proven / own, proven_none / own_none])
  sentence = (
    "The sink makes sparsity provable: without its key a smaller "
    "part of what could be left out is proven."
  )
  condition = (
    f"{config.length} tokens, {codes}, a query may lose {at:g}; same queries "
    "and keys, the first key out of the softmax; parts of what the same rule "
    "leaves out with the pattern known"
  )
  if not np.isfinite(parts).all():
    return Claim(
      sentence,
      SOURCE,
      "no number",
      "in some text nothing could be left out",
      UNTESTED,
      condition,
    )
  gap = _over(parts[0] - parts[1])
  return Claim(
    sentence,
    SOURCE,
    "no number",
    f"{_percent(_over(parts[0]))} of it, without the first key "
    f"{_percent(_over(parts[1]))}; that is {shares[2]} of {shares[0]} of "
    f"blocks, without {shares[3]} of {shares[1]}",
    direction(gap.low, gap.high),
    f"{condition}; 95 % interval of the difference",
  )


def _length(config: Any, by_text) -> Claim:
  at = config.at
  short, long = config.lengths[0], config.lengths[-1]
  ends = [by_text[length, blocks.ORACLE, at] for length in (short, long)]
  both = min(map(len, ends))  # the same texts, cut at two lengths
  gap = _over(ends[1][:both] - ends[0][:both])
  return Claim(
    "The longer the text, the more can be left out.",
    "ours",
    "no number",
    f"{_percent(_over(ends[0][:both]))} at {short} tokens, "
    f"{_percent(_over(ends[1][:both]))} at {long}, with the pattern known",
    direction(gap.low, gap.high),
    f"a query may lose {at:g}; {both} texts, 95 % interval of the difference",
  )


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
    "ours",
    "no number",
    f"a query may lose {at:g} in every layer and head, {name}: loss "
    f"{_percent(mean, '+')}" + (f"; {others}" if others else ""),
    direction(WITHIN - mean.high, WITHIN - mean.low),
    f"{config.length} tokens; 95 % over texts; a block of queries leaves out "
    "the same for all of its queries, the later ones included",
  )


def _bound(config: Any, worst: float) -> Claim:
  return Claim(
    "The error is never above its bound.",
    "ours",
    "1",
    f"greatest error over bound {worst:.3f}",
    AGREES if worst <= 1 else DISAGREES,
    f"over all layers, heads, queries, texts and tolerances, {config.length} "
    f"tokens, from all scores and {blocks.bits_name(config.best)}; rounding "
    f"of {blocks.FLOOR:g} of the largest value is no breach",
  )


def _times(config: Any, seconds, left_out, layers) -> list[Claim]:
  layer, length = layers[0], config.timed[-1]
  one, other = (seconds[x, length] for x in layers)
  found = []
  for name, sentence, condition in (
    (
      KNOWN,
      "With the blocks known for nothing, leaving them out is faster "
      "than fused attention.",
      "",
    ),
    (SCORED, "With all scores computed to find them, it is.", ""),
    (
      PROVEN,
      "With the bounds paid for, it is.",
      f"; {blocks.bits_name(config.best)}, simulated on float32 keys, so that "
      "a bound costs what a score does",
    ),
  ):
    best = faster_fused(one)
    gain = saved(one[name], one[best])
    found.append(
      Claim(
        sentence,
        "ours",
        "no number",
        f"{_percent(gain, '+')} of the time of the faster fused one ({best}) "
        f"saved at {length} tokens, "
        f"{100 * left_out[layer, length][name]:.0f} % left out; "
        f"{_percent(saved(one[name], one[LOOP]), '+')} of the same loop over "
        f"all blocks. Layer {layers[1]}, of the median share: "
        f"{_percent(saved(other[name], other[faster_fused(other)]), '+')}, "
        f"{100 * left_out[layers[1], length][name]:.0f} % left out",
        direction(gain.low, gain.high),
        f"layer {layer}, of which most can be left out; a query may lose "
        f"{config.at:g}; {config.rounds} interleaved rounds on this machine's "
        f"processor{condition}",
      )
    )
  return found
