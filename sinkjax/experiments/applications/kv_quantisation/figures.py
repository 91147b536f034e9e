"""Figures and sections of the experiment `kv_quantisation`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sinkjax.experiments.applications.kv_quantisation.config import Kept, Layout
from sinkjax.experiments.harness.api import Result
from sinkjax.experiments.shared.interval_plots import (
  ends_in,
  ends_over,
  error_bars,
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
  ticks,
)

TITLE = "One token in full precision"
LOOKS = {
  Kept.NOTHING: ("nothing kept", REST, "o", "-"),
  Kept.SINK: ("first token kept", FIRST, "D", "-"),
  Kept.CONTROL: ("control token kept", MUTED, "v", "--"),
}
LAYOUTS = {
  Layout.TOKEN: "per token",
  Layout.CHANNEL: "keys per channel",
  Layout.UNROTATED: "keys per channel, before rotation",
  Layout.TENSOR: "per tensor",
}
LOSS = ("loss_increase", "loss_low", "loss_high")
WHISKERS = {"ecolor": INK, "elinewidth": 0.9}


def draw(result: Result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "keys_and_values.png": _curves(result),
    "layers.png": _layers(result.arrays["layer_loss"]),
    "weights_and_activations.png": _bars(
      result.records("weights_and_activations.csv")
    ),
    "sites.png": _sites(result.records("sites.csv")),
  }


def _loss_axis(ax: Any, linear: float) -> None:
  """Linear up to a number, then by decades."""
  # 8 bits cost about nothing, of either sign, and 2 bits several nats.
  ax.set_yscale("symlog", linthresh=linear, linscale=0.6)
  ax.yaxis.set_major_formatter("{x:g}")
  ax.axhline(0, color=MUTED, lw=0.8)
  ax.grid(axis="y")


def _line(ax: Any, x: np.ndarray, loss: np.ndarray, kept: str) -> None:
  """Mean loss increase of [n, P] with intervals."""
  label, color, marker, style = LOOKS[kept]
  look = {"fmt": marker, "ls": style, "color": color, "label": label}
  error_bars(ax, x, ends_over(loss), ms=4.5, lw=1.5, **look)


def _curves(result: Result) -> bytes:
  """Loss increase over bits, a panel for each layout."""
  numbers, loss = result.numbers, result.arrays["kv_loss"]
  x = np.arange(len(numbers["bits"]))
  with drawing(10.4, 3.6) as figure:
    axes = figure.subplots(1, len(numbers["layouts"]), sharey=True)
    for i, (ax, name) in enumerate(zip(axes, numbers["layouts"], strict=True)):
      for j, kept in enumerate(numbers["kept"]):
        _line(ax, x + 0.06 * (j - 1), loss[i, :, j], kept)
      _loss_axis(ax, 1e-3)
      ax.set_xticks(x, numbers["bits"])
      ax.set_title(LAYOUTS[name], fontsize=8.5)
      ax.set_xlabel("bits")
    axes[0].set_ylabel("loss increase, nats")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return png(figure)


def _layers(loss: np.ndarray) -> bytes:
  """Loss increase of each layer [L, 2, P] rounded alone."""
  x = np.arange(len(loss))
  with drawing(7.4, 3.4) as figure:
    ax = figure.add_subplot()
    for j, kept in enumerate((Kept.NOTHING, Kept.SINK)):
      _line(ax, x + 0.16 * (j - 0.5), loss[:, j], kept)
    _loss_axis(ax, 1e-2)
    ax.set(xticks=ticks(len(loss)), xlabel="layer, rounded alone")
    legend_above(ax, "loss increase, nats")
    return png(figure)


def _bars(rows: list[dict[str, Any]]) -> bytes:
  """A group for each width and range, a bar for each token kept."""

  def group(row: dict[str, Any]) -> tuple[int, int, str]:
    return row["weight_bits"], row["activation_bits"], row["ranges"]

  groups = list(dict.fromkeys(map(group, rows)))
  # The most precise first, as the eye reads from the top.
  groups.sort(key=lambda x: (-x[0], -x[1]))
  with drawing(7.4, 0.44 * len(groups) + 1.3) as figure:
    ax = figure.add_subplot()
    for j, (kept, (label, color, _, _)) in enumerate(LOOKS.items()):
      mine = [row for row in rows if row["kept"] == kept]
      at = np.array([groups.index(group(row)) for row in mine])
      value, low, high = ends_in(mine, LOSS)
      look = {"color": color, "label": label, "error_kw": WHISKERS}
      gaps = [value - low, high - value]
      ax.barh(at + 0.26 * (j - 1), value, 0.24, xerr=gaps, **look)
    labels = [
      f"W{w}A{a}, {name}" if a else f"W{w} alone" for w, a, name in groups
    ]
    ax.set_yticks(range(len(groups)), labels)
    _, low, high = ends_in(rows, LOSS)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlim(min(-0.004, 1.3 * low.min()), 1.3 * high.max())
    ax.set_xscale("symlog", linthresh=1e-2, linscale=0.6)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.grid(axis="x")
    legend_above(ax, "loss increase, nats")
    return png(figure)


def _sites(rows: list[dict[str, Any]]) -> bytes:
  """Loss increase with activations rounded at one site."""
  names = list(dict.fromkeys(row["site"] for row in rows))
  with drawing(6.4, 2.8) as figure:
    ax = figure.add_subplot()
    for j, kept in enumerate((Kept.NOTHING, Kept.SINK)):
      label, color, _, _ = LOOKS[kept]
      mine = {row["site"]: row for row in rows if row["kept"] == kept}
      value, low, high = ends_in([mine[name] for name in names], LOSS)
      x = np.arange(len(names)) + 0.36 * (j - 0.5)
      look = {"color": color, "label": label, "error_kw": WHISKERS}
      ax.bar(x, value, 0.34, yerr=[value - low, high - value], **look)
    _loss_axis(ax, 1e-2)
    ax.set_xticks(range(len(names)), names)
    legend_above(ax, "loss increase, nats")
    return png(figure)


def sections(result: Result, drawn: Mapping[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  layout, bits = numbers["telling"]

  def part(title: str, body: str, name: str, linear: float) -> html.Section:
    return html.Section(
      title,
      body=body,
      figure=drawn[f"{name}.png"],
      caption=(
        "Loss increase with 95 % intervals over texts; the axis is linear "
        f"below {linear:g}."
      ),
      table=html.Table(*result.tables[f"{name}.csv"]),
    )

  return [
    part(
      TITLE,
      f"Keys and values are rounded and put back, in {numbers['texts']} texts "
      f"of {numbers['tokens']} tokens; the whole model has "
      f"{numbers['loss']['value']:.3f} nats a token. Kept in full precision is "
      "the first token or, as a control, the token at position "
      f"{numbers['control']}; loss and KL divergence are of the predictions "
      'after it. Grids are asymmetric. "bought_back" is what keeping a token '
      'takes from the loss, in nats, and "share" the same as a share. Values '
      "are rounded per token where keys are rounded per channel; rotated keys "
      f"per channel are in groups of {numbers['group']} tokens.",
      "keys_and_values",
      1e-3,
    ),
    part(
      "Which layers need it",
      f"Keys and values of one layer alone at {bits} bits, {LAYOUTS[layout]}: "
      "the setting in which keeping the first token helps most when all layers "
      f"are rounded. {numbers['layer_texts']} texts.",
      "layers",
      1e-2,
    ),
    part(
      "Weights and activations",
      "Kernels are rounded per output channel, and the input of each of them "
      f"per tensor with a range from {numbers['calibrating']} other texts "
      "(static), per tensor, or per token, with the text's own range. Grids "
      "are symmetric. The embedding and the unembedding are not rounded.",
      "weights_and_activations",
      1e-2,
    ),
    part(
      "Which inputs need it",
      "8-bit activations with one static range per tensor, at one site of "
      "every layer; weights are not rounded. "
      f"{numbers['layer_texts']} texts.",
      "sites",
      1e-2,
    ),
  ]
