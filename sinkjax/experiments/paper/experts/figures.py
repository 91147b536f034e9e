"""Figures and sections of the experiment `experts`."""

from collections.abc import Mapping

import numpy as np

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.harness.stats import ends_columns
from sinkjax.experiments.paper.experts.experiment import OF_LARGEST, TOP_PERCENT
from sinkjax.experiments.shared.interval_plots import error_bars
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  MUTED,
  REST,
  drawing,
  legend_above,
  png,
)

TITLE = "Experts that carry the sink"


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"experts.png": _experts(result), "ablated.png": _ablated(result)}


def _experts(result: Result) -> bytes:
  """Each expert's largest output, against its share of first tokens."""
  peak = result.arrays["peak"].astype(float).max(axis=1)
  first = result.arrays["first"].astype(float).mean(axis=1)
  rest = result.arrays["elsewhere"].astype(float).mean(axis=1)
  there = np.isfinite(peak)
  layers = np.broadcast_to(np.arange(len(peak))[:, None], peak.shape)
  order = result.numbers["order"][: result.numbers["found"]]
  with drawing(8.4, 3.2) as figure:
    left, right = figure.subplots(1, 2)
    left.scatter(layers[there], peak[there], s=12, color=REST)
    right.plot(100 * rest[there], 100 * first[there], "o", ms=4, color=REST)
    for layer, expert in order:
      left.plot(layer, peak[layer, expert], "o", ms=6, color=FIRST)
      at = 100 * rest[layer, expert], 100 * first[layer, expert]
      right.plot(*at, "o", ms=6, color=FIRST)
    # Outputs differ by factors, of which a linear axis shows the largest alone.
    left.set_yscale("log")
    left.set(xlabel="layer", ylabel="largest |output| (log scale)")
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(xlabel="other tokens that use it, %", ylabel="first tokens, %")
    for ax in (left, right):
      ax.grid(True, axis="y")
    return png(figure)


def _ablated(result: Result) -> bytes:
  """Sink rate, norm and loss by the number of ablated experts."""
  rows = result.records("ablated.csv")
  panels = (
    ("rate", 100, "heads with a sink, %"),
    ("norm", 1, "first token's norm"),
    ("loss", 1, "loss, nats"),
  )
  looks = (("largest", FIRST, -0.06), ("others", MUTED, 0.06))
  with drawing(9, 3) as figure:
    for ax, (what, scale, label) in zip(
      figure.subplots(1, len(panels)), panels, strict=True
    ):
      for name, color, off in looks:
        some = [row for row in rows if row["experts"] == name]
        ends = [[row[c] for row in some] for c in ends_columns(what)]
        at = np.array([row["ablated"] for row in some]) + off
        error_bars(
          ax, at, scale * np.array(ends, float), color=color, label=name
        )
      ax.set(xlabel="experts ablated", xticks=range(len(some)))
      ax.grid(True, axis="y")
      legend_above(ax, label)
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers, config = result.numbers, result.config
  return [
    html.Section(
      TITLE,
      body=f"{numbers['texts']} texts of {config.tokens} tokens, "
      f"{numbers['first_tokens']} different first tokens. Of "
      f"{numbers['experts']:,} experts {numbers['super']} have a largest "
      f"output above the {TOP_PERCENT}th percentile and above {OF_LARGEST:g} "
      "of the largest.",
      figure=drawn["experts.png"],
      caption="Left: the largest magnitude of what each expert's last map "
      "gives, over texts. Right: tokens that use it. Marked: the experts of "
      "the claims.",
      table=html.Table(*result.tables["experts.csv"]),
    ),
    html.Section(
      "The model without them",
      figure=drawn["ablated.png"],
      caption="Experts add nothing, one more at each step, in the order of "
      "their largest outputs; others: of the same layers, used by about as "
      f"many tokens, means of {config.draws} draws. The norm is that after "
      f"layer {numbers['layer']}. Means over texts with 95 % intervals.",
      table=html.Table(*result.tables["ablated.csv"]),
    ),
  ]
