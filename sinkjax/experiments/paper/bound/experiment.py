"""Bounds beside exact Jacobians of short texts: what is run and measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.analysis.over_squashing import FORMS, OverSquashing, over_squashing
from sinkjax.experiments.harness.api import Result, Subject
from sinkjax.experiments.harness.stats import mean_of, mean_over
from sinkjax.experiments.shared.jacobian_runs import (
  CONTROL_KEY,
  JacobianConfig,
  paired,
)
from sinkjax.experiments.shared.sink_removal import Condition

VALID = [name for name, form in FORMS.items() if form.valid]


@dataclasses.dataclass(frozen=True)
class Config(JacobianConfig):
  """What is computed; a bound needs many exact maps, so T is small."""

  tokens: int = 6


def measure(
  subject: Subject,
  config: Config,
  *,
  progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Result:
  """Bounds and exact norms of every text, three times.

  Args:
    subject: the model.
    config: what is computed.
    progress: called with (maps done, maps in all).

  Raises:
    ValueError: as `paired`.

  Cost: six exact maps and three `layer_gains` a text.
  """
  config, ids, functions = paired(subject, config, config.tokens)
  maps = []
  for row in ids:
    for fn in functions:
      found = subject.kept(
        "map",
        over_squashing,
        fn,
        subject.params,
        row,
        budget_bytes=config.budget_bytes,
      )
      maps.append(OverSquashing(**found))
      progress(len(maps), len(functions) * len(ids))
  return _result(config, maps, CONTROL_KEY + len(subject.prefix))


def _stacked(
  maps: Sequence[OverSquashing], of: Callable[[OverSquashing], np.ndarray]
) -> np.ndarray:
  """[P, 2, ...] of something of each map."""
  values = np.stack([of(one) for one in maps])
  # `maps` goes text by text, with both conditions of a text together.
  return values.reshape(-1, len(Condition), *values.shape[1:])


def _controls(controls: Sequence[OverSquashing]) -> dict[str, np.ndarray]:
  """[P, T, T] of each form, with the control hidden."""
  return {
    f"log10_bound_{name}_control": np.stack(
      [one.log_bounds[name] for one in controls]
    )
    / np.log(10)
    for name in FORMS
  }


def rises_of(log: np.ndarray) -> np.ndarray:
  """[P] how much higher [P, 2, T, T] is without the sink, mean of causal pairs.

  Pairs that are exactly 0 in either condition have no logarithm: those of
  token 0, where it is hidden from the first layer on.
  """
  both = np.tri(log.shape[-1], dtype=bool) & np.isfinite(log).all(axis=1)
  # The difference of two infinite logarithms is NaN, and a single NaN would
  # spoil the sum.
  gap = np.subtract(
    log[:, 1], log[:, 0], where=both, out=np.zeros_like(log[:, 0])
  )
  return gap.sum(axis=(1, 2)) / both.sum(axis=(1, 2))


def _result(
  config: Config, every: Sequence[OverSquashing], control: int
) -> Result:
  """Of `every` map: text by text, both conditions of each and the control.

  Claims leave out the token at `control` beside the sink, as those on exact
  Jacobians do.
  """
  runs = len(Condition) + 1
  maps = [one for i, one in enumerate(every) if (i + 1) % runs]
  seen = np.tri(config.tokens, dtype=bool)
  decades = {
    name: _stacked(maps, lambda x, n=name: x.decades(n)) for name in FORMS
  }
  bounds = {
    name: _stacked(maps, lambda x, n=name: x.log_bounds[n]) / np.log(10)
    for name in FORMS
  }
  with np.errstate(divide="ignore"):  # norms of a hidden token may be 0
    held = np.log10(_stacked(maps, lambda x: x.frozen_norms))
    exact = np.log10(_stacked(maps, lambda x: x.norms))
  texts = range(len(exact))
  return Result(
    numbers={
      "texts": len(texts),
      "tokens": config.tokens,
      "pairs": len(every) * int(seen.sum()),
      "from_layer": config.from_layer,
      "control_position": control,
      "violations": {
        name: sum(x.violations(name) for x in every) for name in FORMS
      },
      "median_decades": {
        # Only with the sink: a hidden token may have a norm of 0, which lies
        # infinitely many decades below any bound.
        name: mean_over(np.median(d[:, 0][:, seen], axis=1), texts)
        for name, d in decades.items()
      },
      "rise_without_sink": {
        name: mean_of(rises_of(log)) for name, log in bounds.items()
      },
      "rise_of_the_truth": mean_of(rises_of(exact)),
      "constants": [one.constants for one in maps],
    },
    tables={"bounds.csv": _table(exact, held, bounds, decades)},
    arrays={
      "log10_norms": exact,
      "log10_norms_held": held,
      **{f"log10_bound_{name}": log for name, log in bounds.items()},
      **_controls(every[runs - 1 :: runs]),
    },
  )


def _table(
  exact: np.ndarray,
  held: np.ndarray,
  bounds: Mapping[str, np.ndarray],
  decades: Mapping[str, np.ndarray],
) -> tuple[list[str], list[list[Any]]]:
  header = ["text", "condition", "target", "source"]
  header += ["log10_norm", "log10_norm_pattern_held"]
  for name in FORMS:
    header += [f"log10_bound_{name}", f"decades_{name}"]
  rows = []
  for text, i in np.ndindex(exact.shape[:2]):
    for t, s in zip(*np.tril_indices(exact.shape[-1]), strict=True):
      at = (text, i, t, s)
      row = [text + 1, tuple(Condition)[i], int(t), int(s), exact[at], held[at]]
      for name in FORMS:
        row += [bounds[name][at], decades[name][at]]
      rows.append(row)
  return header, rows
