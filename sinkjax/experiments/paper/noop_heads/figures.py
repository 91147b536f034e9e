"""Figures and sections of the experiment `noop_heads`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.noop_heads.kinds import BROADCAST, NOOP
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  REST,
  drawing,
  heat_map,
  png,
  token_labels,
)

TITLE = "Heads that act on a trigger and are otherwise dormant"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  arrays = result.arrays
  drawn = {
    _file(one): _head(one, arrays[f"pattern {i}"], arrays[f"value {i}"])
    for i, one in enumerate(result.numbers["drawn"])
  }
  drawn["kinds.png"] = _kinds(arrays)
  return drawn


def _file(one: Mapping[str, Any]) -> str:
  return f"head-{one['layer']}-{one['head']}.png"


def _head(
  one: Mapping[str, Any], pattern: np.ndarray, value: np.ndarray
) -> bytes:
  """Attention beside the norms of the values, as the paper draws its head."""
  labels = token_labels(one["tokens"])
  with drawing(8.4, 3.9) as figure:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    shown = np.where(np.tri(*pattern.shape, 1, dtype=bool), pattern, np.nan)
    image = heat_map(left, shown, vmin=0, vmax=1)
    left.axvline(0.5, color=FIRST, lw=1)
    left.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
    left.set_yticks(range(len(labels) - 1), labels[1:], parse_math=False)
    left.set(title=f"attention of layer {one['layer']}, head {one['head']}")
    figure.colorbar(image, ax=left)
    colors = [FIRST] + [REST] * (len(labels) - 1)
    right.barh(range(len(labels)), value, color=colors, height=0.75)
    right.set_yticks(range(len(labels)), labels, parse_math=False)
    right.set(ylim=(len(labels) - 0.5, -0.5), title="norm of each value")
    right.grid(axis="x")
    return png(figure)


def _kinds(arrays: Mapping[str, np.ndarray]) -> bytes:
  """Every head: the sink's value against the rank of the head's output."""
  ratio, share = arrays["value_ratio"].ravel(), arrays["sink"].ravel()
  rank = arrays["stable_rank"].ravel()
  with drawing(6.4, 3.6) as figure:
    ax = figure.add_subplot()
    order = np.argsort(share)
    image = ax.scatter(
      ratio[order],
      rank[order],
      c=100 * share[order],
      cmap="Blues",
      s=16,
      vmin=0,
      vmax=100,
      edgecolors=MUTED,
      linewidths=0.3,
    )
    for at in (NOOP, BROADCAST):
      ax.axvline(at, color=MUTED, ls=":", lw=1.2)
    ax.set(
      xlabel="norm of the first value over the mean of the others",
      ylabel="stable rank of the head's output",
      xlim=(0, None),
      title="heads; left of the lines no-op, right of them broadcast",
    )
    figure.colorbar(image, ax=ax, label="texts with a sink, %")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  most = {
    (row["layer"], row["head"]): row["set_off_by"]
    for row in result.records("heads.csv")
  }
  return [
    _search(result),
    *(
      _example(result, one, most[one["layer"], one["head"]], drawn[_file(one)])
      for one in result.numbers["drawn"]
    ),
    html.Section(
      "No-op and broadcast sinks",
      figure=drawn["kinds.png"],
      caption="Means over texts; dark heads have a sink in every text.",
      table=html.Table(*result.tables["kinds.csv"]),
    ),
  ]


def _search(result: Result) -> html.Section:
  numbers, conditions = result.numbers, result.numbers["conditions"]
  low, high = conditions["resting"]
  return html.Section(
    TITLE,
    body=(
      f"{numbers['texts']} texts of {numbers['tokens']} tokens. A head is "
      "dormant at a query that gives more than half of its attention to the "
      "first token, and active at the others. Listed are heads that are "
      f"dormant at {100 * low:g} to {100 * high:g} % of the queries, whose "
      f"output while dormant has at most {conditions['output']:g} of the norm "
      "that it has when active, and whose mass on the first token is "
      "predicted by a trigger: by this token, by the previous one, or by the "
      "position. Half of the texts give the predictions, a quarter chooses "
      "the heads and their triggers "
      f"(AUROC at least {conditions['auroc']:g}), and a quarter is held out "
      "and gives the numbers in the table, but for auroc_choosing."
    ),
    table=html.Table(*result.tables["heads.csv"]),
  )


def _example(
  result: Result, one: Mapping[str, Any], most: str, figure: bytes
) -> html.Section:
  """A head on a stretch of text, with what activates it."""
  words = result.numbers["words"][f"{one['layer']}.{one['head']}"]
  return html.Section(
    f"Layer {one['layer']}, head {one['head']}: by {one['trigger']}",
    body=f"Activated most by {most}.",
    figure=figure,
    caption=(
      "A text written for this project. Left: rows are queries; the first "
      "column is the first token, the others start at position "
      f"{one['start']}. Right: the norms of the values of these keys."
    ),
    table=html.Table(
      ["token or position", "predicted mass", "times seen"],
      [[word["value"], word["mass"], word["times"]] for word in words],
    ),
  )
