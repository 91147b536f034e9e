"""Figures and sections of the experiment `optimisation`."""

import numpy as np

from sinkjax.experiments.optimisation import KNOBS, PAPER
from sinkjax.report import html, text_sweep
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  return {
    "knobs.png": _knobs(result), "curves.png": text_sweep.curves(result)
  }  # fmt: skip


def _knobs(result) -> bytes:
  """By knob: attention on the first token, the paper's sinks, the loss."""
  numbers, rows = result.numbers, text_sweep.as_trained(result.numbers)
  used = [k for k in KNOBS if sum(s[1] == k for s in numbers["settings"]) > 1]
  used = used or [KNOBS[0]]
  with drawing(2.9 * len(used) + 0.8, 7.2) as figure:
    axes = figure.subplots(3, len(used), sharey="row", squeeze=False)
    for column, knob in enumerate(used):
      points = sorted(
        (value, name) for name, k, value in numbers["settings"] if k == knob
      )
      labels = [f"{value:g}" for value, _ in points]
      for ax, key, color in zip(
        axes[::2, column], ("first_mass", "loss"), (FIRST, REST), strict=True
      ):
        values = [np.asarray(rows[name][key]) for _, name in points]
        at = np.arange(len(points))
        ax.plot(at, [x.mean() for x in values], "o-", color=color, ms=4)
        for i, seeds in enumerate(values):
          ax.plot(np.full(seeds.size, i), seeds, "_", color=INK, ms=7)
          if points[i][1] == "base":
            ax.axvline(i, color=MUTED, lw=0.8, ls=":")
        ax.set_xticks(at, labels)
        ax.grid(axis="y")
      axes[0, column].axhline(numbers["uniform_mass"], color=MUTED, lw=0.9)
      axes[0, column].set_title(knob)
      _paper(axes[1, column], PAPER.get(knob, ()))
    axes[0, 0].set_ylabel("attention on the first token")
    axes[1, 0].set_ylabel("Gu et al.: heads above 0.3, %")
    axes[2, 0].set_ylabel("held-out loss, nats")
    return png(figure)


def _paper(ax, points) -> None:
  """A knob's sinks in Gu et al., who turn it through values of their own."""
  at = np.arange(len(points))
  ax.plot(at, [rate for _, rate in points], "o--", color=MUTED, ms=4)
  ax.set_xticks(at, [f"{value:g}" for value, _ in points])
  ax.grid(axis="y")
  if not points:
    ax.text(0.5, 0.5, "no table", color=MUTED, ha="center",
            transform=ax.transAxes)  # fmt: skip


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  return [
    html.Section(
      result.title,
      body=(
        "One knob at a time, away from the run at the dotted line; the tokens "
        "in all are the same. Batches are multiples of its batch, data the "
        "share of the training documents that is used. The middle row is of "
        "Gu et al., 60M parameters: compare the shapes of curves, not their "
        "heights."
      ),
      figure=drawn["knobs.png"],
      caption=(
        f"Points are means, dashes the seeds ({len(result.numbers['seeds'])}). "
        f"Grey line: even attention, {result.numbers['uniform_mass']:.3f}."
      ),
      table=text_sweep.table(result, label="run"),
    ),
    text_sweep.training_section(result, drawn),
  ]
