"""A sensitivity result as files: npz, CSV, PNG, summary.json, report.html."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax import artifacts
from sinkjax.report import html, over_squashing
from sinkjax.report import jacobian_figures as figures

SCHEMA = 1
NORMS = {"fro": "Frobenius", "spectral": "spectral", "max": "largest-entry"}
SOMETIMES = (
  "ratio.png",
  "layers.png",
  "layers.csv",
  "bounds.png",
  "bounds.csv",
)
"""Files that only some commands write."""

ROWS = 1024
"""The page's table has no more pairs than this: the largest ones."""


def arrays(result) -> dict[str, np.ndarray]:
  """What `jacobian.npz` holds: norms [T, T], ids [T], and what else there is.

  Of the edited model the same, with "_edited" after the name.
  """
  found = {"ids": np.asarray(result.ids, np.int64)}
  for suffix, one in (("", result.plain), ("_edited", result.edited)):
    if one is None:
      continue
    found[f"norms{suffix}"] = one.norms
    found[f"loss{suffix}"] = one.loss_norms
    if one.stderr is not None:
      found[f"stderr{suffix}"] = one.stderr
    if one.layers is not None:
      found[f"layers{suffix}"] = one.layers
      found["layer_numbers"] = np.asarray(one.crossed)
    if one.bounds is not None:
      found |= over_squashing.arrays(one.bounds, suffix)
  return found


def summary(result) -> dict[str, Any]:
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


def _numbers_of(one) -> dict[str, Any]:
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
    "bounds": one.bounds and over_squashing.summary(one.bounds),
  }


def tables(
  result, tokens: Sequence[str]
) -> dict[str, tuple[list[str], list[list[Any]]]]:
  """(header, rows) of every CSV, by file name; one beside each figure."""
  maps, size = result.maps(), len(tokens)
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
  found = {
    "norms.csv": (header, rows),
    "distance.csv": _by_row(by_distance),
    "tokens.csv": _by_row(by_token),
  }
  if result.plain.layers is not None:
    found["layers.csv"] = _by_row(by_layer)
  if result.bounds():
    found["bounds.csv"] = over_squashing.table(result.bounds(), tokens)
  return found


