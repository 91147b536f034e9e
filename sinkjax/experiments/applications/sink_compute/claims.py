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
from sinkjax.experiments.harness.api import Claim, Result
from sinkjax.experiments.harness.effects import (
  LOG_RATIO,
  RELATIVE,
  SHARE,
  Count,
  Effect,
  Expect,
  effect,
)
from sinkjax.experiments.harness.stats import Mean, mean_of
from sinkjax.experiments.harness.timing import time_saved

MOST, TENTH = 0.5, 0.1
"""Shares of what can be skipped with the pattern known that count as most of
it, and of the attention that are worth a kernel."""

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
    f"{config.at:g} of its weight"
  )


def _at(result: Result, by_text: ByText, way: str) -> np.ndarray:
  """[P] shares at the length and tolerance that the claims are about."""
  return by_text[result.config.length, way, result.config.at]


def _more(values: np.ndarray, what: str) -> Effect:
  """Shares [P], a number for each text, expected to be above 0."""
  return effect(values, what, SHARE, Expect.MORE)


def _dormant_rows(result: Result, by_text: ByText) -> Claim:
  # Judged by the pattern, the most that any bound could reach.
  known, bound = (_at(result, by_text, x) for x in (ROWS_KNOWN, ROWS_BOUND))
  return Claim(
    "dormant_rows",
    "At least a tenth of the attention can be skipped because whole blocks of "
    "queries are dormant.",
    SECTION,
    "no number",
    f"{_percent(known)} of the attention by the pattern, {_percent(bound)} by "
    "a bound",
    _more(
      known - TENTH,
      "the share of the attention in whole blocks of queries that the pattern "
      f"allows to skip, less {100 * TENTH:.0f} %",
    ),
    how=_setting(result),
  )


def _summaries(result: Result, by_text: ByText) -> Claim:
  summary = _at(result, by_text, SUMMARIES)
  oracle = _percent(_at(result, by_text, ORACLE))
  return Claim(
    "summaries",
    "Summaries of blocks of keys suffice to prove that some of them carry "
    "little weight.",
    "ours, after Quest 2406.10774",
    "no number",
    f"{_percent(summary)} of blocks can be skipped; with the pattern known, by "
    f"the same rule, {oracle}",
    _more(summary, "the share of blocks that summaries prove skippable"),
    how="by the best of a ball, a box and a ball in a fitted basis; "
    f"{_setting(result)}",
  )


def _few_bits(result: Result, by_text: ByText) -> Claim:
  codes = bits_name(result.config.best)
  oracle = _at(result, by_text, ORACLE)
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
    _more(
      _at(result, by_text, codes) - MOST * oracle,
      f"the share of blocks that {codes} prove skippable, less half of that "
      "with the pattern known",
    ),
    how=_setting(result),
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
  # 0 / 0 where nothing can be skipped in a text: then there is no test.
  with np.errstate(invalid="ignore", divide="ignore"):
    parts = np.stack([proven / own, proven_none / own_none])
  if not np.isfinite(parts).all():
    nothing = "in some text nothing can be skipped"
    return Claim(*head, nothing, None, untested=nothing)
  return Claim(
    *head,
    f"{_percent(parts[0])} of it can be proven, without the first key "
    f"{_percent(parts[1])}; that is {_percent(proven)} of {_percent(own)} of "
    f"blocks, without it {_percent(proven_none)} of {_percent(own_none)}",
    _more(
      parts[0] - parts[1],
      f"the part of the skippable blocks that {codes} prove skippable, less "
      "that part without the sink's key",
    ),
    how=f"{result.config.length} tokens, a query may lose {result.config.at:g} "
    "of its weight; same queries and keys, the first key taken out of the "
    "softmax; parts of what the same rule skips with the pattern known",
  )


