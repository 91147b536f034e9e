"""The numbers, tables and arrays of the experiment `pruning`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sinkjax.experiments.applications.pruning.config import (
  OUTPUTS,
  SCORES,
  UNROLLED,
  WHOLE,
  Config,
  Ranking,
  Skip,
  without,
)
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import (
  Mean,
  ends_columns,
  ends_of,
  mean_of,
)
from sinkjax.experiments.harness.timing import time_saved
from sinkjax.experiments.shared.share_at import share_at
from sinkjax.inference.head_scores import HeadScores

Table = tuple[list[str], list[list[Any]]]


class Quality(NamedTuple):
  """Of a model on the texts that are measured.

  Attributes:
    loss: [P] nats a token.
    right: [P] share of next tokens that have the greatest logit.
    skipped: [P] share of (head, query) pairs that are skipped, 0 unless so.
  """

  loss: np.ndarray
  right: np.ndarray
  skipped: np.ndarray


class Timed(NamedTuple):
  """Models with fewer heads, by name.

  Attributes:
    seconds: [R] of a forward pass.
    left: share of the heads left.
    losses: of those with equal layers.
  """

  seconds: dict[str, np.ndarray]
  left: dict[str, float]
  losses: dict[str, Quality]


class Measured(NamedTuple):
  """Everything that was measured.

  Attributes:
    scores: of the heads.
    plain: the whole model.
    removed: by (ranking, share, output).
    skipped: by (kind, threshold).
    timed: models with fewer heads.
  """

  scores: HeadScores
  plain: Quality
  removed: Mapping[tuple[str, float, str], Quality]
  skipped: Mapping[tuple[Skip, float], Quality]
  timed: Timed


class Curve(NamedTuple):
  """Relative changes over the whole model's means, [shares, P]."""

  loss: np.ndarray
  right: np.ndarray


def _loss_change(quality: Quality, plain: Quality) -> np.ndarray:
  """[P] loss increase over the mean loss of the whole model."""
  return (quality.loss - plain.loss) / plain.loss.mean()


def _right_change(quality: Quality, plain: Quality) -> np.ndarray:
  """[P] change of the share of correct tokens, relative if there are any."""
  # A random model in a test may predict no token at all.
  return (quality.right - plain.right) / (plain.right.mean() or 1.0)


def _curves(
  config: Config, measured: Measured
) -> dict[tuple[Ranking, str], Curve]:
  """By ranking and output; random orders are averaged."""
  found = {}
  for output in OUTPUTS:
    for name in Ranking:
      orders = [name]
      if name == Ranking.RANDOM:
        orders = [f"{name} {i}" for i in range(config.seeds)]
      each = [
        [measured.removed[order, share, output] for share in config.shares]
        for order in orders
      ]
      loss, right = (
        np.mean([[f(q, measured.plain) for q in row] for row in each], axis=0)
        for f in (_loss_change, _right_change)
      )
      found[name, output] = Curve(loss, right)
  return found


def result_of(
  config: Config, counts: dict[str, Any], measured: Measured
) -> Result:
  """Shares at +1 % loss, time saved, tables and arrays."""
  curves = _curves(config, measured)
  skips = {}
  for kind in Skip:
    each = [measured.skipped[kind, x] for x in config.thresholds]
    loss = np.stack([_loss_change(x, measured.plain) for x in each])
    skips[kind] = np.stack([x.skipped for x in each]), loss
  at_one = {
    f"{name}, {output}": share_at(config.shares, curve.loss)
    for (name, output), curve in curves.items()
  }
  for kind, (share, loss) in skips.items():
    # The highest threshold skips the least: shares increase backwards.
    at_one[kind] = share_at(share.mean(axis=1)[::-1], loss[::-1])
  seconds, left, losses = measured.timed
  saved = _saved(seconds)
  small = {x: _loss_change(one, measured.plain) for x, one in losses.items()}
  for share in config.unrolled:
    # The same heads were removed by an edit already: no new passes.
    ranked = curves[Ranking.NONSINK, "zero"].loss
    small[without(share)] = ranked[config.shares.index(share)]
  return Result(
    numbers=counts
    | {
      "tokens": config.tokens,
      "heads": measured.scores.output.size,
      "loss": mean_of(measured.plain.loss),
      "right": mean_of(measured.plain.right),
      "share_at_one_percent": at_one,
      "saved": saved,
      "seconds": {name: float(np.median(x)) for name, x in seconds.items()},
    },
    tables={
      "removal.csv": _removal_table(config, curves),
      "queries.csv": _query_table(config, skips),
      "time.csv": _time_table(seconds, left, saved, small),
      "heads.csv": _head_table(measured.scores),
    },
    arrays=_arrays(config, curves, skips, small, measured),
  )


