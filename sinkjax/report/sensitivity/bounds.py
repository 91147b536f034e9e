"""Over-squashing bounds as a figure, a table and a section of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sinkjax.analysis.over_squashing import FORMS, OverSquashing
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  LABELLED,
  MUTED,
  REST,
  drawing,
  png,
  token_axis,
  token_labels,
)

COLORS = {"paper": "#8a5fb0", "frozen": REST, "full": FIRST}
"""Of the forms that are drawn: those that must hold."""


def summary(bounds: OverSquashing) -> dict[str, Any]:
  """Every number of an `OverSquashing` but the maps, as plain values."""
  forms = {}
  for name, form in FORMS.items():
    decades = bounds.decades(name)
    forms[name] = {
      "about": "pattern held" if form.frozen else "the model",
      "valid": form.valid,
      "violations": bounds.violations(name),
      "decades_least": float(np.nanmin(decades)),
      "decades_median": float(np.nanmedian(decades)),
      "decades_most": float(np.nanmax(decades)),
    }
  return {
    "forms": forms,
    "constants": bounds.constants,
    "copy_gain": bounds.copy_gain,
    "mlp_gain": bounds.mlp_gain,
  }


def arrays(bounds: OverSquashing, suffix: str) -> dict[str, np.ndarray]:
  """What `jacobian.npz` holds of the bounds."""
  logs = {
    f"log_bound_{name}{suffix}": log for name, log in bounds.log_bounds.items()
  }
  return {f"norms_frozen{suffix}": bounds.frozen_norms, **logs}


def table(maps: Mapping[str, OverSquashing], tokens: Sequence[str]):
  """(header, rows) of bounds.csv: log10 of truths and bounds, pair by pair."""
  header = ["of", "target", "source", "target_token", "source_token"]
  header += ["log10_norm", "log10_norm_pattern_held"]
  for name in FORMS:
    header += [f"log10_bound_{name}", f"decades_{name}"]
  rows = []
  for label, bounds in maps.items():
    norms, held = _log10(bounds.norms), _log10(bounds.frozen_norms)
    decades = {name: bounds.decades(name) for name in FORMS}
    for t, s in zip(*np.tril_indices(len(tokens)), strict=True):
      row = [
        label,
        int(t),
        int(s),
        tokens[t],
        tokens[s],
        norms[t, s],
        held[t, s],
      ]
      for name in FORMS:
        log = bounds.log_bounds[name][t, s] / np.log(10)
        row += [float(log), float(decades[name][t, s])]
      rows.append(row)
  return header, rows


def _log10(norms: np.ndarray) -> np.ndarray:
  # A norm of zero becomes -inf, which figures leave out: no cause for a
  # warning.
  with np.errstate(divide="ignore"):
    return np.log10(norms)


def draw(maps: Mapping[str, OverSquashing], tokens: Sequence[str]) -> bytes:
  """The last token's bounds and truths by source token, as a PNG.

  Args:
    maps: an `OverSquashing` for each panel, by title.
    tokens: the text of each position.
  """
  size = len(tokens)
  names = token_labels(tokens) if size <= LABELLED else None
  with drawing(4.6 * len(maps) + 0.6, 4.3) as figure:
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for ax, (title, bounds) in zip(axes, maps.items(), strict=True):
      look = {"lw": 1.8, "marker": "o" if size <= LABELLED else "", "ms": 3.5}
      for name, color in COLORS.items():
        log = bounds.log_bounds[name][-1] / np.log(10)
        ax.plot(log, color=color, label=f"bound: {name}", **look)
      held, norms = _log10(bounds.frozen_norms[-1]), _log10(bounds.norms[-1])
      ax.plot(held, color=MUTED, label="exact, pattern held", ls="--", **look)
      ax.plot(norms, color=INK, label="exact", **look)
      token_axis(ax.xaxis, names, size - 0.5, True)
      ax.set_xlim(-0.6, size - 0.4)
      ax.grid(axis="y")
      ax.set_xlabel("source token")
      ax.set_title(title)
    figure.legend(
      *axes[0].get_legend_handles_labels(),
      loc="outside upper left",
      ncols=3 if len(maps) == 1 else 5,
      frameon=False,
      fontsize=8.5,
    )
    axes[0].set_ylabel("log10 of the last token's norm")
    return png(figure)


def section(maps: Mapping[str, OverSquashing], figure: bytes) -> html.Section:
  """Bounds beside truth, and how many decades apart they are."""
  header = ["of", "form", "about", "least", "median", "most", "violated"]
  rows = []
  for label, bounds in maps.items():
    for name, one in summary(bounds)["forms"].items():
      rows.append(
        [
          label,
          f"{name}: {FORMS[name].label}",
          one["about"],
          one["decades_least"],
          one["decades_median"],
          one["decades_most"],
          one["violations"],
        ]
      )
  bounds = next(iter(maps.values()))
  return html.Section(
    "Over-squashing bounds",
    body=(
      "Each bound multiplies gains along all causal paths. The forms paper "
      "and frozen bound the Jacobian with the attention pattern held "
      "constant, the form full bounds that of the model itself. The table "
      "shows how many decades (powers of ten) the bound lies above the exact "
      "norm, over all pairs of tokens, and how many pairs exceed their bound. "
      "The form naive leaves the residual stream out of its constant and need "
      "not hold."
    ),
    figure=figure,
    caption=(
      "The last token's exact spectral norms and their bounds, on a scale of "
      f"powers of ten. The paper's constant is {bounds.constants['paper']:.3g} "
      "a layer."
    ),
    table=html.Table(header, rows),
  )
