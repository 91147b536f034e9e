"""Figures and sections of the experiment `secondary_sinks`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.secondary_sinks.experiment import (
  LASTS,
  Kind,
  column,
)
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  drawing,
  legend_above,
  png,
)

TITLE = "Sinks beside the first token"
COLORS = (FIRST, REST, MUTED)
SHOWN = 15
"""Tokens in the report's table."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"sinks.png": _sinks(result)}


def _sinks(result: Result) -> bytes:
  sinks = result.arrays["sinks"]
  late = sinks[column(sinks, "position") > 0]
  with drawing(8.8, 3.2) as figure:
    where, when, which = figure.subplots(1, 3)
    edges = np.linspace(1, result.config.tokens, 17)
    parts = [late[column(late, "kind") == i] for i in range(len(LASTS))]
    where.hist(
      [column(x, "position") for x in parts],
      bins=edges,
      stacked=True,
      color=COLORS,
      label=LASTS,
    )
    where.set(xlabel="position", ylabel="sinks, all texts")
    legend_above(where, "where they stand")
    _layers(when, result, late)
    rows = result.records("kinds.csv")
    sums = [max(sum(row[x] for row in rows), 1) for x in ("sinks", "tokens")]
    at = np.arange(len(rows))
    for name, total, shift, color in (
      ("sinks", sums[0], -0.2, FIRST),
      ("tokens", sums[1], 0.2, REST),
    ):
      share = [100 * row[name] / total for row in rows]
      which.barh(at + shift, share, height=0.36, color=color, label=name)
    which.set_yticks(at, [row["kind"] for row in rows])
    which.set_ylim(len(rows) - 0.5, -0.5)
    which.set_xlabel("%")
    legend_above(which, "which tokens they are")
    for ax in (where, when):
      ax.grid(True, axis="y")
    return png(figure)


def _layers(ax: Any, result: Result, late: np.ndarray) -> None:
  """Of the secondary sinks, and of the first tokens, those alive by layer."""
  layers = np.arange(result.numbers["layers"])

  def alive(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    shown = (first[:, None] <= layers) & (layers <= last[:, None])
    return 100 * shown.sum(axis=0) / max(len(first), 1)

  life = result.arrays["life"]
  ax.plot(layers, alive(*life.T), color=INK, ls=":", label="first token")
  ends = (column(late, x) for x in ("first_layer", "last_layer"))
  ax.plot(layers, alive(*ends), color=FIRST, label="secondary")
  ax.set(xlabel="layer", ylabel="of them, %", ylim=(0, 102))
  ax.locator_params(axis="x", integer=True)
  legend_above(ax, "when they show")


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  header, rows = result.tables["tokens.csv"]
  kinds = ", ".join(str(kind) for kind in Kind)
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens have "
      f"{numbers['found']} sinks beside the first token. A token is a sink by "
      "direction (that of the first token while it is massive), by norm or by "
      "attention; lasting ones show in their states for half of the first "
      "token's life or more, passing ones for less, and the rest by attention "
      f"alone. Kinds of token: {kinds}.",
      figure=drawn["sinks.png"],
      caption="Middle: from the first to the last layer after which a sink "
      "shows, and the first tokens' lives. Right: among secondary sinks, and "
      "among all tokens after the first.",
      table=html.Table(*result.tables["kinds.csv"]),
    ),
    html.Section(
      "Which tokens",
      body="Medians over the sinks of one token; norm is over that of tokens "
      "that are no sinks.",
      table=html.Table(header, rows[:SHOWN]),
    ),
  ]
