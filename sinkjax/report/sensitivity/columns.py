"""Chosen columns of a sensitivity map as files, where the whole is too much.

Axes: T tokens, C chosen source tokens, L layers. What is said of a column needs
no other one: its norms by target, and how much of it lies at other tokens.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.analysis.sensitivity import Sensitivity, SensitivityMap
from sinkjax.report import html
from sinkjax.report.sensitivity import figures
from sinkjax.report.sensitivity.page import (
  NORMS,
  pairs,
  self_check,
  time_taken,
  write_files,
)


def to_others(norms: np.ndarray, columns: Sequence[int]) -> np.ndarray:
  """The share of each column's squared norms that is at other tokens.

      1 - n_ss^2 / sum_t n_ts^2

  Args:
    norms: [..., T, C].
    columns: the C source tokens.

  Returns:
    [..., C]; 0 for a column of zeros, which goes nowhere.

  >>> to_others(np.array([[3.0, 0.0], [4.0, 5.0]]), [0, 1]).tolist()
  [0.64, 0.0]
  """
  squares = norms.astype(np.float64) ** 2
  total = squares.sum(axis=-2)
  own = squares[..., list(columns), np.arange(len(columns))]
  return np.where(total > 0, 1 - own / np.where(total > 0, total, 1), 0.0)


def arrays(result: Sensitivity) -> dict[str, np.ndarray]:
  """What `jacobian.npz` holds: ids [T], columns [C], norms [T, C], and layers
  [L, T, C] where asked for; of the edited model with "_edited" at the end."""
  columns = result.columns
  kept = {
    "ids": np.asarray(result.ids, np.int64),
    "columns": np.asarray(columns, np.int64),
  }
  for suffix, one in (("", result.plain), ("_edited", result.edited)):
    if one is None:
      continue
    kept[f"norms{suffix}"] = one.norms[:, columns]
    kept[f"loss{suffix}"] = one.loss_norms
    if one.layers is not None:
      kept[f"layers{suffix}"] = one.layers[:, :, columns]
      kept["layer_numbers"] = np.asarray(one.crossed)
  return kept


def summary(result: Sensitivity) -> dict[str, Any]:
  """Every number but the norms themselves, as plain values."""
  config, edited, columns = result.config, result.edited, result.columns
  return {
    "token_ids": result.ids,
    "tokens": len(result.ids),
    "columns": list(columns),
    "norm": config.norm,
    "method": config.method,
    "from": config.source,
    "to": config.target,
    "edit": result.edit,
    **_numbers_of(result.plain, columns),
    "edited": None if edited is None else _numbers_of(edited, columns),
  }


def _numbers_of(one: SensitivityMap, columns: Sequence[int]) -> dict[str, Any]:
  norms = one.norms[:, columns]
  layers = one.layers
  return {
    "share_at_other_tokens": to_others(norms, columns),
    "last_token": norms[-1],
    "layers": one.crossed,
    "share_at_other_tokens_by_layer": (
      None if layers is None else to_others(layers[:, :, columns], columns)
    ),
    "nll": one.loss,
    "loss_sensitivity": one.loss_norms,
    "check": one.check,
    "checked_columns": one.checked,
  }


def tables(
  result: Sensitivity, tokens: Sequence[str]
) -> dict[str, tuple[list[str], list[list[Any]]]]:
  """(header, rows) of every CSV, by file name."""
  columns = result.columns
  maps = dict(zip(("", "_edited"), result.maps().values(), strict=False))
  norms = {f"norm{end}": one.norms for end, one in maps.items()}
  every_pair = [
    [t, s, tokens[t], tokens[s], *(float(m[t, s]) for m in norms.values())]
    for s in columns
    # A causal model's earlier tokens depend on no later one.
    for t in range(s, len(tokens))
  ]
  header = ["position", "id", "token"]
  rows = [[s, result.ids[s], tokens[s]] for s in columns]
  for end, one in maps.items():
    some = one.norms[:, columns]
    values = (to_others(some, columns), some[-1], one.loss_norms[list(columns)])
    names = ("share_at_other_tokens", "last_token", "loss_sensitivity")
    header += [f"{name}{end}" for name in names]
    for row, *cells in zip(rows, *values, strict=True):
      row += map(float, cells)
  return {
    "norms.csv": (
      ["target", "source", "target_token", "source_token", *norms],
      every_pair,
    ),
    "columns.csv": (header, rows),
  }


def draw(result: Sensitivity, tokens: Sequence[str]) -> dict[str, bytes]:
  """The figures as PNG bytes, by file name."""
  columns = result.columns
  maps = {label: one.norms[:, columns] for label, one in result.maps().items()}
  name = f"{NORMS[result.config.norm]} norm of d target / d source"
  names = [f"{s} {tokens[s]!r}" for s in columns]
  return {"columns.png": figures.columns_by_target(maps, columns, names, name)}


def render(
  result: Sensitivity,
  data: Mapping[str, Any],
  tokens: Sequence[str],
  drawn: Mapping[str, bytes],
  *,
  subtitle: str,
  warnings: Sequence[str],
  details: dict[str, Any],
) -> str:
  """The self-contained HTML page; arguments as `page.render`."""
  by_file = tables(result, tokens)
  sections = [
    html.Section(
      "Sensitivity of every token to the chosen ones",
      figure=drawn["columns.png"],
      caption=(
        f"{NORMS[result.config.norm]} norm of the derivative of each token's "
        "residual stream with respect to that of a chosen source token, on a "
        f"logarithmic scale: {_lines(len(result.columns))} Exact zeros are "
        "left out."
      ),
    ),
    html.Section(
      "Chosen source tokens",
      body=(
        "The share at other tokens is that of the column's squared norms which "
        "is not at the token itself; total mixing and effective reach need the "
        "whole map and are not given. The same table is columns.csv."
      ),
      table=html.Table(*by_file["columns.csv"]),
    ),
    pairs(*by_file["norms.csv"]),
  ]
  return html.render_report(
    title=f"Sensitivity of {details['model']}{html.edited(result.edit)}",
    subtitle=subtitle,
    numbers=_cards(result, data),
    sections=sections,
    warnings=list(warnings),
    command=data["command"],
    details=details,
  )


def _lines(count: int) -> str:
  """What the figure shows of some sources."""
  if count > figures.LINES:
    return "the median over the chosen sources, and their range."
  return "a line for each source, which begins at its own position."


def _cards(result: Sensitivity, data: Mapping[str, Any]) -> list[html.Number]:
  plain, columns = result.plain, result.columns
  shares = to_others(plain.norms[:, columns], columns)
  return [
    html.Number(
      "share at other tokens",
      html.percent(float(shares.mean())),
      "of a column's squared norms, mean over the chosen source tokens",
    ),
    html.Number("columns", len(columns), f"source tokens of {len(result.ids)}"),
    html.Number("loss", f"{plain.loss:.3f}", "nats a token"),
    self_check(result, len(columns)),
    time_taken(data),
  ]


def write(
  folder: pathlib.Path,
  result: Sensitivity,
  data: Mapping[str, Any],
  tokens: Sequence[str],
  drawn: Mapping[str, bytes],
  page: str,
) -> None:
  """Writes everything; arguments as `page.write`."""
  files = arrays(result), tables(result, tokens)
  write_files(folder, *files, data, drawn, page)