def _longer_texts(result: Result, by_text: ByText) -> Claim:
  at, lengths = result.config.at, result.config.lengths
  short, long = (by_text[x, ORACLE, at] for x in (lengths[0], lengths[-1]))
  both = min(len(short), len(long))  # the same texts, cut at two lengths
  return Claim(
    "longer_texts",
    "A larger share of the attention can be skipped in longer texts.",
    "ours",
    "no number",
    f"{_percent(short[:both])} at {lengths[0]} tokens, "
    f"{_percent(long[:both])} at {lengths[-1]}, with the pattern known",
    _more(
      long[:both] - short[:both],
      f"the share of blocks that can be skipped at {lengths[-1]} tokens, less "
      f"that at the first {lengths[0]} of the same text",
    ),
    how=f"with the pattern known, a query may lose {at:g} of its weight",
  )


def _loss(result: Result) -> Claim:
  config, way = result.config, bits_name(result.config.best)
  change = _loss_changes(result, way)
  others = ", ".join(
    f"at {at:g} by {_percent(one, '+.2f')}"
    for at, one in change.items()
    if at != config.at
  )
  return Claim(
    "loss",
    "Skipping attention that provably carries little weight raises the loss by "
    f"less than {100 * RELATIVE.margin:g} %.",
    "ours",
    "no number",
    f"if queries may lose {config.at:g} of their weight in every layer and "
    f"head, {way}, the loss changes by {_percent(change[config.at], '+.2f')}"
    + (f"; {others}" if others else ""),
    effect(
      change[config.at],
      "the loss of the model that skips, less that of the whole model",
      RELATIVE,
      Expect.NOT_MORE,
    ),
    how=f"{config.length} tokens; all queries of a block skip the same blocks "
    "of keys, decided by the later queries too",
  )


def _loss_changes(result: Result, way: str) -> dict[float, Mean]:
  """By tolerance, from the table: arrays of earlier files lack single texts."""
  config, found = result.config, {}
  for row in result.records("errors.csv"):
    if row["way"] == way:
      ends = (row[f"loss_change{end}"] for end in ("", "_low", "_high"))
      texts = config.counts[config.lengths.index(config.length)]
      found[row["tolerance"]] = Mean(*ends, texts, np.nan)
  return found


def _bound(result: Result) -> Claim:
  worst = result.numbers["worst_error_over_bound"]
  each = [row["worst_error_over_bound"] for row in result.records("errors.csv")]
  return Claim(
    "bound",
    "The error of skipped attention never exceeds its bound.",
    "ours",
    "1",
    f"greatest error over its bound {worst:.3f}",
    Count(
      "ways and tolerances have an error above its bound in some layer, head, "
      "query or text",
      sum(x > 1 for x in each),
      len(each),
    ),
    how=f"{result.config.length} tokens, from all scores and "
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
    loop, rest = (
      _percent(time_saved(*pair), "+.2f")
      for pair in ((one[way], one[LOOP]), (other[way], other[best_other]))
    )
    how = (
      f"layer {first}, in which most can be skipped; a query may lose "
      f"{result.config.at:g} of its weight; interleaved rounds on this "
      "machine's processor"
    )
    if way == PROVEN:
      how += (
        f"; {bits_name(result.config.best)}, simulated on float32 keys, so "
        "that a bound costs what a score does"
      )
    gain = _percent(time_saved(one[way], one[best]), "+.2f")
    ours = (
      f"{gain} of the time of the faster fused attention "
      f"({best}) saved at {length} tokens, with {left_out[first, way]} "
      f"skipped; {loop} of the same loop over all blocks; in layer {median}, "
      f"of the median share, {rest}, with {left_out[median, way]} skipped"
    )
    ratio = effect(
      np.log(one[best] / one[way]),
      "the time of the faster fused attention over that of skipping",
      LOG_RATIO,
      Expect.MORE,
      per="timing round",
    )
    found.append(Claim(id, sentence, "ours", "no number", ours, ratio, how))
  return found
