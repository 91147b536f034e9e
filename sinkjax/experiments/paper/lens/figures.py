"""Figures and sections of the experiment `lens`."""

from collections.abc import Mapping
from typing import Any

from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.paper.lens.experiment import CONTROL, LOGIT
from sinkjax.experiments.shared.interval_plots import band, ends_over
from sinkjax.experiments.shared.sink_removal import Condition
from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

TITLE = "The Jacobian lens, with and without the first token"
CONDITIONS = {Condition.SINK: FIRST, Condition.HIDDEN: REST, CONTROL: MUTED}

METRICS_SHOWN = ("agree", "kl"), (100, 1)
"""Those of the figure, and what they are multiplied by."""


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"shares.png": _shares(result), "quality.png": _quality(result)}


def _by_layer(ax: Any, result: Result) -> None:
  layers = result.numbers["layers"]
  ax.set(xlabel="layer", xticks=layers[:: max(1, len(layers) // 6)])
  ax.grid(True, axis="y")


def _shares(result: Result) -> bytes:
  layers = result.numbers["layers"]
  with drawing(8.4, 3.6) as figure:
    axes = figure.subplots(1, len(result.config.skips), sharey=True)
    for i, (ax, skip) in enumerate(zip(axes, result.config.skips, strict=True)):
      for name, color in CONDITIONS.items():
        values = result.arrays[f"across, {name}"][:, i].T
        band(ax, layers, 100 * ends_over(values), color=color, label=name)
      ax.axhline(0, color=INK, lw=0.6)
      ax.set_title(f"{skip} tokens skipped" if skip != 1 else "1 token skipped")
      _by_layer(ax, result)
    axes[0].set_ylabel("share across tokens, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return png(figure)


def _quality(result: Result) -> bytes:
  layers = result.numbers["layers"]
  looks = {0: (FIRST, "-"), 1: (REST, "-")}
  looks[max(result.config.skips)] = (INK, "--")
  panels = (
    (Condition.SINK, "", "with the sink"),
    (Condition.SINK, ", centred", "with the sink, centred"),
    (Condition.HIDDEN, ", centred", "sink hidden, centred"),
  )
  with drawing(9.6, 5.6) as figure:
    axes = figure.subplots(2, len(panels), sharex=True, sharey="row")
    for column, (name, how, title) in zip(axes.T, panels, strict=True):
      for ax, metric, scale in zip(column, *METRICS_SHOWN, strict=True):
        lines = {LOGIT: (LOGIT, MUTED, ":")}
        for skip, look in looks.items():
          lines[f"{skip} skipped"] = (f"skip {skip}{how}", *look)
        for label, (reading, color, style) in lines.items():
          values = result.arrays[f"{metric}, {name}, {reading}"]
          ends = scale * ends_over(values)
          band(ax, layers, ends, color=color, label=label, ls=style)
        _by_layer(ax, result)
      column[0].set(title=title, xlabel="")
    # After all lines: panels of a row share their axis, and a limit fixes it.
    for ax in axes[:, 0]:
      ax.set_ylim(0, None)
    axes[0, 0].set_ylabel("same prediction, %")
    axes[1, 0].set_ylabel("KL(model || lens), nats")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  return [
    html.Section(
      TITLE,
      body=(
        "The lens of a layer is the mean over texts and source tokens of the "
        "sum, over this and all later tokens, of the derivative of the final "
        "residual stream by that of the layer (our reading). Its share across "
        "tokens is what it has from later tokens, as a share of its squared "
        "norm; a negative one works against the token's own part. "
        f"{numbers['texts']} texts of {numbers['tokens']} tokens. Later "
        "sources have fewer tokens behind them, so that skipping many lowers "
        "the share by itself; conditions of one skip can be compared."
      ),
      figure=drawn["shares.png"],
      caption="Share of the lens across tokens; bands: 95 % over texts.",
      table=html.Table(*result.tables["shares.csv"]),
    ),
    html.Section(
      "How well lenses read",
      body=(
        f"Fitted on {numbers['fitted']} texts, read on {numbers['held_out']} "
        "others, against what the same model predicts in the end: the map "
        "alone, J h, and centred, with the means of the fit, "
        "final_mean + J (h - mean)."
      ),
      figure=drawn["quality.png"],
      caption=(
        "Above: how often the likeliest token is the model's. Below: the "
        "divergence from the model's prediction. Left: the map alone. The sink "
        f"is hidden from layer {numbers['from_layer']} on. Bands: 95 % over "
        "texts."
      ),
      table=html.Table(*result.tables["quality.csv"]),
    ),
  ]
