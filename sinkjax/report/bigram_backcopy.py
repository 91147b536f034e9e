"""Figures and sections of the experiment `bigram_backcopy`."""

import numpy as np

from sinkjax.report import histories, html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  color_bar,
  drawing,
  heat_map,
  png,
)


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"schedule.png": schedule(result), "phases.png": _phases(result)}


def schedule(result) -> bytes:
  """The six quantities of the task through training."""
  panels = {
    "dormant_first": "dormant queries: attention on BOS",
    "active_previous": "triggers: attention on the token before",
    "excess": "loss above the least possible, nats",
    "value_ratio": "BOS's value norm over the others'",
    "sink_logit": "BOS's score above the others'",
    "residual_peak": "BOS's residual norm over the others'",
  }
  return histories.schedule(
    result, panels, rows=2, height=5.6, even="dormant_first",
    scales={"excess": {"value": "log"}},
  )  # fmt: skip


def _phases(result) -> bytes:
  """Attention of the trained models on one row; triggers are marked."""
  numbers, maps = result.numbers, result.arrays["maps"]
  labels = [
    "BOS" if t == "BOS" else (t.strip() or "␣") for t in numbers["tokens"]
  ]
  active = [t in numbers["triggers"] for t in numbers["tokens"]]
  models = numbers["models"]
  with drawing(3.6 * len(models) + 0.6, 4.2) as figure:
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for i, ax in enumerate(axes):
      seen = np.tri(len(labels), dtype=bool)
      image = heat_map(ax, np.where(seen, maps[i], np.nan), vmin=0, vmax=1)
      ax.set_xticks(range(len(labels)), labels, fontsize=5.5)
      ax.set_yticks(range(len(labels)), labels, fontsize=5.5)
      for label, on in zip(ax.get_yticklabels(), active, strict=True):
        label.set_color(FIRST if on else MUTED)
      ax.set_title(models[i])
    color_bar(image, axes, "share of the query's attention")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  triggers = ", ".join(repr(t) for t in numbers["triggers"])
  return [
    html.Section(
      result.title,
      body=(
        "Text of a bigram model; after one of the triggers "
        f"({triggers}) comes the token before it. A head that copies has work "
        "at triggers only. Attention is the share of what a query gives in "
        "all, so that normalisers whose rows do not sum to one compare. The "
        "loss is the divergence from the true next-token distribution: its "
        f"least is 0, at {numbers['optimum']:.3f} nats a token."
      ),
      figure=drawn["schedule.png"], caption=histories.caption(result),
      table=histories.ends(result),
    ),
    html.Section(
      "Active and dormant",
      body="Queries are rows. Those of triggers, in colour, look at the token "
      "before; the others have nothing to look for.",
      figure=drawn["phases.png"],
      caption="Attention of the trained one-layer models on a held-out row.",
    ),
  ]  # fmt: skip
