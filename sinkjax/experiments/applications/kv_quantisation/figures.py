"""Figures and sections of the experiment `kv_quantisation`."""

import numpy as np

from sinkjax.experiments.harness.stats import student
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

LOOKS = {
  "nothing": ("nothing kept", REST, "o", "-"),
  "sink": ("first token kept", FIRST, "D", "-"),
  "control": ("control token kept", MUTED, "v", "--"),
}
LAYOUTS = {
  "token": "per token",
  "channel": "keys per channel",
  "before rotation": "keys per channel, before rotation",
  "tensor": "per tensor",
}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  numbers, arrays = result.numbers, result.arrays
  return {
    "keys_and_values.png": _curves(numbers, arrays["kv_loss"]),
    "layers.png": _layers(arrays["layer_loss"]),
    "weights_and_activations.png": _bars(
      result.tables["weights_and_activations.csv"][1]
    ),
    "sites.png": _sites(result.tables["sites.csv"][1]),
  }


def _log(ax, linear: float) -> None:
  """Linear up to a number, then by decades."""
  ax.set_yscale("symlog", linthresh=linear, linscale=0.6)
  ax.yaxis.set_major_formatter("{x:g}")
  ax.axhline(0, color=MUTED, lw=0.8)
  ax.grid(axis="y")


def _curves(numbers, loss) -> bytes:
  """Loss increase over bits, a panel for each layout."""
  x = np.arange(len(numbers["bits"]))
  with drawing(10.4, 3.6) as figure:
    axes = figure.subplots(1, len(numbers["layouts"]), sharey=True)
    for i, (ax, name) in enumerate(zip(axes, numbers["layouts"], strict=True)):
      for j, kept in enumerate(numbers["kept"]):
        label, color, marker, style = LOOKS[kept]
        mean, half = student(loss[i, :, j])
        ax.errorbar(
          x + 0.06 * (j - 1),
          mean,
          yerr=half,
          color=color,
          marker=marker,
          ls=style,
          ms=4.5,
          lw=1.6,
          label=label,
        )
      _log(ax, 1e-3)
      ax.set_xticks(x, numbers["bits"])
      ax.set_title(LAYOUTS[name], fontsize=8.5)
      ax.set_xlabel("bits")
    axes[0].set_ylabel("loss increase, nats")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return png(figure)


def _layers(loss) -> bytes:
  """Loss increase of each layer [L, 2, P] rounded alone."""
  x = np.arange(len(loss))
  with drawing(7.4, 3.4) as figure:
    ax = figure.add_subplot()
    for j, kept in enumerate(("nothing", "sink")):
      label, color, marker, style = LOOKS[kept]
      mean, half = student(loss[:, j])
      ax.errorbar(
        x + 0.16 * (j - 0.5),
        mean,
        yerr=half,
        color=color,
        marker=marker,
        ls=style,
        ms=4,
        lw=1.2,
        label=label,
      )
    _log(ax, 1e-2)
    ax.set(xticks=ticks(len(loss)), xlabel="layer rounded, alone")
    legend_above(ax, "loss increase, nats")
    return png(figure)


def _bars(rows) -> bytes:
  """A group for each width and range, a bar for each token kept."""
  groups = list(dict.fromkeys((*row[1:3], row[0]) for row in rows))
  groups.sort(key=lambda x: (-x[0], -x[1]))
  with drawing(7.4, 0.44 * len(groups) + 1.3) as figure:
    ax = figure.add_subplot()
    for j, kept in enumerate(LOOKS):
      label, color, _, _ = LOOKS[kept]
      some = {(*row[1:3], row[0]): row[4:7] for row in rows if row[3] == kept}
      at = [i for i, group in enumerate(groups) if group in some]
      value, low, high = np.array([some[groups[i]] for i in at], float).T
      ax.barh(
        np.array(at) + 0.26 * (j - 1),
        value,
        0.24,
        color=color,
        label=label,
        xerr=[value - low, high - value],
        error_kw={"ecolor": INK, "elinewidth": 0.9},
      )
    labels = [
      f"W{w}A{a}, {name}" if a else f"W{w} alone" for w, a, name in groups
    ]
    ax.set_yticks(range(len(groups)), labels)
    lowest = min(row[5] for row in rows)
    ax.set(
      ylim=(len(groups) - 0.5, -0.5),
      xlim=(min(-0.004, 1.3 * lowest), 1.3 * max(row[6] for row in rows)),
    )
    ax.set_xscale("symlog", linthresh=1e-2, linscale=0.6)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.grid(axis="x")
    legend_above(ax, "loss increase, nats")
    return png(figure)


def _sites(rows) -> bytes:
  names = list(dict.fromkeys(row[0] for row in rows))
  with drawing(6.4, 2.8) as figure:
    ax = figure.add_subplot()
    for j, kept in enumerate(("nothing", "sink")):
      label, color, _, _ = LOOKS[kept]
      some = np.array([row[2:5] for row in rows if row[1] == kept], float)
      value, low, high = some.T
      ax.bar(
        np.arange(len(names)) + 0.36 * (j - 0.5),
        value,
        0.34,
        color=color,
        label=label,
        yerr=[value - low, high - value],
        error_kw={"ecolor": INK, "elinewidth": 0.9},
      )
    _log(ax, 1e-2)
    ax.set_xticks(range(len(names)), names)
    legend_above(ax, "loss increase, nats")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers

  def table(name):
    return html.Table(*result.tables[name])

  layout, bits = numbers["telling"]
  return [
    html.Section(
      result.title,
      body=(
        f"Keys and values rounded and put back, in {numbers['texts']} texts of "
        f"{numbers['tokens']} tokens; the whole model has "
        f"{numbers['loss']['value']:.3f} nats a token. Kept: the first token, "
        f"or, as a control, the token at position {numbers['control']}; loss "
        "and KL are of the predictions after it. "
        "Grids are asymmetric. Bought back: what keeping a token takes from "
        "the loss, in nats and as a share. Values are per token where keys "
        f"are per channel; rotated keys per channel are in groups of "
        f"{numbers['group']} tokens."
      ),
      figure=drawn["keys_and_values.png"],
      caption="95 % intervals over texts; linear below 0.001.",
      table=table("keys_and_values.csv"),
    ),
    html.Section(
      "Which layers need it",
      body=(
        f"Keys and values of one layer alone at {bits} bits, "
        f"{LAYOUTS[layout]}: where keeping the first token helps most when all "
        f"layers are rounded. {numbers['layer_texts']} texts."
      ),
      figure=drawn["layers.png"],
      caption="95 % intervals over texts; linear below 0.01.",
      table=table("layers.csv"),
    ),
    html.Section(
      "Weights and activations",
      body=(
        "Kernels rounded per output channel, and what each of them reads: per "
        "tensor with a range from "
        f"{numbers['calibrating']} other texts (static), per tensor, or per "
        "token, with the text's own. Symmetric grids. The embedding and the "
        "unembedding stay as they are."
      ),
      figure=drawn["weights_and_activations.png"],
      caption="95 % intervals over texts; linear below 0.01.",
      table=table("weights_and_activations.csv"),
    ),
    html.Section(
      "Which inputs need it",
      body=(
        "8-bit activations per tensor, static, at one site of every layer; "
        f"weights as they are. {numbers['layer_texts']} texts."
      ),
      figure=drawn["sites.png"],
      caption="95 % intervals over texts; linear below 0.01.",
      table=table("sites.csv"),
    ),
  ]
