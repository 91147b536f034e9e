"""Figures and sections of the experiment `packing`."""

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

COLORS = (FIRST, REST, INK, MUTED, "#7a4f9a")
FORMS = {"bos": "BOS + text", "text": "text alone"}


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {"rows.png": _rows(result), "curves.png": _curves(result)}


def _rows(result) -> bytes:
  """The table's rows as bars: the paper's rate, our rate and mass, the loss."""
  numbers = result.numbers
  rows = numbers["rows"]
  labels = [f"{row['way']}: {FORMS[row['form']]}" for row in rows]
  colors = [FIRST if row["form"] == "bos" else REST for row in rows]
  at = np.arange(len(rows))[::-1]
  panels = (
    ("paper: heads above eps 0.3, %", [row["paper"][0] for row in rows], None),
    (f"ours: heads above eps {numbers['eps']:g}, %",
     [100 * np.asarray(row["rate"]) for row in rows], None),
    ("ours: attention on the first token",
     [np.asarray(row["mass"]) for row in rows], numbers["uniform_mass"]),
    ("ours: held-out loss, nats", [np.asarray(row["loss"]) for row in rows],
     None),
  )  # fmt: skip
  with drawing(11.5, 0.42 * len(rows) + 1.2) as figure:
    axes = figure.subplots(1, len(panels), sharey=True)
    for ax, (title, values, even) in zip(axes, panels, strict=True):
      means = [np.mean(value) for value in values]
      ax.barh(at, means, color=colors, height=0.62)
      for y, value in zip(at, values, strict=True):
        seeds = np.atleast_1d(value)
        if seeds.size > 1:
          ax.plot(seeds, np.full(seeds.size, y), "|", color=INK, ms=7)
      if even is not None:
        ax.axvline(even, color=MUTED, lw=0.9, ls=":")
      if "loss" in title:  # differences are what matters
        ends = np.concatenate([np.atleast_1d(value) for value in values])
        room = 0.15 * np.ptp(ends) + 1e-3
        ax.set_xlim(ends.min() - room, ends.max() + room)
      ax.set_title(title, fontsize=8.5)
      ax.grid(axis="x")
    axes[0].set_yticks(at, labels)
    return png(figure)


def _curves(result) -> bytes:
  """Attention on the first token through training, and the sink rate."""
  arrays, numbers = result.arrays, result.numbers
  panels = (
    ("first_mass", "attention on the first token"),
    ("sink_rate", f"heads above eps {numbers['eps']:g}"),
  )
  with drawing(9.6, 3.6) as figure:
    for ax, (name, title) in zip(figure.subplots(1, 2), panels, strict=True):
      for i, way in enumerate(numbers["ways"]):
        values, color = arrays[name][i], COLORS[i % len(COLORS)]
        ax.plot(arrays["steps"], values.mean(axis=0), color=color, lw=1.6,
                label=way)  # fmt: skip
        ax.fill_between(arrays["steps"], values.min(axis=0), values.max(axis=0),
                        color=color, alpha=0.15, linewidth=0)  # fmt: skip
      if name == "first_mass":
        ax.axhline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      ax.set_title(title)
      ax.set_xlabel("step")
      ax.grid(axis="y")
    figure.legend(
      *ax.get_legend_handles_labels(), loc="outside upper left", ncols=5,
      frameon=False, fontsize=8.5,
    )  # fmt: skip
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  header = ["training", "input", "paper, % of heads", "ours, % of heads",
            "attention on first", "paper, nats", "ours, nats"]  # fmt: skip
  rows = [
    [row["way"], FORMS[row["form"]], row["paper"][0],
     100 * float(np.mean(row["rate"])), float(np.mean(row["mass"])),
     row["paper"][1], float(np.mean(row["loss"]))]
    for row in numbers["rows"]
  ]  # fmt: skip
  seeds = len(numbers["seeds"])
  return [
    html.Section(
      result.title,
      body=(
        "The first word of a row is the mask: causal, or separate for one that "
        "hides other documents. The second is where BOS was in training: none, "
        "at each document's start, or pinned at the start of every window. "
        "Measured on starts of held-out documents, with BOS in front and "
        "without; the loss is on the same tokens in both. The paper's models "
        "have 120M parameters and 30B tokens: compare signs, not sizes."
      ),
      figure=drawn["rows.png"],
      caption=(
        f"Ticks are the seeds ({seeds}), bars their mean. Dotted: even "
        f"attention, {numbers['uniform_mass']:.3f}."
      ),
      table=html.Table(header, rows),
    ),
    html.Section(
      "When the sink forms",
      body="Each model on texts as it was trained, with BOS where it had one.",
      figure=drawn["curves.png"],
      caption="Mean over seeds, band from least to greatest.",
    ),
  ]
