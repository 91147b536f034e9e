"""Figures and sections of the experiment `perturbation`."""

import numpy as np

from sinkjax.experiments.paper.perturbation import experiment
from sinkjax.report import html
from sinkjax.report.figures import (
  FIRST,
  INK,
  MUTED,
  REST,
  color_bar,
  drawing,
  heat_map,
  legend_above,
  png,
  ticks,
  token_labels,
)

COLORS = {
  experiment.SINK: REST,
  experiment.HIDDEN: FIRST,
  experiment.CONTROL: MUTED,
  experiment.NO_BOS: INK,
}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = list(result.numbers["conditions"])
  return {
    "map.png": _maps(result.arrays["aligned"], names),
    "swap.png": _swap(result.arrays["shown"], names, result.numbers["shown"]),
    "layers.png": _layers(result.arrays["by_layer"], names),
    "swaps.png": _swaps(result.arrays),
  }


def _log_scale(values: np.ndarray):
  """(values with gaps for zeros, the colours' scale)."""
  from matplotlib.colors import LogNorm

  shown = np.where(values > 0, values, np.nan)
  return shown, LogNorm(max(np.nanmin(shown), 1e-3), np.nanmax(shown))


def _swap(gaps: np.ndarray, names, told) -> bytes:
  """One swap as the paper draws it: layers by tokens, a row a condition."""
  shown, norm = _log_scale(gaps)
  labels = token_labels(told["tokens"])
  with drawing(9.2, 1.65 * len(names) + 1) as figure:
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for ax, name, values in zip(axes, names, shown, strict=True):
      image = heat_map(ax, values, norm=norm, origin="lower")
      ax.set_title(name)
      ax.set_ylabel("layer")
    axes[-1].set_xticks(
      range(len(labels)), labels, rotation=90, parse_math=False
    )
    bar = color_bar(image, list(axes), "relative change (log scale)")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    return png(figure)


def _maps(aligned: np.ndarray, names) -> bytes:
  shown, norm = _log_scale(aligned)
  before = experiment.AROUND[0]
  with drawing(3.1 * len(names) + 1.2, 3.8) as figure:
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for ax, name, values in zip(axes, names, shown, strict=True):
      image = heat_map(ax, values, norm=norm)
      ax.set_title(name)
      marks = list(range(0, values.shape[1] - before, 10))
      ax.set_xticks([before + x for x in marks], marks)
      ax.set_xlabel("tokens after the swap")
    axes[0].set_ylabel("layer")
    axes[0].set_yticks(ticks(aligned.shape[1]))
    bar = color_bar(image, list(axes), "relative change (log scale)")
    bar.ax.yaxis.set_major_formatter("{x:g}")
    return png(figure)


def _layers(by_layer: np.ndarray, names) -> bytes:
  with drawing(6.4, 3.5) as figure:
    ax = figure.add_subplot()
    x = np.arange(by_layer.shape[1])
    for name, values in zip(names, by_layer, strict=True):
      mean, low, high = values.T
      ax.plot(x, mean, color=COLORS[name], label=name, lw=1.8)
      ax.fill_between(x, low, high, color=COLORS[name], alpha=0.18, lw=0)
    ax.set(xlabel="layer", ylabel="mean relative change", xlim=(0, x[-1]))
    ax.set_ylim(bottom=0)
    ax.grid(axis="y")
    legend_above(ax, "tokens after the swap; bands are 95 % over texts")
    return png(figure)


def _swaps(arrays) -> bytes:
  text, rng = arrays["text"], np.random.default_rng(0)
  series = {
    experiment.HIDDEN: arrays["log_ratio"],
    experiment.CONTROL: arrays["log_ratio_control"],
  }
  with drawing(6.4, 3.3) as figure:
    ax = figure.add_subplot()
    for (name, log), shift in zip(series.items(), (-0.15, 0.15), strict=True):
      x = text + 1 + shift + rng.uniform(-0.08, 0.08, len(text))
      ax.scatter(x, np.exp(log), s=13, lw=0, color=COLORS[name], label=name)
    ax.axhline(1, color=INK, lw=0.8)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set(xlabel="text", ylabel="change / change with the sink")
    ax.set_xticks(np.unique(text) + 1)
    ax.grid(axis="y")
    legend_above(ax, "every swap, at the last layer (log scale)")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header, rows = result.tables["layers.csv"]
  return [
    html.Section(
      result.title,
      body=(
        f"{numbers['swaps']} swaps of one word in {numbers['texts']} texts, "
        f"each run with a token hidden from layer {numbers['from_layer']} on "
        f"and without. {numbers['unusable_swaps']} other swaps change the "
        "number of tokens or come too early or late. A relative change is the "
        "norm of the difference over the norm of the residual stream."
      ),
      figure=drawn["map.png"],
      caption=(
        "Mean relative change after every layer, by place relative to the "
        "swapped word. Blank: exactly zero."
      ),
    ),
    html.Section(
      "One swap: {} for {}".format(*reversed(numbers["shown"]["words"])),
      figure=drawn["swap.png"],
      caption=(
        "As figure 2 of the paper, whose own swap this is where the words are "
        "best and greatest; the text is ours. Blank: exactly zero."
      ),
    ),
    html.Section(
      "The same by layer",
      figure=drawn["layers.png"],
      caption="Mean over all tokens after the swapped word.",
      table=html.Table(header, rows),
    ),
    html.Section(
      "Every swap",
      figure=drawn["swaps.png"],
      caption=(
        "Change of later tokens with a token hidden, over that with the sink. "
        f"In {100 * numbers['swaps_that_spread_further']:.0f} % of swaps it "
        "is more with the sink hidden."
      ),
    ),
  ]
