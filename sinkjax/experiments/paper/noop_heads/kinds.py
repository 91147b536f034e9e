"""What heads and sinks do: values that are read, and updates that are written.

A head is dormant at a query that gives more than half of its attention to the
first token, and active at the others. Axes: L layers, P texts, H heads, N KV
heads, T tokens.
"""

import enum
from typing import Any

import numpy as np

from sinkjax.experiments.paper.noop_heads.triggers import (
  DORMANT,
  Head,
  Observed,
  parts,
)

NOOP, BROADCAST = 0.2, 0.8
"""A sink is no-op where its value's norm over the others' is less than the
first number, and broadcast where it is more than the second: the thresholds of
arXiv 2606.08105."""


class Kind(enum.StrEnum):
  """Kinds of sinks; the values are keys of recorded results."""

  NOOP = "no-op"
  BETWEEN = "between"
  BROADCAST = "broadcast"
  NONE = "no sink"


def describe(observed: Observed, head: Head, group: int) -> dict[str, Any]:
  """What a head does on the held-out texts.

  Args:
    observed: of `observe`.
    head: which.
    group: heads that share a KV head.

  Returns:
    Norms and shares, and [P] arrays of each text: "sink_ratio", the norm of
    the sink's value over the mean of the others; "acted_ratio", that of the
    key that an active query attends to most; NaN where no query is active.
  """
  _, _, held_out = parts(len(observed.ids))
  layer, number = head.layer, head.head
  mass = observed.mass[layer, held_out, number, 1:]
  active = mass <= DORMANT
  target = observed.target[layer, held_out, number, 1:]
  value = observed.value[layer, held_out, number // group]
  output = observed.output[layer, held_out, number, 1:]
  others = value[:, 1:].mean(axis=-1)
  read = np.take_along_axis(value, target, axis=-1)
  by_text = np.where(active, read, 0).sum(axis=-1)
  by_text = by_text / np.maximum(active.sum(axis=-1), 1)
  back = np.arange(1, observed.ids.shape[1]) - target
  count = max(1, int(active.sum()))
  return {
    "rests": float((~active).mean()),
    "value_sink": float(value[:, 0].mean()),
    "value_acted": _mean_where(read, active),
    "value_rest": float(others.mean()),
    "output_acting": _mean_where(output, active),
    "output_resting": _mean_where(output, ~active),
    "to_itself": int((active & (back == 0)).sum()) / count,
    "to_previous": int((active & (back == 1)).sum()) / count,
    "sink_ratio": value[:, 0] / others,
    "acted_ratio": np.where(active.any(axis=-1), by_text / others, np.nan),
  }


def _mean_where(values: np.ndarray, which: np.ndarray) -> float | None:
  return float(values[which].mean()) if which.any() else None


def kinds(observed: Observed, eps: float, group: int) -> dict[str, np.ndarray]:
  """Sinks by the norm of their value.

  Args:
    observed: of `observe`.
    eps: a head has a sink where its score exceeds this.
    group: heads that share a KV head.

  Returns:
    "ratio" [L, P, H], the norm of the sink's value over the others', "sink"
    [L, P, H] bool, and [P] shares of the sinks that are `Kind.NOOP` and
    `Kind.BROADCAST`, NaN for a text without any sink.
  """
  first = observed.value[..., 0]
  others = observed.value[..., 1:].mean(axis=-1)
  ratio = np.repeat(first / others, group, axis=2)
  sink = observed.mass.mean(axis=-1) > eps
  count = sink.sum(axis=(0, 2)).astype(float)
  count[count == 0] = np.nan
  return {
    "ratio": ratio,
    "sink": sink,
    Kind.NOOP: (sink & (ratio < NOOP)).sum(axis=(0, 2)) / count,
    Kind.BROADCAST: (sink & (ratio > BROADCAST)).sum(axis=(0, 2)) / count,
  }


def stable_ranks(
  observed: Observed, ratio: np.ndarray, sink: np.ndarray
) -> dict[Kind, float | None]:
  """Mean stable rank of the outputs of heads, by the kind of their sink.

  Args:
    observed: of `observe`.
    ratio: [L, P, H] of `kinds`.
    sink: [L, P, H] of `kinds`.
  """
  where = {
    Kind.NOOP: sink & (ratio < NOOP),
    Kind.BETWEEN: sink & (ratio >= NOOP) & (ratio <= BROADCAST),
    Kind.BROADCAST: sink & (ratio > BROADCAST),
    Kind.NONE: ~sink,
  }
  return {
    kind: _mean_where(observed.stable_rank, at) for kind, at in where.items()
  }
