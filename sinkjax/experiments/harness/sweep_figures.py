"""What reports of sweeps of text models share: bars, curves, tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sinkjax.report import html
from sinkjax.report.figures import FIRST, INK, MUTED, REST, drawing, png

COLORS = (FIRST, REST, INK, MUTED, "#7a4f9a", "#3f8f5b", "#c79a1b", "#8c3b3b")
FORMS = {"bos": "BOS + text", "text": "text alone"}

Panel = tuple[str, Callable[[dict[str, Any]], Any]]
"""A title, and what of a row is drawn: a number, one a seed, or `None`."""


def as_trained(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """{variant: the row that reads it as it was trained}: its first one."""
  rows: dict[str, dict[str, Any]] = {}
  for row in numbers["rows"]:
    rows.setdefault(row["variant"], row)
  return rows


def standard_panels(numbers: dict[str, Any]) -> list[Panel]:
  """Sink rate, attention on the first token, loss."""
  return [
    (
      f"heads above eps {numbers['eps']:g}, %",
      lambda row: 100 * np.asarray(row["rate"]),
    ),
    ("attention on the first token", lambda row: row["first_mass"]),
    ("held-out loss, nats", lambda row: row["loss"]),
  ]


def bars(
  result,
  panels: Sequence[Panel],
  *,
  label: Callable[[dict[str, Any]], str],
  rows: Sequence[dict[str, Any]] | None = None,
) -> bytes:
  """A bar for each row, a panel for each number; ticks are seeds.

  A row without a number has a dash, one of zero has nothing.
  """
  numbers = result.numbers
  rows = numbers["rows"] if rows is None else rows
  colors = [FIRST if row["form"] == "bos" else REST for row in rows]
  at = np.arange(len(rows))[::-1]
  with drawing(3.4 + 2.1 * len(panels), 0.36 * len(rows) + 1.2) as figure:
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, pick) in zip(axes, panels, strict=True):
      values = [pick(row) for row in rows]
      values = [np.nan if value is None else value for value in values]
      ax.barh(
        at, [np.mean(value) for value in values], color=colors, height=0.62
      )
      for y, value in zip(at, values, strict=True):
        seeds = np.atleast_1d(value)
        if np.isnan(seeds).all():
          ax.annotate(
            "\u2013",
            (0, y),
            (3, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
          )
        elif seeds.size > 1:
          ax.plot(seeds, np.full(seeds.size, y), "|", color=INK, ms=7)
      if title == "attention on the first token":
        ax.axvline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      if "loss" in title:  # differences are what matters
        ends = np.concatenate([np.atleast_1d(value) for value in values])
        room = 0.15 * np.ptp(ends) + 1e-3
        ax.set_xlim(ends.min() - room, ends.max() + room)
      ax.set_title(title, fontsize=8.5)
      ax.grid(axis="x")
    axes[0].set_yticks(at, [label(row) for row in rows])
    return png(figure)


def curves(
  result,
  *,
  names: Sequence[str] = ("first_mass", "sink_rate"),
  variants: Sequence[str] | None = None,
) -> bytes:
  """Measurements through training, a line for each variant."""
  arrays, numbers = result.arrays, result.numbers
  titles = {
    "first_mass": "attention on the first token",
    "sink_rate": f"heads above eps {numbers['eps']:g}",
    "loss": "loss on held-out windows, nats",
  }
  variants = numbers["variants"] if variants is None else variants
  rows = -(-len(variants) // 5)
  with drawing(4.8 * len(names), 3.3 + 0.25 * rows) as figure:
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for ax, name in zip(panels, names, strict=True):
      for i, variant in enumerate(variants):
        steps = arrays[f"{'loss_' if name == 'loss' else ''}steps_{variant}"]
        values, color = arrays[f"{name}_{variant}"], COLORS[i % len(COLORS)]
        style = ("-", "--", ":")[i // len(COLORS) % 3]
        ax.plot(
          steps, values.mean(axis=0), style, color=color, lw=1.6, label=variant
        )
        ax.fill_between(
          steps,
          values.min(axis=0),
          values.max(axis=0),
          color=color,
          alpha=0.12,
          linewidth=0,
        )
      if name == "first_mass":
        ax.axhline(numbers["uniform_mass"], color=MUTED, lw=0.9, ls=":")
      if name == "loss":  # the start is far above everything else
        ends = [arrays[f"loss_{v}"] for v in variants]
        later = np.concatenate([x[:, 1:].ravel() for x in ends])
        room = 0.05 * np.ptp(later) + 1e-3
        ax.set_ylim(later.min() - room, later.max() + room)
      ax.set_title(titles[name])
      ax.set_xlabel("step")
      ax.grid(axis="y")
    figure.legend(
      *ax.get_legend_handles_labels(),
      loc="outside upper left",
      ncols=5,
      frameon=False,
      fontsize=8.5,
    )
    return png(figure)


def table(
  result,
  more: Sequence[Panel] = (),
  *,
  paper: bool = False,
  label: str = "variant",
) -> html.Table:
  """The rows as a table; `paper` puts its figures beside ours."""
  header = [label, "input"]
  header += ["paper, % of heads"] * paper + ["ours, % of heads"]
  header += ["attention on first"] + ["paper, nats"] * paper + ["ours, nats"]
  header += [title for title, _ in more]
  found = []
  for row in result.numbers["rows"]:
    rate, nats = row["paper"]
    line = [row["variant"], FORMS[row["form"]]]
    line += [_told(rate)] * paper + [100 * float(np.mean(row["rate"]))]
    line += [float(np.mean(row["first_mass"]))]
    line += [_told(nats)] * paper + [float(np.mean(row["loss"]))]
    line += [_told(pick(row)) for _, pick in more]
    found.append(line)
  return html.Table(header, found)


def _told(value):
  return "" if value is None else float(np.mean(value))


def training_section(result, drawn: dict[str, bytes], body: str = ""):
  """The section of `curves.png`."""
  return html.Section(
    "Through training",
    body=body or "On starts of held-out documents, as each was trained.",
    figure=drawn["curves.png"],
    caption=(
      f"Mean over the seeds ({len(result.numbers['seeds'])}), band from least "
      "to greatest. Dotted: even attention, "
      f"{result.numbers['uniform_mass']:.3f}."
    ),
  )
