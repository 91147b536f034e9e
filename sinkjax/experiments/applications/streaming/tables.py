"""Tables of the experiment `streaming`, which its figures are drawn from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sinkjax.experiments.applications.streaming.config import (
  KEPT,
  Config,
  Curve,
  fresh,
  starts,
)
from sinkjax.experiments.applications.streaming.losses import (
  Losses,
  Streams,
  compare,
  mean_from,
)
from sinkjax.experiments.harness.stats import mean_of

START, OCTAVE = 64, 2
"""The first position in a bin, and bins to an octave."""

FEWEST = 12
"""Recomputed tokens in a bin, at least: fewer have no useful interval."""

NEAR = 256
"""Tokens of a bin around the end of the context."""

Table = tuple[list[str], list[list[Any]]]


def curves(config: Config, streams: Streams) -> Table:
  """The mean loss in bins of position, by octaves.

  That of recompute is the mean of the first tokens and the window in the bin,
  plus the mean difference at its recomputed tokens: a whole bin varies less
  than a sample of its tokens.
  """
  last = max(config.tokens, config.dense)
  count = int(np.ceil(OCTAVE * np.log2(last / START))) + 1
  edges = START * 2 ** (np.arange(count) / OCTAVE)
  edges = np.unique(np.round(edges)).astype(int)
  edges = np.append(edges[edges < last], last)
  rows = []
  for name, one in (
    (Curve.WINDOW, streams.whole(config, 0)),
    (Curve.ONE, streams.whole(config, 1)),
    (Curve.KEPT, streams.whole(config)),
    (Curve.DENSE, streams.dense),
  ):
    for low, high in zip(edges[:-1], edges[1:], strict=True):
      # The bin in which a shorter stream ends is cut there.
      high = min(high, one.at[-1])
      mine = one.nats[(one.at > low) & (one.at <= high)]
      if len(mine):
        mean = float(mine.mean())
        rows.append([name, int(low), int(high), len(mine), mean, None, None])
  wide = np.unique([*edges[::OCTAVE], last])
  rows += _recomputed(wide, streams.whole(config), streams.recomputed)
  header = ["curve", "from", "to", "tokens", "loss", "low", "high"]
  return header, rows


def _recomputed(
  edges: Sequence[int], stream: Losses, anew: Losses
) -> list[list[Any]]:
  """Rows for recompute, in wider bins."""
  rows = []
  for low, high in zip(edges[:-1], edges[1:], strict=True):
    mine = (anew.at > low) & (anew.at <= high)
    count = int(mine.sum())
    if count < FEWEST:
      continue
    there = stream.nats[np.searchsorted(stream.at, anew.at[mine])]
    gap = mean_of(anew.nats[mine] - there)
    # The mean of a bin from thousands of tokens, the difference from a few.
    base = stream.nats[(stream.at > low) & (stream.at <= high)].mean()
    ends = (float(base + x) for x in gap[:3])
    rows.append([Curve.RECOMPUTE, int(low), int(high), count, *ends])
  return rows


def near_context(config: Config, streams: Streams, context: int) -> Table:
  """Mean loss in bins around the end of the context."""
  first = max(0, context - (config.dense - context)) // NEAR * NEAR
  shown = {
    Curve.DENSE: streams.dense,
    Curve.KEPT: streams.whole(config),
    Curve.WINDOW: streams.whole(config, 0),
  }
  rows = []
  for low in range(first, config.dense - NEAR + 1, NEAR):
    means = (
      float(one.nats[(one.at > low) & (one.at <= low + NEAR)].mean())
      for one in shown.values()
    )
    rows.append([low, low + NEAR, *means])
  return ["from", "to", *shown], rows


def table_of_sinks(config: Config, streams: Streams) -> Table:
  """Loss by cache, on the tokens that all saw, and on all of its tokens.

  The first `widest` tokens are left out, before which the widest cache drops
  nothing. The difference to the loss with `KEPT` first tokens in a cache of the
  same size has an interval of its own: the same text is in both.
  """
  widest, rows = max(config.total, *config.totals), []

  def row(
    place: list, one: Losses, low: int, high: int, kept: Losses | None = None
  ) -> None:
    mean, gap = mean_from(one, config, low, high), [None] * 3
    if kept is not None:
      gap = compare(one, kept, config, low, high).gap[:3]
    rows.append([*place, low, high, *mean[:3], float(np.exp(mean.value)), *gap])

  for one, found in streams.runs.items():
    if not one.start and one != fresh(config):
      place = [one.total, one.sinks, one.total - one.sinks]
      kept = streams.runs.get(one._replace(sinks=KEPT))
      row(place, found, widest, config.fewer, kept)
      if one.tokens > config.fewer:
        row(place, found, config.total, one.tokens, kept)
  common = min(config.fewer, config.dense)
  # Two blocks, at least, for an interval.
  if common >= widest + 2 * config.block:
    row([None] * 3, streams.dense, widest, common)
  header = ["total", "first", "window", "from", "to"]
  header += ["loss", "loss_low", "loss_high", "perplexity"]
  return [*header, "above_kept", "above_low", "above_high"], rows


def start_name(start: str) -> str:
  """The name of a stream with other first tokens.

  >>> start_name(".")
  "4 times '.'"
  """
  return f"{KEPT} times {start!r}"


def fresh_name(config: Config) -> str:
  """The name of the stream that begins late in the text."""
  return f"the text from token {config.tokens - config.fewer} on"


def table_of_starts(config: Config, streams: Streams) -> Table:
  """Other first tokens against the text's own."""
  others = {start_name(x): run for x, run in starts(config).items()}
  others[fresh_name(config)] = fresh(config)
  own, rows = streams.whole(config), []
  for name, one in others.items():
    low = one.begin + config.total
    pair = compare(streams.runs[one], own, config, low)
    ends = (pair.first, pair.second, *pair.gap[:3])
    rows.append([name, low, one.begin + one.tokens, *ends])
  header = ["first tokens", "from", "to", "loss", "loss_own"]
  return [*header, "difference", "low", "high"], rows
