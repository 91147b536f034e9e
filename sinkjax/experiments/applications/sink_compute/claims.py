"""The claims about attention that can be skipped."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.applications.sink_compute.config import (
  NO_SINK,
  ORACLE,
  ROWS_BOUND,
  ROWS_KNOWN,
  SCORES,
  SUMMARIES,
  bits_name,
)
from sinkjax.experiments.applications.sink_compute.results import shares_by_text
from sinkjax.experiments.applications.sink_compute.skipped_blocks import FLOOR
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
  Result,
  direction,
)
from sinkjax.experiments.harness.stats import Mean, mean_of
from sinkjax.experiments.harness.timing import time_saved

MOST, TENTH, SOME = 0.5, 0.1, 0.01
"""Shares of what can be skipped with the pattern known that count as most of
it; of the attention, that are worth a kernel; and that are more than none."""

WITHIN = 0.01
"""Relative increase of the loss that counts as none: 0.03 of the 3.3 nats of
SmolLM2-135M, 3 % of perplexity."""

SECTION = "ours, after 2504.02732 section 3.2"

ByText = Mapping[tuple[int, str, float], np.ndarray]
"""[P] shares by (length, way, tolerance)."""


def claims(result: Result) -> list[Claim]:
  """Those of shares, of the loss, of the bound, of time."""
  config = result.config
  share = {x: result.arrays[f"share, {x}"] for x in config.lengths}
  by_text = shares_by_text(config, share, result.numbers["ways"])
  return [
    _dormant_rows(result, by_text),
    _summaries(result, by_text),
    _few_bits(result, by_text),
    _sink_helps_proof(result, by_text),
    _longer_texts(result, by_text),
    _loss(result),
    _bound(result),
    *_times(result),
  ]


def _percent(values: np.ndarray | Mean, form: str = ".2f") -> str:
  mean = values if isinstance(values, Mean) else mean_of(values)
  return mean.scaled(100).text(form, " %")


def _setting(result: Result) -> str:
  config = result.config
  return (
    f"{config.length} tokens, blocks of {config.block}, a query may lose "
    f"{config.at:g} of its weight, 95 % interval over texts"
  )


def _at(result: Result, by_text: ByText, way: str) -> np.ndarray:
  """[P] shares at the length and tolerance that the claims are about."""
  return by_text[result.config.length, way, result.config.at]


def _dormant_rows(result: Result, by_text: ByText) -> Claim:
  # Judged by the pattern, the most that any bound could reach.
  known, bound = (
    mean_of(_at(result, by_text, x)) for x in (ROWS_KNOWN, ROWS_BOUND)
  )
  return Claim(
    "dormant_rows",
    "At least a tenth of the attention can be skipped because whole blocks of "
    "queries are dormant.",
    SECTION,
    "no number",
    f"{_percent(known)} of the attention by the pattern, {_percent(bound)} by "
    "a bound",
    direction(known.low - TENTH, known.high - TENTH),
    f"agrees if more than 10 % can be skipped with whole blocks of queries, by "
    f"the pattern; {_setting(result)}",
  )


def _summaries(result: Result, by_text: ByText) -> Claim:
  summary = mean_of(_at(result, by_text, SUMMARIES))
  oracle = _percent(_at(result, by_text, ORACLE))
  return Claim(
    "summaries",
    "Summaries of blocks of keys suffice to prove that some of them carry "
    "little weight.",
    "ours, after Quest 2406.10774",
    "no number",
    f"{_percent(summary)} of blocks can be skipped; with the pattern known, by "
    f"the same rule, {oracle}",
    direction(summary.low - SOME, summary.high - SOME),
    "agrees if more than 1 % can be skipped, by the best of a ball, a box and "
    f"a ball in a fitted basis; {_setting(result)}",
  )


def _few_bits(result: Result, by_text: ByText) -> Claim:
  codes = bits_name(result.config.best)
  oracle = _at(result, by_text, ORACLE)
  more = mean_of(_at(result, by_text, codes) - MOST * oracle)
  every = ", ".join(
    f"{_percent(_at(result, by_text, bits_name(x)))} from {bits_name(x)}"
    for x in result.config.bits
  )
  return Claim(
    "few_bits",
    "Keys in a few bits suffice to prove most of what can be skipped with the "
    "pattern known.",
    "ours",
    "no number",
    f"{every}; {_percent(_at(result, by_text, SCORES))} from all scores; "
    f"{_percent(oracle)} with the pattern known",
    direction(more.low, more.high),
    f"agrees if {codes} prove more than half; {_setting(result)}",
  )


def _sink_helps_proof(result: Result, by_text: ByText) -> Claim:
  """That less can be skipped without the sink's key holds by construction: what
  a query may lose is then a share of less. What part can be proven does not."""
  codes = bits_name(result.config.best)
  own, proven, own_none, proven_none = (
    _at(result, by_text, name + end)
    for end in ("", NO_SINK)
    for name in (ORACLE, codes)
  )
  head = (
    "sink_helps_proof",
    "Without the sink's key, a smaller part of the skippable attention can be "
    "proven skippable.",
    SECTION,
    "no number",
  )
  why = (
    f"{result.config.length} tokens, {codes}, a query may lose "
    f"{result.config.at:g}; same queries and keys, the first key taken out of "
    "the softmax; parts of what the same rule skips with the pattern known"
  )
  # 0 / 0 where nothing can be skipped in a text: then there is no test.
  with np.errstate(invalid="ignore", divide="ignore"):
    parts = np.stack([proven / own, proven_none / own_none])
  if not np.isfinite(parts).all():
    nothing = "in some text nothing can be skipped"
    return Claim(*head, nothing, UNTESTED, why)
  gap = mean_of(parts[0] - parts[1])
  return Claim(
    *head,
    f"{_percent(parts[0])} of it can be proven, without the first key "
    f"{_percent(parts[1])}; that is {_percent(proven)} of {_percent(own)} of "
    f"blocks, without it {_percent(proven_none)} of {_percent(own_none)}",
    direction(gap.low, gap.high),
    f"{why}; 95 % interval of the difference over texts",
  )


def _longer_texts(result: Result, by_text: ByText) -> Claim:
  at, lengths = result.config.at, result.config.lengths
  short, long = (by_text[x, ORACLE, at] for x in (lengths[0], lengths[-1]))
  both = min(len(short), len(long))  # the same texts, cut at two lengths
  gap = mean_of(long[:both] - short[:both])
  return Claim(
    "longer_texts",
    "A larger share of the attention can be skipped in longer texts.",
    "ours",
    "no number",
    f"{_percent(short[:both])} at {lengths[0]} tokens, "
    f"{_percent(long[:both])} at {lengths[-1]}, with the pattern known",
    direction(gap.low, gap.high),
    f"a query may lose {at:g} of its weight; {both} texts, 95 % interval of "
    "the difference",
  )


def _loss(result: Result) -> Claim:
  """From the table: the arrays of earlier files lack the loss of each text."""
  config, way = result.config, bits_name(result.config.best)
  change = {}
  for row in result.records("errors.csv"):
    if row["way"] == way:
      ends = (row[f"loss_change{end}"] for end in ("", "_low", "_high"))
      groups = config.counts[config.lengths.index(config.length)]
      change[row["tolerance"]] = Mean(*ends, groups, np.nan)
  mean = change[config.at]
  others = ", ".join(
    f"at {at:g} by {_percent(one, '+.2f')}"
    for at, one in change.items()
    if at != config.at
  )
  return Claim(
    "loss",
    "Skipping attention that provably carries little weight raises the loss by "
    "less than 1 %.",
    "ours",
    "no number",
    f"if queries may lose {config.at:g} of their weight in every layer and "
    f"head, {way}, the loss changes by {_percent(mean, '+.2f')}"
    + (f"; {others}" if others else ""),
    direction(WITHIN - mean.high, WITHIN - mean.low),
    f"{config.length} tokens; 95 % interval over texts; all queries of a block "
    "skip the same blocks of keys, decided by the later queries too",
  )


def _bound(result: Result) -> Claim:
  worst = result.numbers["worst_error_over_bound"]
  return Claim(
    "bound",
    "The error of skipped attention never exceeds its bound.",
    "ours",
    "1",
    f"greatest error over its bound {worst:.3f}",
    AGREES if worst <= 1 else DISAGREES,
    f"over all layers, heads, queries, texts and tolerances, "
    f"{result.config.length} tokens, from all scores and "
    f"{bits_name(result.config.best)}; rounding of {FLOOR:g} of the largest "
    "value is no breach",
  )


TIMES = (
  (
    "faster_known",
    KNOWN,
    "Skipping blocks that are known beforehand is faster than fused attention.",
  ),
  (
    "faster_scored",
    SCORED,
    "Skipping is faster than fused attention even when every score is computed "
    "to find the blocks.",
  ),
  (
    "faster_proven",
    PROVEN,
    "Skipping is faster than fused attention with the time for the bounds "
    "counted.",
  ),
)
"""Id, way and sentence of each claim about time."""


def _times(result: Result) -> list[Claim]:
  """At the greatest length, in the layer in which most can be skipped."""
  length, layers = result.config.timed[-1], result.numbers["layers_timed"]
  left_out, seconds = {}, {layer: {} for layer in layers}
  for row in result.records("time.csv"):
    layer, way = row["layer"], row["way"]
    if row["tokens"] == length:
      left_out[layer, way] = f"{100 * row['left_out']:.0f} %"
      name = f"seconds, layer {layer}, {length}, {way}"
      seconds[layer][way] = result.arrays[name]
  first, median = layers
  one, other = (seconds[layer] for layer in layers)
  best, best_other = (faster_fused(x) for x in (one, other))
  found = []
  for id, way, sentence in TIMES:
    gain = time_saved(one[way], one[best])
    loop, rest = (
      _percent(time_saved(*pair), "+.2f")
      for pair in ((one[way], one[LOOP]), (other[way], other[best_other]))
    )
    why = (
      f"layer {first}, in which most can be skipped; a query may lose "
      f"{result.config.at:g} of its weight; 95 % interval over "
      f"{result.config.rounds} interleaved rounds on this machine's processor"
    )
    if way == PROVEN:
      why += (
        f"; {bits_name(result.config.best)}, simulated on float32 keys, so "
        "that a bound costs what a score does"
      )
    ours = (
      f"{_percent(gain, '+.2f')} of the time of the faster fused attention "
      f"({best}) saved at {length} tokens, with {left_out[first, way]} "
      f"skipped; {loop} of the same loop over all blocks; in layer {median}, "
      f"of the median share, {rest}, with {left_out[median, way]} skipped"
    )
    verdict = direction(gain.low, gain.high)
    found.append(Claim(id, sentence, "ours", "no number", ours, verdict, why))
  return found
