"""A sensitivity result as files: npz, CSV, PNG, summary.json, report.html."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.analysis.sensitivity import Sensitivity
from sinkjax.report import html
from sinkjax.report.sensitivity import bounds, figures
from sinkjax.report.sensitivity.tables import arrays, tables
from sinkjax.report.sensitivity.tables import summary as summary

SCHEMA = 1
NORMS = {"fro": "Frobenius", "spectral": "spectral", "max": "largest-entry"}
FILES = (
  *("map.png", "distance.png", "loss.png", "norms.csv", "distance.csv"),
  *("tokens.csv", "ratio.png", "layers.png", "layers.csv"),
  *("bounds.png", "bounds.csv", "columns.png", "columns.csv"),
)
"""Tables and figures of all kinds of command, of which each writes some."""

ROWS = 1024
"""Pairs in the page's table, the largest ones: more would make the page slow
to sort."""


def draw(
  result: Sensitivity,
  tokens: Sequence[str],
  *,
  step: Callable[[], Any] = lambda: None,
) -> dict[str, bytes]:
  """Every figure as PNG bytes, by file name.

  Args:
    result: what was computed.
    tokens: the text of each position.
    step: called after each figure.
  """
  maps = result.maps()
  name = f"{NORMS[result.config.norm]} norm of d target / d source"
  each = {label: one.norms for label, one in maps.items()}
  drawn = {"map.png": figures.norm_maps(each, tokens, f"{name} (log scale)")}
  step()
  if result.edited is not None:
    label = f"{result.edit} / as it is (log scale)"
    drawn["ratio.png"] = figures.ratio_map(result.ratio(), tokens, label)
    step()
  drawn["distance.png"] = figures.by_distance(
    {label: one.last_by_distance() for label, one in maps.items()},
    {label: one.mean_by_distance() for label, one in maps.items()},
    {label: one.last_stderr() for label, one in maps.items()},
  )
  step()
  if result.plain.layers is not None:
    drawn["layers.png"] = figures.mixing_by_layer(
      {label: one.mixing_by_layer() for label, one in maps.items()},
      result.plain.crossed,
    )
    step()
  drawn["loss.png"] = figures.loss_by_token(
    {label: one.loss_norms for label, one in maps.items()}, tokens
  )
  step()
  if result.bounds():
    drawn["bounds.png"] = bounds.draw(result.bounds(), tokens)
    step()
  return drawn


def _cards(result: Sensitivity, data: dict[str, Any]) -> list[html.Number]:
  size, plain, edited = len(result.ids), result.plain, result.edited
  cards = [
    html.Number(
      "total mixing",
      html.percent(plain.mixing()),
      "share of the squared norms that is between different tokens",
    ),
    html.Number(
      "effective reach",
      f"{plain.reach().mean():.2f}",
      f"tokens back, mean over tokens; the last token's is "
      f"{plain.reach()[-1]:.2f} of {size - 1}",
    ),
  ]
  if edited is not None:
    cards += [
      html.Number(
        "total mixing, edited", html.percent(edited.mixing()), result.edit
      ),
      html.Number(
        "effective reach, edited",
        f"{edited.reach().mean():.2f}",
        f"the last token's is {edited.reach()[-1]:.2f} of {size - 1}",
      ),
    ]
  loss = "nats a token"
  if edited is not None:
    loss += f"; edited {edited.loss:.3f}"
  return cards + [
    html.Number("tokens", size, "in the text, the prefix counted"),
    html.Number("loss", f"{plain.loss:.3f}", loss),
    _trust(result),
    time_taken(data),
  ]


def time_taken(data: Mapping[str, Any]) -> html.Number:
  """How long it took, and where; of `summary.json`."""
  commit = data.get("commit")
  where = data["device"] + (f"; commit {commit}" if commit else "")
  return html.Number("time", f"{data['seconds']:.1f} s", where)


def _trust(result: Sensitivity) -> html.Number:
  """How far the numbers are to be trusted."""
  maps = list(result.maps().values())
  if result.config.method == "hutchinson":
    return html.Number(
      "largest standard error",
      html.percent(max(one.stderr_relative() for one in maps)),
      f"of an entry, relative to it; {result.config.samples} samples a token",
    )
  return self_check(result, len(result.ids))


def self_check(result: Sensitivity, columns: int) -> html.Number:
  """What the comparison with the model's own derivative has found.

  Args:
    result: of an exact method.
    columns: how many each map has.
  """
  maps = list(result.maps().values())
  if result.config.method == "reference":
    return html.Number("self check", "none", "the reference is the definition")
  # A continued run with no column left to compute has no check of its own.
  checks = [one.check for one in maps if one.check is not None]
  here, size = sum(one.checked for one in maps), len(maps) * columns
  which = (
    "all columns"
    if here == size
    else (f"{here} columns of {size}; the others passed in an earlier run")
  )
  return html.Number(
    "self check",
    f"{max(checks):.1e}" if checks else "passed",
    f"relative error against the model's own derivative; {which}",
  )


def _strongest(result: Sensitivity, tokens: Sequence[str]) -> str:
  """The strongest pair of different tokens, in words."""
  below = np.tril(result.plain.norms, -1)
  t, s = np.unravel_index(int(np.argmax(below)), below.shape)
  if not below[t, s] > 0:
    return "No token depends on another."
  return (
    f"The strongest pair of different tokens is {tokens[t]!r} (position {t}) "
    f"by {tokens[s]!r} (position {s}): {below[t, s]:.3g}."
  )


def _zeros(result: Sensitivity) -> str:
  seen = np.tri(len(result.ids), dtype=bool)
  if all(np.all(one.norms[seen] > 0) for one in result.maps().values()):
    return ""
  return " Grey: exactly zero."


def _sections(
  result: Sensitivity, tokens: Sequence[str], drawn: Mapping[str, bytes]
) -> list[html.Section]:
  source, target = (
    site if isinstance(site, str) else f"{site[0]} of layer {site[1]}"
    for site in (result.config.source, result.config.target)
  )
  sections = [
    html.Section(
      "Sensitivity of every token to every other",
      figure=drawn["map.png"],
      caption=(
        f"{NORMS[result.config.norm]} norm of the derivative of each token's "
        f"{target} (row) with respect to each token's {source} (column), on a "
        f"logarithmic scale. Blank: tokens that come later.{_zeros(result)} "
        f"{_strongest(result, tokens)}"
      ),
    )
  ]
  if result.edited is not None:
    sections.append(
      html.Section(
        f"What {result.edit} changes",
        figure=drawn["ratio.png"],
        caption=(
          "Norms of the edited model over those of the model as it is. Red: "
          "the edit makes the pair more sensitive. Blue: less. White: no "
          "change. Grey: exactly zero."
        ),
      )
    )
  sections.append(
    html.Section(
      "Sensitivity by distance",
      figure=drawn["distance.png"],
      caption=(
        "Left: the last token's sensitivity to the token that is so many "
        "tokens back; the rightmost point is the first token. Right: the mean "
        "over all tokens that have one so far back. Exact zeros are left out."
      ),
    )
  )
  sections += _layers_and_loss(source, drawn)
  if result.bounds():
    figure = drawn["bounds.png"]
    sections.append(bounds.section(result.bounds(), figure))
  return [*sections, pairs(*tables(result, tokens)["norms.csv"])]


def _layers_and_loss(
  source: str, drawn: Mapping[str, bytes]
) -> list[html.Section]:
  sections = []
  if "layers.png" in drawn:
    sections.append(
      html.Section(
        "Mixing by layer",
        figure=drawn["layers.png"],
        caption=(
          f"Total mixing of the map from {source} to the residual stream "
          "after each layer, and so of all layers up to that one. Squares "
          "count: one token with a large norm that mostly depends on itself "
          "can hide the mixing of all others."
        ),
      )
    )
  sections.append(
    html.Section(
      "Sensitivity of the loss",
      figure=drawn["loss.png"],
      caption=(
        "Norm of the gradient of the mean next-token loss with respect to "
        f"each token's {source}. The last token predicts nothing, and its "
        "gradient is zero."
      ),
    )
  )
  return sections


def pairs(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> html.Section:
  """The section with norms.csv, or the largest norms of it.

  Args:
    header: of norms.csv.
    rows: of norms.csv: four cells that name the pair, then its norms.
  """
  note = "Click a column's title to sort. "
  if len(rows) > ROWS:
    # Four cells name the pair; the next is the norm of the model as it is.
    rows = sorted(rows, key=lambda row: -row[4])[:ROWS]
    note += f"These are the {ROWS} largest; norms.csv has all."
  else:
    note += "The same table is norms.csv."
  return html.Section("Every pair", body=note, table=html.Table(header, rows))


def render(
  result: Sensitivity,
  data: dict[str, Any],
  tokens: Sequence[str],
  drawn: dict[str, bytes],
  *,
  subtitle: str,
  warnings: Sequence[str],
  details: dict[str, Any],
) -> str:
  """The self-contained HTML page.

  Args:
    result: what was computed.
    data: `summary`'s result with command, seconds, device and commit.
    tokens: the text of each position.
    drawn: `draw`'s result.
    subtitle: model, text and first token in words.
    warnings: what the reader must know first.
    details: versions, config and device.
  """
  return html.render_report(
    title=f"Sensitivity of {details['model']}{html.edited(result.edit)}",
    subtitle=subtitle,
    numbers=_cards(result, data),
    sections=_sections(result, tokens, drawn),
    warnings=list(warnings),
    command=data["command"],
    details=details,
  )


def write(
  folder: pathlib.Path,
  result: Sensitivity,
  data: dict[str, Any],
  tokens: Sequence[str],
  drawn: dict[str, bytes],
  page: str,
) -> None:
  """Writes everything; see `write_files`.

  Args:
    folder: where to; it must exist.
    result: what was computed.
    data: the whole of `summary.json`, without `complete`.
    tokens: the text of each position.
    drawn: `draw`'s result.
    page: `render`'s result.
  """
  write_files(folder, arrays(result), tables(result, tokens), data, drawn, page)


def write_files(
  folder: pathlib.Path,
  kept: Mapping[str, np.ndarray],
  by_file: Mapping[str, Any],
  data: Mapping[str, Any],
  drawn: Mapping[str, bytes],
  page: str,
) -> None:
  """Writes a result's files, `summary.json` last.

  What an earlier command wrote and this one does not is removed.

  Args:
    folder: where to; it must exist.
    kept: of `jacobian.npz`.
    by_file: (header, rows) of each table, by file name.
    data: the whole of `summary.json`, without `complete`.
    drawn: PNG bytes by file name.
    page: of `report.html`.
  """
  artifacts.write_npz(folder / "jacobian.npz", dict(kept))
  for name in set(FILES) - set(drawn) - set(by_file):
    (folder / name).unlink(missing_ok=True)
  for name, table in by_file.items():
    artifacts.write_csv(folder / name, *table)
  for name, png in drawn.items():
    artifacts.write_bytes(folder / name, png)
  artifacts.write_text(folder / "report.html", page)
  # This file tells readers that all others are there.
  artifacts.write_json(
    folder / "summary.json", {"schema": SCHEMA, **data, "complete": True}
  )