def _by_row(columns: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
  rows = zip(*columns.values(), strict=True)
  return list(columns), [list(row) for row in rows]


def draw(
  result, tokens: Sequence[str], *, step: Callable[[], Any] = lambda: None
) -> dict[str, bytes]:
  """Every figure as PNG bytes, by file name.

  Args:
    result: a `Sensitivity`.
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
    drawn["bounds.png"] = over_squashing.draw(result.bounds(), tokens)
    step()
  return drawn


def _percent(value: float) -> str:
  return f"{100 * value:.1f} %"


def _cards(result, data: dict[str, Any]) -> list[html.Number]:
  size, plain, edited = len(result.ids), result.plain, result.edited
  cards = [
    html.Number(
      "total mixing",
      _percent(plain.mixing()),
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
        "total mixing, edited", _percent(edited.mixing()), result.edit
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
  commit = data.get("commit")
  where = data["device"] + (f"; commit {commit}" if commit else "")
  return cards + [
    html.Number("tokens", size, "in the text, the prefix counted"),
    html.Number("loss", f"{plain.loss:.3f}", loss),
    _trust(result),
    html.Number("time", f"{data['seconds']:.1f} s", where),
  ]


def _trust(result) -> html.Number:
  """How far the numbers are to be trusted."""
  maps = list(result.maps().values())
  if result.config.method == "hutchinson":
    return html.Number(
      "largest standard error",
      _percent(max(one.stderr_relative() for one in maps)),
      f"of an entry, relative to it; {result.config.samples} samples a token",
    )
  if result.config.method == "reference":
    return html.Number("self check", "none", "the reference is the definition")
  known = [one.check for one in maps if one.check is not None]
  here, size = sum(one.checked for one in maps), len(maps) * len(result.ids)
  which = (
    "all columns"
    if here == size
    else (f"{here} columns of {size}; the others passed in an earlier run")
  )
  return html.Number(
    "self check",
    f"{max(known):.1e}" if known else "passed",
    f"relative error against the model's own derivative; {which}",
  )


def _strongest(result, tokens: Sequence[str]) -> str:
  """The strongest pair of different tokens, in words."""
  below = np.tril(result.plain.norms, -1)
  t, s = np.unravel_index(int(np.argmax(below)), below.shape)
  if not below[t, s] > 0:
    return "No token depends on another."
  return (
    f"The strongest pair of different tokens is {tokens[t]!r} (position {t}) "
    f"by {tokens[s]!r} (position {s}): {below[t, s]:.3g}."
  )


def _zeros(result) -> str:
  seen = np.tri(len(result.ids), dtype=bool)
  if all(np.all(one.norms[seen] > 0) for one in result.maps().values()):
    return ""
  return " Grey: exactly zero."


def _sections(result, tokens, drawn) -> list[html.Section]:
  config, edited = result.config, result.edited
  a, b = (
    site if isinstance(site, str) else f"{site[0]} of layer {site[1]}"
    for site in (config.source, config.target)
  )
  found = [
    html.Section(
      "Who depends on whom",
      figure=drawn["map.png"],
      caption=(
        f"{NORMS[config.norm]} norm of the derivative of each token's {b} "
        f"(row) by each token's {a} (column), on a log scale. Blank: the "
        f"future, which no token sees.{_zeros(result)} "
        f"{_strongest(result, tokens)}"
      ),
    )
  ]
  if edited is not None:
    found.append(
      html.Section(
        f"What {result.edit} changes",
        figure=drawn["ratio.png"],
        caption=(
          "Edited norms over those of the model as it is. Red: the edit makes "
          "the pair depend more, blue less, white leaves it as it was; grey "
          "is exactly zero."
        ),
      )
    )
  found.append(
    html.Section(
      "How far back",
      figure=drawn["distance.png"],
      caption=(
        "Left: how much the last token depends on what is so many tokens "
        "back; the rightmost point is the first token. Right: mean over all "
        "tokens that have one so far back. Exact zeros are left out."
      ),
    )
  )
  if "layers.png" in drawn:
    found.append(
      html.Section(
        "Mixing by layer",
        figure=drawn["layers.png"],
        caption=(
          f"Total mixing of the map from {a} to the residual stream after "
          "each layer: it is about all layers up to that one. Squares count, "
          "so one token that mostly depends on itself, with a large norm, can "
          "hide the mixing of all others."
        ),
      )
    )
  found.append(
    html.Section(
      "What the loss depends on",
      figure=drawn["loss.png"],
      caption=(
        f"Norm of the gradient of the mean next-token loss at each token's "
        f"{a}. The last token predicts nothing that is counted."
      ),
    )
  )
  if result.bounds():
    figure = drawn["bounds.png"]
    found.append(over_squashing.section(result.bounds(), figure))
  return [*found, _pairs(result, tokens)]


def _pairs(result, tokens) -> html.Section:
  header, rows = tables(result, tokens)["norms.csv"]
  note = "Click a column's title to sort. "
  if len(rows) > ROWS:
    rows = sorted(rows, key=lambda row: -row[4])[:ROWS]
    note += f"These are the {ROWS} largest; norms.csv has all."
  else:
    note += "The same table is norms.csv."
  return html.Section("Every pair", body=note, table=html.Table(header, rows))


def render(
  result,
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
    result: a `Sensitivity`.
    data: `summary`'s result with command, seconds, device and commit.
    tokens: the text of each position.
    drawn: `draw`'s result.
    subtitle: model, text and first token in words.
    warnings: what the reader must know first.
    details: versions, config and device.
  """
  return html.render_report(
    title=f"Sensitivity of {details['model']}",
    subtitle=subtitle,
    numbers=_cards(result, data),
    sections=_sections(result, tokens, drawn),
    warnings=list(warnings),
    command=data["command"],
    details=details,
  )


def write(
  folder: pathlib.Path,
  result,
  data: dict[str, Any],
  tokens: Sequence[str],
  drawn: dict[str, bytes],
  page: str,
) -> None:
  """Writes everything, `summary.json` last.

  What an earlier command wrote and this one does not is removed.

  Args:
    folder: where to; it must exist.
    result: a `Sensitivity`.
    data: the whole of `summary.json`, without `complete`.
    tokens: the text of each position.
    drawn: `draw`'s result.
    page: `render`'s result.
  """
  artifacts.write_npz(folder / "jacobian.npz", arrays(result))
  found = tables(result, tokens)
  for name in set(SOMETIMES) - set(drawn) - set(found):
    (folder / name).unlink(missing_ok=True)
  for name, table in found.items():
    artifacts.write_csv(folder / name, *table)
  for name, png in drawn.items():
    artifacts.write_bytes(folder / name, png)
  artifacts.write_text(folder / "report.html", page)
  artifacts.write_json(
    folder / "summary.json", {"schema": SCHEMA, **data, "complete": True}
  )
