"""Figures and sections of the experiment `context_length`."""

import numpy as np

from sinkjax.experiments.context_length import PAPER
from sinkjax.report import html, text_sweep
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png


def draw(result) -> dict[str, bytes]:
  """Every figure, by file name."""
  names = ("first_mass", "sink_rate", "loss")
  return {
    "context.png": _by_context(result),
    "curves.png": text_sweep.curves(result, names=names),
  }


def _by_context(result) -> bytes:
  """Attention on the first token, sink rate and loss over the context."""
  numbers = result.numbers
  contexts = numbers["contexts"]
  rows = {
    row["variant"]: row for row in numbers["rows"] if row["form"] == "bos"
  }
  rows = rows or {row["variant"]: row for row in numbers["rows"]}

  def of(name):
    return np.array([rows[str(n)][name] for n in contexts])  # [contexts, S]

  even = of("own_uniform_mass")[:, 0]
  with drawing(11.4, 3.6) as figure:
    mass, rate, loss = figure.subplots(1, 3)
    for values, color, label in (
      (of("first_mass"), FIRST, "64 tokens"),
      (of("own_first_mass"), REST, "own length"),
    ):
      _line(mass, contexts, values, color, label)
    mass.axhline(numbers["uniform_mass"], color=FIRST, lw=0.9, ls=":")
    mass.plot(contexts, even, color=REST, lw=0.9, ls=":")
    mass.set_title("attention on the first token")
    _line(rate, contexts, 100 * of("rate"), FIRST, "ours, 64 tokens")
    rate.plot(list(PAPER), list(PAPER.values()), "o--", color=MUTED, ms=4,
              lw=1.2, label="the paper, 120M, eps 0.3, by eye")  # fmt: skip
    rate.set_title(f"heads above eps {numbers['eps']:g}, %")
    _line(loss, contexts, of("near_loss"), FIRST, "64 tokens")
    _line(loss, contexts, of("loss"), REST, "own length")
    loss.set_title("held-out loss, nats")
    for ax in (mass, rate, loss):
      ax.set_xscale("log", base=2)
      ticks = sorted({*contexts, *(PAPER if ax is rate else ())})
      ax.set_xticks(ticks, [str(n) for n in ticks])
      ax.minorticks_off()
      ax.set_xlabel("trained context, tokens")
      ax.grid(axis="y")
      ax.legend(frameon=False, fontsize=8)
    return png(figure)


def _line(ax, x, values, color, label):
  ax.plot(x, values.mean(axis=1), "o-", color=color, ms=4, lw=1.6, label=label)
  for i, seeds in enumerate(values):
    ax.plot(np.full(len(seeds), x[i]), seeds, "_", color=INK, ms=6, lw=1)


def sections(result, drawn: dict[str, bytes]) -> list[html.Section]:
  """The experiment's part of the report."""
  panels = [
    ("attention on first, own length", lambda row: row["own_first_mass"]),
    ("even, own length", lambda row: row["own_uniform_mass"]),
    ("loss of 64 tokens", lambda row: row["near_loss"]),
  ]
  return [
    html.Section(
      result.title,
      body=(
        "Every context has the same tokens a step and in all. Looked at on "
        "starts of held-out documents: 64 tokens for all, and as many as each "
        "was trained on. Longer texts spread even attention thinner, so "
        "attention at the own length is to be held against the dotted line."
      ),
      figure=drawn["context.png"],
      caption=(
        "Points are means, dashes the seeds "
        f"({len(result.numbers['seeds'])}). Dotted: even attention, in the "
        "colour of its curve."
      ),
      table=text_sweep.table(result, panels, paper=True, label="context"),
    ),
    text_sweep.training_section(
      result,
      drawn,
      "Sinks on texts of 64 tokens; the loss is on held-out windows of each "
      "one's own length.",
    ),
  ]
