"""The numbers, tables and arrays of the experiment `streaming`."""

from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.applications.streaming.config import KEPT, Config
from sinkjax.experiments.applications.streaming.losses import (
  Pair,
  Streams,
  pairs_of,
)
from sinkjax.experiments.applications.streaming.tables import (
  curves,
  near_context,
  table_of_sinks,
  table_of_starts,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns, mean_of


class Times(NamedTuple):
  """Of a token, with `KEPT` first tokens in the cache.

  Attributes:
    totals: [W] of the caches.
    cached: [W, R] seconds.
    anew: [W, R] seconds of recomputing.
    kept: [W] bytes of the cache.
    working: [W, 2] bytes that each needs while it computes, beside the
      parameters, -1 where the backend does not tell.
  """

  totals: list[int]
  cached: np.ndarray
  anew: np.ndarray
  kept: list[int]
  working: list[tuple[int, int]]


def result_of(
  config: Config, about: dict[str, Any], streams: Streams, times: Times
) -> Result:
  """Numbers, tables and arrays."""
  context = about["context"]
  pairs = pairs_of(config, streams, context - len(about["prefix"]))
  return Result(
    numbers=about
    | {
      "tokens": config.tokens,
      "total": config.total,
      "fewer": config.fewer,
      "dense": config.dense,
      "recomputed": config.recomputed,
      "block": config.block,
      "chunk": config.chunk,
      "sinks": list(config.sinks),
      "kept": KEPT,
      "pairs": {name: _plain(pair) for name, pair in pairs.items()},
      "totals": times.totals,
      "seconds": {
        "cached": np.median(times.cached, axis=1).tolist(),
        "anew": np.median(times.anew, axis=1).tolist(),
      },
      "bytes": {
        "cached": times.kept,
        "dense": times.kept[0] // times.totals[0] * config.dense,
        "working": [list(pair) for pair in times.working],
      },
    },
    tables={
      "positions.csv": curves(config, streams),
      "context.csv": near_context(config, streams, context),
      "sinks.csv": table_of_sinks(config, streams),
      "starts.csv": table_of_starts(config, streams),
      "time.csv": _table_of_time(times),
    },
    arrays=_arrays(config, streams, times, pairs),
  )


def _plain(pair: Pair | None) -> dict[str, Any] | None:
  """A pair without its blocks, which are an array."""
  if pair is None:
    return None
  found = pair._asdict()
  del found["blocks"]
  return found


def _arrays(
  config: Config, streams: Streams, times: Times, pairs: dict[str, Pair | None]
) -> dict[str, np.ndarray]:
  size = config.block
  found = {}
  for sinks in config.sinks:
    nats = streams.whole(config, sinks).nats
    found[f"block_loss, {sinks} first"] = np.array(
      [nats[i : i + size].mean() for i in range(0, len(nats), size)]
    )
  # Every unit of an interval is kept: blocks, not tokens, of which there are
  # too many to store.
  for name, pair in pairs.items():
    if pair is not None:
      found[f"pair, {name}"] = pair.blocks
  return found | {
    "dense": streams.dense.nats.astype(np.float32),
    "recompute": streams.recomputed.nats,
    "recomputed_at": streams.recomputed.at,
    "seconds_cached": times.cached,
    "seconds_anew": times.anew,
  }


def _table_of_time(times: Times) -> tuple[list[str], list[list[Any]]]:
  """Seconds and bytes of one token more."""
  header = ["total", "cached_seconds", "recompute_seconds"]
  header += ends_columns("ratio")
  header += ["cache_bytes", "cached_working_bytes", "recompute_working_bytes"]
  rows = []
  for i, total in enumerate(times.totals):
    # Medians: a round that the machine disturbs counts once.
    seconds = (float(np.median(x[i])) for x in (times.cached, times.anew))
    ratio = mean_of(times.anew[i] / times.cached[i])[:3]
    rows.append([total, *seconds, *ratio, times.kept[i], *times.working[i]])
  return header, rows
