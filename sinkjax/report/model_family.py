"""Figures and sections of the experiment `model_family`."""

import numpy as np

from sinkjax.experiments.model_family import PAPER
from sinkjax.report import html, text_sweep
from sinkjax.report.figures import FIRST, INK, MUTED, drawing, png


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  return {
    "sizes.png": _sizes(result),
    "curves.png": text_sweep.curves(result, names=names),
  }


def _sizes(result) -> bytes:
  """By parameters: attention on the first token, sink rate, loss; the paper's
  sink rate of Llama 3.1."""
  numbers = result.numbers
  rows = text_sweep.as_trained(numbers)
  panels = (
    ("attention on the first token", "first_mass", 1, "mass"),
    (f"heads above eps {numbers['eps']:g}, %", "rate", 100, "rate"),
    ("held-out loss, nats", "loss", 1, None),
  )
  with drawing(14.2, 3.8) as figure:
    *axes, theirs = figure.subplots(1, 4)
    theirs.sharey(axes[1])
    theirs.plot(list(PAPER), list(PAPER.values()), "o--", color=MUTED, ms=5)
    theirs.set_title("the paper: Llama 3.1, heads above eps 0.8, %")
    for size, rate in PAPER.items():
      theirs.annotate(f"{size / 1e9:g}B", (size, rate), fontsize=8,
                      color=MUTED, xytext=(5, -10),
                      textcoords="offset points")  # fmt: skip
    axes[1].sharex(axes[0])
    for ax in figure.axes:
      ax.set_xscale("log")
      ax.xaxis.set_minor_formatter("")
      ax.margins(x=0.15)
      ax.set_xlabel("parameters")
      ax.grid(axis="y")
    for ax, (title, key, factor, outside) in zip(axes, panels, strict=True):
      for i, size in enumerate(numbers["sizes"]):
        values = factor * np.asarray(rows[size["variant"]][key])
        x = size["parameters"]
        ax.plot(x, values.mean(), "o", color=FIRST, ms=5,
                label="" if i else "ours, trained alike")  # fmt: skip
        ax.plot(np.full(values.size, x), values, "_", color=INK, ms=7)
        ax.annotate(size["variant"], (x, values.mean()), fontsize=8,
                    xytext=(5, -11 if i % 2 else 4),
                    textcoords="offset points")  # fmt: skip
      for i, row in enumerate(numbers["outside"] if outside else []):
        if row["parameters"] is None:
          continue
        ax.plot(row["parameters"], factor * row[outside], "s", color=MUTED,
                ms=5, label="" if i else "others', uncontrolled")  # fmt: skip
        ax.annotate(row["model"], (row["parameters"], factor * row[outside]),
                    fontsize=8, color=MUTED, ha="right",
                    xytext=(-6, 3 if i % 2 else -9),  # two may be at one place
                    textcoords="offset points")  # fmt: skip
      if key == "first_mass":
        ax.axhline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      ax.set_title(title)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return png(figure)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  numbers = result.numbers
  sizes = {size["variant"]: size for size in numbers["sizes"]}
  panels = [
    ("layers", lambda row: sizes[row["variant"]]["layers"]),
    ("width", lambda row: sizes[row["variant"]]["width"]),
    ("parameters", lambda row: sizes[row["variant"]]["parameters"]),
  ]
  body = (
    "Our models differ in size alone: data, tokens and optimiser are the same. "
    "Parameters are counted without the embedding. The last panel is of the "
    "paper's table 1: another threshold, larger models."
  )
  if numbers["outside"]:
    body += (
      " The models of others differ in everything, are looked at on other "
      f"texts, of {numbers['outside_tokens']} tokens, and count all their "
      "parameters: they are shown, not compared."
    )
  return [
    html.Section(
      result.title, body=body, figure=drawn["sizes.png"],
      caption=(
        f"Points are means, dashes the seeds ({len(numbers['seeds'])}). "
        f"Dotted: even attention, {numbers['uniform_mass']:.3f}."
      ),
      table=text_sweep.table(result, panels, label="size"),
    ),
    text_sweep.training_section(result, drawn),
  ]  # fmt: skip
