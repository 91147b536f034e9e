"""Tables of the experiment `streaming`, which its figures are drawn from."""

import numpy as np

from sinkjax.experiments.applications.streaming.config import (
  DENSE,
  KEPT,
  RECOMPUTE,
  Config,
  Found,
  Run,
  Times,
  compare,
  fresh,
  mean_from,
)
from sinkjax.experiments.harness.stats import mean_over

NO_FIRST, WITH_FIRST = "window alone", f"{KEPT} first and window"
START, OCTAVE = 64, 2
"""The first position in a bin, and bins to an octave."""
FEWEST = 12
"""Recomputed tokens in a bin, at least."""
NEAR = 256
"""Tokens of a bin around the end of the context."""


def curves(config: Config, long, found):
  """(header, rows) of the mean loss in bins of position, by decades.

  That of recompute is the mean of the sinks and the window in the bin, plus
  the mean difference at its recomputed tokens: a whole bin varies less than
  a sample of its tokens.
  """
  last = max(config.tokens, config.dense)
  count = int(np.ceil(OCTAVE * np.log2(last / START))) + 1
  edges = np.unique(np.round(START * 2 ** (np.arange(count) / OCTAVE))).astype(
    int
  )
  edges = np.append(edges[edges < last], last)
  rows = []
  for name, one in (
    (NO_FIRST, long[0]),
    ("1 first and window", long[1]),
    (WITH_FIRST, long[KEPT]),
    (DENSE, found[DENSE]),
  ):
    for low, high in zip(edges[:-1], edges[1:], strict=True):
      high = min(high, one.at[-1])
      mine = one.nats[(one.at > low) & (one.at <= high)]
      if len(mine):
        rows.append(
          [name, int(low), int(high), len(mine), mine.mean(), None, None]
        )
  wide = np.unique([*edges[::OCTAVE], last])
  rows += _recomputed(wide, long[KEPT], found[RECOMPUTE])
  header = ["curve", "from", "to", "tokens", "loss", "low", "high"]
  return header, [
    [
      x if x is None or isinstance(x, str) else float(x) if i > 3 else x
      for i, x in enumerate(row)
    ]
    for row in rows
  ]


def _recomputed(edges, stream: Found, anew: Found):
  """Rows for recompute, in wider bins."""
  rows = []
  for low, high in zip(edges[:-1], edges[1:], strict=True):
    mine = (anew.at > low) & (anew.at <= high)
    if mine.sum() < FEWEST:
      continue
    there = stream.nats[np.searchsorted(stream.at, anew.at[mine])]
    gap = mean_over(anew.nats[mine] - there, range(int(mine.sum())))
    base = stream.nats[(stream.at > low) & (stream.at <= high)].mean()
    rows.append(
      [
        RECOMPUTE,
        int(low),
        int(high),
        int(mine.sum()),
        *(base + np.array(gap[:3])),
      ]
    )
  return rows


def near_context(config: Config, long, found, context: int):
  """(header, rows): mean loss in bins around the end of the context."""
  first = max(0, context - (config.dense - context)) // NEAR * NEAR
  rows = []
  for low in range(first, config.dense - NEAR + 1, NEAR):
    means = [
      float(one.nats[(one.at > low) & (one.at <= low + NEAR)].mean())
      for one in (found[DENSE], long[KEPT], long[0])
    ]
    rows.append([low, low + NEAR, *means])
  return ["from", "to", DENSE, WITH_FIRST, NO_FIRST], rows


def table_of_sinks(config: Config, found):
  """(header, rows): loss by cache, on tokens that all saw, and on all.

  The first `widest` tokens are left out, before which the widest cache lets
  nothing go. What is above the loss with `KEPT` first tokens in a cache of the
  same size has an interval of its own: the same text is in both.
  """
  widest, rows = max(config.total, *config.totals), []

  def row(place, one, low, high, kept=None):
    mean, gap = mean_from(one, config, low, high), [None] * 3
    if kept is not None:
      gap = compare(one, kept, config, low, high).gap[:3]
    rows.append([*place, low, high, *mean[:3], float(np.exp(mean.value)), *gap])

  for one in found:
    if isinstance(one, Run) and not one.start and one != fresh(config):
      place = [one.total, one.sinks, one.total - one.sinks]
      kept = found.get(one._replace(sinks=KEPT))
      row(place, found[one], widest, config.fewer, kept)
      if one.tokens > config.fewer:
        row(place, found[one], config.total, one.tokens, kept)
  reach = min(config.fewer, config.dense)
  if reach >= widest + 2 * config.block:
    row([None] * 3, found[DENSE], widest, reach)
  return [
    "total",
    "first",
    "window",
    "from",
    "to",
    "loss",
    "loss_low",
    "loss_high",
    "perplexity",
    "above_kept",
    "above_low",
    "above_high",
  ], rows


def table_of_starts(config: Config, found, stream: Found):
  """(header, rows): other first tokens against the text's own."""
  rows = []
  others = {
    f"{KEPT} times {start!r}": Run(KEPT, config.total, config.fewer, start)
    for start in config.starts
  }
  others[f"the text from token {config.tokens - config.fewer} on"] = fresh(
    config
  )
  for name, one in others.items():
    low = one.begin + config.total
    pair = compare(found[one], stream, config, low)
    rows.append(
      [
        name,
        low,
        one.begin + one.tokens,
        pair.first,
        pair.second,
        *pair.gap[:3],
      ]
    )
  return [
    "first tokens",
    "from",
    "to",
    "loss",
    "loss_own",
    "difference",
    "low",
    "high",
  ], rows


def table_of_time(times: Times):
  """(header, rows): seconds and bytes of one token more."""
  rows = []
  for i, total in enumerate(times.totals):
    ratio = mean_over(
      times.anew[i] / times.cached[i], range(times.anew.shape[1])
    )
    rows.append(
      [
        total,
        float(np.median(times.cached[i])),
        float(np.median(times.anew[i])),
        *ratio[:3],
        times.kept[i],
        *times.working[i],
      ]
    )
  return [
    "total",
    "cached_seconds",
    "recompute_seconds",
    "ratio",
    "ratio_low",
    "ratio_high",
    "cache_bytes",
    "cached_working_bytes",
    "recompute_working_bytes",
  ], rows
