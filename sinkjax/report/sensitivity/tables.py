"""The numbers of a sensitivity result: arrays, summary and CSV tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sinkjax.analysis.sensitivity import Sensitivity, SensitivityMap
from sinkjax.report.sensitivity import bounds


def arrays(result: Sensitivity) -> dict[str, np.ndarray]:
  """What `jacobian.npz` holds: norms [T, T], ids [T], and what else there is.

  Of the edited model the same, with "_edited" after the name.
  """
  kept = {"ids": np.asarray(result.ids, np.int64)}
  for suffix, one in (("", result.plain), ("_edited", result.edited)):
    if one is None:
      continue
    kept[f"norms{suffix}"] = one.norms
    kept[f"loss{suffix}"] = one.loss_norms
    if one.stderr is not None:
      kept[f"stderr{suffix}"] = one.stderr
    if one.layers is not None:
      kept[f"layers{suffix}"] = one.layers
      kept["layer_numbers"] = np.asarray(one.crossed)
    if one.bounds is not None:
      kept |= bounds.arrays(one.bounds, suffix)
  return kept


def summary(result: Sensitivity) -> dict[str, Any]:
  """Every number but the map itself, as plain values."""
  config, edited = result.config, result.edited
  return {
    "token_ids": result.ids,
    "tokens": len(result.ids),
    "norm": config.norm,
    "method": config.method,
    "samples": config.samples if config.method == "hutchinson" else None,
    "from": config.source,
    "to": config.target,
    "edit": result.edit,
    **_numbers_of(result.plain),
    "edited": None if edited is None else _numbers_of(edited),
  }


def _numbers_of(one: SensitivityMap) -> dict[str, Any]:
  return {
    "total_mixing": one.mixing(),
    "effective_reach": float(one.reach().mean()),
    "effective_reach_by_token": one.reach(),
    "last_token_by_distance": one.last_by_distance(),
    "mean_by_distance": one.mean_by_distance(),
    "layers": one.crossed,
    "total_mixing_by_layer": one.mixing_by_layer(),
    "nll": one.loss,
    "loss_sensitivity": one.loss_norms,
    "stderr_relative": one.stderr_relative(),
    "check": one.check,
    "checked_columns": one.checked,
    "bounds": one.bounds and bounds.summary(one.bounds),
  }


def tables(
  result: Sensitivity, tokens: Sequence[str]
) -> dict[str, tuple[list[str], list[list[Any]]]]:
  """(header, rows) of every CSV, by file name; one beside each figure."""
  maps, size = result.maps(), len(tokens)
  # Without an edit there is one map, and the second suffix is left over.
  suffixes = dict(zip(maps, ("", "_edited"), strict=False))
  pairs = {f"norm{suffixes[k]}": one.norms for k, one in maps.items()}
  for label, one in maps.items():
    if one.stderr is not None:
      pairs[f"stderr{suffixes[label]}"] = one.stderr
  if result.edited is not None:
    pairs["ratio"] = result.ratio()
  header = ["target", "source", "target_token", "source_token", *pairs]
  rows = [
    [t, s, tokens[t], tokens[s], *(float(m[t, s]) for m in pairs.values())]
    for t in range(size)
    # A causal model's later tokens have no effect: only zeros are left out.
    for s in range(t + 1)
  ]
  by_distance = {"distance": range(size)}
  by_token = {"position": range(size), "id": result.ids, "token": tokens}
  by_layer = {"layer": result.plain.crossed}
  for label, one in maps.items():
    end = suffixes[label]
    by_distance[f"last_token{end}"] = one.last_by_distance()
    by_distance[f"mean{end}"] = one.mean_by_distance()
    by_token[f"loss_sensitivity{end}"] = one.loss_norms
    by_token[f"effective_reach{end}"] = one.reach()
    if one.layers is not None:
      by_layer[f"total_mixing{end}"] = one.mixing_by_layer()
  by_file = {
    "norms.csv": (header, rows),
    "distance.csv": _by_row(by_distance),
    "tokens.csv": _by_row(by_token),
  }
  if result.plain.layers is not None:
    by_file["layers.csv"] = _by_row(by_layer)
  if result.bounds():
    by_file["bounds.csv"] = bounds.table(result.bounds(), tokens)
  return by_file


def _by_row(columns: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
  rows = zip(*columns.values(), strict=True)
  return list(columns), [list(row) for row in rows]