def _saved(seconds: Mapping[str, np.ndarray]) -> dict[str, Mean]:
  """Share of the time saved, against the whole model run the same way."""
  found = {}
  for name, one in seconds.items():
    if name not in (WHOLE, UNROLLED):
      # Unrolling alone changes the time, so like is compared with like.
      base = UNROLLED if "unrolled" in name else WHOLE
      found[name] = time_saved(one, seconds[base])
  return found


def _arrays(
  config: Config,
  curves: Mapping[tuple[Ranking, str], Curve],
  skips: Mapping[Skip, tuple[np.ndarray, np.ndarray]],
  small: Mapping[str, np.ndarray],
  measured: Measured,
) -> dict[str, np.ndarray]:
  found = {"shares": np.array(config.shares)}
  for (name, output), curve in curves.items():
    found[f"loss, {name}, {output}"] = curve.loss
    found[f"right, {name}, {output}"] = curve.right
  found |= {f"loss, {name}": x for name, x in small.items()}
  for kind, (share, loss) in skips.items():
    found[f"skipped, {kind}"], found[f"loss, {kind}"] = share, loss
  for name, field in SCORES.items():
    found[f"score, {name}"] = getattr(measured.scores, field)
  seconds = measured.timed.seconds
  return found | {f"seconds, {name}": x for name, x in seconds.items()}


def _removal_table(
  config: Config, curves: Mapping[tuple[Ranking, str], Curve]
) -> Table:
  header = ["ranking", "output", "share"]
  for what in ("loss", "right"):
    header += [f"{what}{end}" for end in ("_change", "_low", "_high")]
  rows = [
    [name, output, share, *ends_of(one.loss[i]), *ends_of(one.right[i])]
    for (name, output), one in curves.items()
    for i, share in enumerate(config.shares)
  ]
  return header, rows


def _query_table(
  config: Config, skips: Mapping[Skip, tuple[np.ndarray, np.ndarray]]
) -> Table:
  header = ["kind", "threshold", "share"]
  header += ["loss_change", "loss_low", "loss_high"]
  rows = [
    [kind, threshold, float(share[i].mean()), *ends_of(loss[i])]
    for kind, (share, loss) in skips.items()
    for i, threshold in enumerate(config.thresholds)
  ]
  return header, rows


def _time_table(
  seconds: Mapping[str, np.ndarray],
  left: Mapping[str, float],
  saved: Mapping[str, Mean],
  small: Mapping[str, np.ndarray],
) -> Table:
  header = ["model", "heads_left", "median_seconds"]
  header += ends_columns("saved")
  header += ["loss_change", "loss_low", "loss_high"]
  rows = []
  for name, x in seconds.items():
    gain = saved[name][:3] if name in saved else [None] * 3
    loss = ends_of(small[name]) if name in small else [None] * 3
    rows.append([name, left[name], float(np.median(x)), *gain, *loss])
  return header, rows


def _head_table(scores: HeadScores) -> Table:
  rows = [
    [*at, *(float(getattr(scores, field)[at]) for field in SCORES.values())]
    for at in np.ndindex(scores.output.shape)
  ]
  return ["layer", "head", *SCORES], rows
