"""The numbers, tables and arrays of the experiment `sink_compute`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.applications.sink_compute.config import (
  Config,
  slack_name,
)
from sinkjax.experiments.applications.sink_compute.skipped_blocks import (
  Shares,
  Skipped,
)
from sinkjax.experiments.applications.sink_compute.timing import faster_fused
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns, ends_of, mean_of
from sinkjax.experiments.harness.timing import time_saved

Table = tuple[list[str], list[list[Any]]]


class Cost(NamedTuple):
  """The cost of skipping blocks in one text.

  Attributes:
    what: shares and errors.
    whole: loss of the whole model, nats a token.
    loss: of the model that skips.
    kl: KL(whole || skipping), nats a token.
  """

  what: Skipped
  whole: float
  loss: float
  kl: float


class Measured(NamedTuple):
  """Everything that was measured.

  Attributes:
    seen: of each text, by length.
    skipped: of each text, by (way, tolerance).
    times: (seconds [R] by way, share skipped by way), by (layer, length).
    layers: that were timed, the one of the greatest share first.
  """

  seen: Mapping[int, Sequence[Shares]]
  skipped: Mapping[tuple[str, float], Sequence[Cost]]
  times: Mapping[
    tuple[int, int], tuple[Mapping[str, np.ndarray], Mapping[str, float]]
  ]
  layers: tuple[int, int]


def loss_change(costs: Sequence[Cost]) -> np.ndarray:
  """[P] loss increase over the mean loss of the whole model."""
  change = np.array([cost.loss - cost.whole for cost in costs])
  # Over the mean, not each text's own loss: easy texts weigh no more.
  return change / np.mean([cost.whole for cost in costs])


def shares_by_text(
  config: Config, share: Mapping[int, np.ndarray], ways: Sequence[str]
) -> dict[tuple[int, str, float], np.ndarray]:
  """{(length, way, tolerance): [P] mean over layers and heads}.

  Args:
    config: what was run.
    share: [P, way, L, H, E] by length.
    ways: their names.
  """
  return {
    (length, name, at): values[:, i, ..., j].mean(axis=(1, 2))
    for length, values in share.items()
    for i, name in enumerate(ways)
    for j, at in enumerate(config.tolerances)
  }


def condense(result: Result) -> Result:
  """The result without the shares of single heads that nothing reads.

  Claims take means over layers and heads, and the figures by layer and head are
  of one tolerance at one length; everywhere else a head's share becomes that
  mean. The shapes of arrays stay.
  """
  numbers, arrays = result.numbers, dict(result.arrays)
  for length in result.config.lengths:
    share = arrays[f"share, {length}"]  # [P, way, L, H, E]
    means = np.broadcast_to(share.mean(axis=(2, 3), keepdims=True), share.shape)
    kept = means.copy()
    if length == numbers["length"]:
      drawn = numbers["tolerances"].index(numbers["at"])
      kept[..., drawn] = share[..., drawn]
    arrays[f"share, {length}"] = kept
  return dataclasses.replace(result, arrays=arrays)


def result_of(config: Config, measured: Measured) -> Result:
  """Numbers, tables and arrays."""
  seen, skipped = measured.seen, measured.skipped
  some = seen[config.length]
  ways = list(some[0].shares)
  share = {
    length: np.stack([[one.shares[name] for name in ways] for one in each])
    for length, each in seen.items()
  }  # [P, way, L, H, E]
  slack = {
    name: np.stack([one.slack[name] for one in some]) for name in some[0].slack
  }  # [P, L, H]
  by_text = shares_by_text(config, share, ways)
  # One breach anywhere would refute the bound, so no mean is taken.
  worst = (cost.what.worst.max() for each in skipped.values() for cost in each)
  first = next(iter(skipped.values()))
  return Result(
    numbers={
      **dataclasses.asdict(config),
      "ways": ways,
      "layers_timed": measured.layers,
      "worst_error_over_bound": float(max(worst)),
      "slack": {
        name: mean_of(x.mean(axis=(1, 2))) for name, x in slack.items()
      },
      "loss": float(np.mean([cost.whole for cost in first])),
    },
    tables={
      "shares.csv": _share_table(by_text),
      "layers.csv": _layer_table(config, ways, share[config.length], slack),
      "slack.csv": _slack_table(config, by_text, slack),
      "errors.csv": _error_table(skipped),
      "time.csv": _time_table(measured),
    },
    arrays=_arrays(measured, share, slack),
  )


def _arrays(
  measured: Measured,
  share: Mapping[int, np.ndarray],
  slack: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  found = {f"share, {length}": x for length, x in share.items()}
  found |= {f"slack, {name}": x for name, x in slack.items()}
  for (name, at), each in measured.skipped.items():
    found[f"loss change, {name}, {at:g}"] = loss_change(each)
    found[f"kl, {name}, {at:g}"] = np.array([cost.kl for cost in each])
  for (layer, length), (one, _) in measured.times.items():
    for name, x in one.items():
      found[f"seconds, layer {layer}, {length}, {name}"] = x
  return found


def _share_table(by_text: Mapping[tuple[int, str, float], np.ndarray]) -> Table:
  header = ["tokens", "texts", "way", "tolerance", "share", "low", "high"]
  return header, [
    [length, len(x), name, at, *ends_of(x)]
    for (length, name, at), x in by_text.items()
  ]


def _layer_table(
  config: Config,
  ways: Sequence[str],
  share: np.ndarray,
  slack: Mapping[str, np.ndarray],
) -> Table:
  """Shares and slacks of every layer and head, at one tolerance."""
  mean = share[..., config.tolerances.index(config.at)].mean(axis=0)
  off = {name: x.mean(axis=0) for name, x in slack.items()}
  header = ["layer", "head", *ways, *(f"slack of {x}" for x in off)]
  rows = []
  for layer, head in np.ndindex(mean.shape[1:]):
    slacks = (float(x[layer, head]) for x in off.values())
    rows.append([layer, head, *map(float, mean[:, layer, head]), *slacks])
  return header, rows


def _slack_table(
  config: Config,
  by_text: Mapping[tuple[int, str, float], np.ndarray],
  slack: Mapping[str, np.ndarray],
) -> Table:
  """How far off a way is, and what share it still skips."""
  off = {name: ends_of(x.mean(axis=(1, 2))) for name, x in slack.items()}
  # Assumed, not measured: known exactly, without an interval.
  off |= {slack_name(x): [x, None, None] for x in config.slacks}
  header = ["way", "nats_off", "nats_low", "nats_high"]
  for at in config.tolerances:
    header += [f"share_at_{at:g}", f"low_at_{at:g}", f"high_at_{at:g}"]
  rows = []
  for name, ends in off.items():
    rows.append([name, *ends])
    for at in config.tolerances:
      rows[-1] += ends_of(by_text[config.length, name, at])
  return header, rows


def _error_table(skipped: Mapping[tuple[str, float], Sequence[Cost]]) -> Table:
  header = ["way", "tolerance", "share"]
  header += ends_columns("loss_change", "kl", "error", "bound")
  rows = []
  for (name, at), each in skipped.items():
    what = [cost.what for cost in each]
    values = (
      loss_change(each),
      [cost.kl for cost in each],
      [one.error.mean() for one in what],
      [one.bound.mean() for one in what],
    )
    share = float(np.mean([one.share for one in what]))
    worst = float(max(one.worst.max() for one in what))
    ends = (x for some in values for x in ends_of(some))
    rows.append([name, at, share, *ends, worst])
  return [*header, "worst_error_over_bound"], rows


def _time_table(measured: Measured) -> Table:
  header = ["layer", "tokens", "left_out", "way", "median_seconds"]
  header += ["saved_of_faster_fused", "low", "high"]
  rows = []
  for (layer, length), (one, left_out) in measured.times.items():
    for name, x in one.items():
      saved = time_saved(x, one[faster_fused(one)])[:3]
      median = float(np.median(x))
      rows.append([layer, length, left_out[name], name, median, *saved])
  return header, rows
